"""Fixtures of this folder."""

from tests.judging import server
