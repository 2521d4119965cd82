"""Rows in the shapes of widely used data sets are rendered and trained as templates of their models do."""

from __future__ import annotations

import re

import pytest
import trl

from posttrain.recipe.schema import Source
from tests.data.families import verdict
from tests.data.shapes_page import PAGE, SHAPES, made, page


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_trained(name):
    """Token for token the template's own rendering, within its own marks where it has them, or what stands
    there while the reply is sampled; the trained parts are those written by hand."""
    shape = SHAPES[name]
    found = made(shape)
    assert [part for text in found for part in re.findall("⟦(.*?)⟧", text, re.S)] == shape.trained
    source = Source(name="s", path="rows.jsonl", **shape.source)
    judged = verdict(shape.template, shape.row, shape.train_on, source, **shape.options)[0]
    assert judged in (("sampled",) if shape.sampled else ("marks", "within", "right"))


def test_the_page_is_true():
    """For the TRL that it names; templates of another may have changed."""
    text = PAGE.read_text(encoding="utf-8")
    if re.search(r"TRL ([\d.]+\d)", text)[1] == trl.__version__:
        assert text == page()
    assert re.findall(r"^## (.*)$", text, re.M) == list(SHAPES)
