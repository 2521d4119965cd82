"""The README of the room: every reason for which a row can be dropped is in it, with what to do, and the
conversation that it draws is trained as drawn."""

from __future__ import annotations

import json
import re

from posttrain.data.shapes.rows import to_example
from posttrain.recipe.schema import Source
from tests.data.tokens import check, row_of

DYNAMIC = {
    *("no_chosen", "no_rejected", "no_prompt", "no_completion", "empty", "truncated", "unreadable"),
    *("two_users", "two_replies", "assistant_first", "late_system", "tool_order"),
}
"""Reasons that are not a literal of `RowError(...)`."""


def test_every_reason_is_explained(root):
    room = root / "posttrain" / "data"
    raised = set(DYNAMIC)
    for path in room.rglob("*.py"):
        raised |= set(re.findall(r'RowError\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
    table = re.search(r"\| reason \|.*?\n(?=\n)", (room / "README.md").read_text(encoding="utf-8"), re.S)
    explained = {
        slug for line in table[0].splitlines()[2:] for slug in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert explained == raised and len(raised) > 15


def test_the_conversation_is_trained_as_drawn(root):
    text = (root / "posttrain" / "data" / "README.md").read_text(encoding="utf-8")
    row, drawn = re.search(r"```json\n(.*?)```.*?```\n(.*?)```", text, re.S).groups()
    example = to_example(json.loads(row), Source(name="s", path="rows.jsonl"), "rows.jsonl:1")
    check(row_of(example, "chatml"), drawn, marks="⟦⟧")
