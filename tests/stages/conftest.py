"""Fixtures of this folder; `digits` of `tests/unigram.py` is a model, that of `tests/tiny.py` a tokenizer."""

from tests.calling import calling
from tests.rundir.make_earlier import earlier
from tests.stages.damage import runs, whole
from tests.tiny import environment, launch, recipe, rows_file, tied, tiny
from tests.unigram import digits, write_recipe
