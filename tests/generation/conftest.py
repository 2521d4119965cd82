"""Fixtures of this folder."""

from tests.tiny import digits, llama
