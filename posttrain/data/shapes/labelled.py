"""The shape `labelled`: a row of unpaired preference data is one example, a good reply or a bad one.

The columns are those that `to_example` reads (prompt and completion, or a conversation that ends in the
reply) and `label`. The label becomes the example's `p`, 1.0 for wanted and 0.0 for unwanted, which tables
keep and batches carry. Left out: pairs (pairs.py), ratings on a scale.
"""

from __future__ import annotations

from typing import Any

from posttrain.data.shapes.columns import column, refuse_shared
from posttrain.data.shapes.names import SPELT, says
from posttrain.data.shapes.rows import to_example
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema
from posttrain.types import Example

WORDS = {
    **{text: bool(flag) for text, flag in SPELT.items()},
    **dict.fromkeys(("desirable", "chosen", "good"), True),
    **dict.fromkeys(("undesirable", "rejected", "bad"), False),
}
"""Usual spellings of a label as text."""


def to_labelled(row: dict[str, Any], source: schema.Source, where: str) -> tuple[Example]:
    """The example of `row`, its label in `p`.

    Raises:
        RequestError: there is no label column, it has something else, too, the label is not true or false,
            and as `to_example`.
        RowError: no_label, and as `to_example`.
    """
    name = column(row, source, "label") or "label"
    if name not in row:
        paired = "chosen" in row and "rejected" in row
        advice = (
            "it has pairs: choose another preference.loss, or give each side its own row"
            if paired
            else "name the column under columns.label"
        )
        raise RequestError(
            f"{where}: source {source.name!r} has no column {name!r}{did_you_mean(name, row)}; {advice}"
        )
    parts = {what: column(row, source, what) for what in ("prompt", "completion", "messages")}
    refuse_shared(parts | {"label": name}, source, where)
    value = row[name]
    if not says(value):
        raise RowError("no_label", f"column {name!r} is empty")
    wanted = truth(value)
    if wanted is None:
        raise RequestError(f"{where}: column {name!r} must be true or false (1 or 0), not {value!r}")
    example = ending_in_reply(to_example({k: v for k, v in row.items() if k != name}, source, where))
    if example.messages is None and not example.prompt:
        raise RequestError(f"{where}: a label judges the reply to a prompt, but the row is plain text")
    example.p = float(wanted)
    return (example,)


def ending_in_reply(example: Example) -> Example:
    """`example`. Raises RowError (no_assistant_turn) if it is a conversation without a last reply."""
    if example.messages is not None and example.messages[-1]["role"] != "assistant":
        raise RowError("no_assistant_turn", "the conversation does not end in a reply")
    return example


def truth(value: Any) -> bool | None:
    """`value` as true or false: booleans, 1 and 0, and the words of `WORDS`; None for anything else."""
    if isinstance(value, str):
        return WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None
