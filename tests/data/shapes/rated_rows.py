"""Rows of rated replies as pairs: what `test_rated.py` and `test_entries.py` share."""

from __future__ import annotations

from posttrain.data.shapes.pairs import to_pair
from posttrain.recipe.schema import Columns, Source

WHERE = "rated.jsonl:3"


def pair(row, **columns):
    """The texts of (chosen, rejected)."""
    source = Source(name="s", path="rated.jsonl", columns=Columns(**columns))
    chosen, rejected = to_pair(row, source, WHERE)
    assert chosen.prompt == rejected.prompt
    return chosen.completion, rejected.completion
