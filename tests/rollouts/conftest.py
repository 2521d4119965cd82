"""Fixtures of this folder."""

from tests.unigram import digits, write_recipe
