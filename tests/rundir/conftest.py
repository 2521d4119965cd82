"""Fixtures of this folder."""

from tests.rundir.written import pair, pipeline, runs, tables
