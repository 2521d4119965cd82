"""Fixtures of this folder."""

from tests.calling import calling
from tests.tiny import digits, llama
