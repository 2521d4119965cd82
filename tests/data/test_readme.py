"""The pages of the room: every reason for which a row can be dropped is in DROPS.md, in the words of
`REASONS`; the conversation that README.md draws is trained as drawn."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest

from posttrain.data.reasons import KEY, REASONS, Reason, remedy
from posttrain.data.shapes.rows import to_example
from posttrain.recipe.schema import Data, Loss, Source
from tests.data.tokens import check, row_of

DYNAMIC = {
    *("no_chosen", "no_rejected", "no_prompt", "no_completion", "empty", "truncated", "unreadable"),
    "bad_tools",
    *("two_users", "two_replies", "assistant_first", "late_system", "tool_order"),
}
"""Reasons that are not a literal of `RowError(...)`."""


def test_every_reason_is_explained(root):
    room = root / "posttrain" / "data"
    raised = set(DYNAMIC)
    for path in room.rglob("*.py"):
        raised |= set(re.findall(r'RowError\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
    table = re.search(r"\| reason \|.*?\n(?=\n|\Z)", (room / "DROPS.md").read_text(encoding="utf-8"), re.S)
    explained = {}
    for line in table[0].splitlines()[2:]:
        slugs, meaning, what = (cell.strip() for cell in line.strip("|").split("|"))
        explained |= dict.fromkeys(re.findall(r"`(\w+)`", slugs), Reason(meaning, what))
    assert explained == REASONS
    assert explained.keys() == raised and len(raised) > 15


def test_a_remedy_names_the_present_value():
    data = Data(sources=[Source(name="a", path="b")], template="chatml", max_length=200)
    assert remedy("overlong", data, Loss()) == (
        "raise data.max_length (now 200), or set data.overlong: truncate (a prompt is never cut)"
    )
    assert remedy("template_error", data, Loss()) == "choose another data.template (now 'chatml')"
    assert remedy("no_thought", data, Loss()).endswith("data.template_options")  # not set: no value
    assert remedy("of an older version", data, Loss()) is None


@pytest.mark.parametrize("reason", REASONS)
def test_keys_in_remedies_exist(reason):
    for section, key in KEY.findall(REASONS[reason].remedy):
        assert key in {field.name for field in fields({"data": Data, "loss": Loss}[section])}


def test_the_conversation_is_trained_as_drawn(root):
    text = (root / "posttrain" / "data" / "README.md").read_text(encoding="utf-8")
    row, drawn = re.search(r"```json\n(.*?)```.*?```\n(.*?)```", text, re.S).groups()
    example = to_example(json.loads(row), Source(name="s", path="rows.jsonl"), "rows.jsonl:1")
    check(row_of(example, "chatml"), drawn, marks="⟦⟧")
