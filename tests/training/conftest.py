"""Fixtures of this folder."""

from tests.calling import calling
from tests.flash import flash
from tests.tiny import digits, environment, launch, llama, recipe, rows_file, tied, tiny
