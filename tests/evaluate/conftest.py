"""Fixtures of this folder."""

from tests.calling import calling
from tests.judging import server
from tests.tiny import digits, llama
