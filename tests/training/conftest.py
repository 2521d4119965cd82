"""Fixtures of this folder."""

from tests.tiny import digits, environment, launch, llama, recipe, rows_file, tied, tiny
