"""Fixtures of this folder."""

from tests.rundir.make_earlier import earlier
from tests.rundir.written import pair, pipeline, runs, tables
