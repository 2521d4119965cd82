"""Fixtures of this folder."""

from tests.flash import flash
from tests.tiny import digits, llama, tied, tiny
