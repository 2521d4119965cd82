"""Unpaired rows with a label: every usual spelling, and what is refused or dropped."""

from __future__ import annotations

import pytest

from posttrain.data.shapes.labelled import to_labelled
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source

WHERE = "rows.csv:4"
TALK = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]


def labelled(row, **columns):
    source = Source(name="s", path="rows.csv", columns=Columns(**columns))
    (example,) = to_labelled(row, source, WHERE)
    return example


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (True, 1.0),
        (1, 1.0),
        (1.0, 1.0),
        ("True", 1.0),
        (" 1 ", 1.0),
        ("desirable", 1.0),
        (False, 0.0),
        (0, 0.0),
        ("false", 0.0),
        ("0", 0.0),
        ("rejected", 0.0),
        ("1.0", 1.0),  # as pandas writes a column with gaps
        ("0.0", 0.0),
    ],
)
def test_spellings_of_a_label(value, want):
    example = labelled({"prompt": "p", "completion": "c", "label": value})
    assert (example.prompt, example.completion, example.p) == ("p", "c", want)
    assert labelled({"question": "p", "answer": "c", "ok": value}, label="ok").p == want


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"prompt": TALK[:1], "completion": TALK[1:]},
        {"prompt": "p", "completion": "c", "system": "s"},
    ],
)
def test_conversations(row):
    example = labelled(row | {"label": 1, "p": 0.25})
    assert example.messages[-2:] == TALK and example.p == 1.0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "completion": "c", "label": None}, "no_label"),
        ({"prompt": "p", "completion": "c", "label": float("nan")}, "no_label"),
        ({"prompt": "p", "completion": "c", "label": " "}, "no_label"),
        ({"prompt": "p", "completion": "", "label": 1}, "no_completion"),
        ({"messages": [*TALK, TALK[0]], "label": 1}, "no_assistant_turn"),
    ],
)
def test_rows_that_are_dropped(row, reason):
    with pytest.raises(RowError) as error:
        labelled(row)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("row", "columns", "sentence"),
    [
        (
            {"prompt": "p", "completion": "c", "labl": 1},
            {},
            "no column 'label' .did you mean 'labl'.*columns.label",
        ),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            {},
            "it has pairs: choose another preference.loss",
        ),
        ({"prompt": "p", "completion": "c", "label": 4}, {}, "'label' must be true or false .1 or 0., not 4"),
        ({"prompt": "p", "completion": "c", "label": -1}, {}, "not -1"),
        ({"prompt": "p", "completion": "c", "label": "maybe"}, {}, "not 'maybe'"),
        ({"prompt": "p", "completion": "c", "label": 1}, {"label": "good"}, "no column 'good'"),
        ({"text": "c", "label": 1}, {}, "a label judges the reply to a prompt"),
    ],
)
def test_what_is_refused(row, columns, sentence):
    with pytest.raises(RequestError, match=f"rows.csv:4: .*{sentence}"):
        labelled(row, **columns)
