"""What a refusal for dropped rows proposes: a remedy for each reason, which leads to rows that are kept."""

from __future__ import annotations

import json
import re

import pytest

from posttrain.data.cache import TooManyDropped, prepare_sources
from posttrain.data.reasons import REASONS
from posttrain.data.shapes.rows import to_example
from posttrain.data.tokenizers import load_tokenizer
from posttrain.data.tokens import RowError
from posttrain.recipe.schema import Data, Loss, Source

TURNS = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


def conversation(letters: str) -> list[dict]:
    return [{"role": TURNS[letter], "content": letter * 2} for letter in letters]


def reason_of(row: dict, roles: str = "strict") -> str | None:
    try:
        to_example(row, Source(name="s", path="x", roles=roles), "x:1")
    except RowError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("letters", "reason"),
    [
        ("uua", "two_users"),
        ("uaa", "two_replies"),
        ("aua", "assistant_first"),
        ("usa", "late_system"),
        ("uta", "tool_order"),
    ],
)
def test_the_proposed_order_keeps_the_row(letters, reason):
    row = {"messages": conversation(letters)}
    assert reason_of(row) == reason
    proposed = re.findall(r"`roles: (\w+)`|\(or `(\w+)`\)", REASONS[reason].remedy)
    rules = [rule for pair in proposed for rule in pair if rule]
    assert rules == [rule for rule in ("join", "loose") if reason_of(row, rule) is None]


def test_a_silent_reply_beside_others_may_have_weight_0():
    assert REASONS["empty_reply"].remedy.endswith("where it has other replies, this one may have `weight: 0`")
    for silent in ("", None):
        turns = [*conversation("uaua"), *conversation("u"), {"role": "assistant", "content": silent}]
        assert reason_of({"messages": turns}) == "empty_reply"
        turns[-1]["weight"] = 0
        assert reason_of({"messages": turns}) is None
    assert reason_of({"messages": [{"role": "user", "content": None}, *conversation("a")]}) == "null_message"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"prompt": "a", "completion": ""}],
            "1 of 2 rows (50.0%) is dropped or truncated, more than data.max_drop_share = 0.05: "
            "1 no_completion. "
            "Remedy: fill it in, or name another column under data.sources.columns. "
            "Or allow it with data.max_drop_share",
        ),
        (
            [{"messages": conversation(letters)} for letters in ("uua", "uaa", "aua")],
            "3 of 4 rows (75.0%) are dropped or truncated, more than data.max_drop_share = 0.05: "
            "1 assistant_first, 1 two_replies, 1 two_users. "
            "Remedies: assistant_first: write roles: loose on the source, or repair the row; "
            "two_replies, two_users: write roles: join (or loose) on the source. "
            "Or allow it with data.max_drop_share",
        ),
    ],
)
def test_each_remedy_says_what_it_is_for(tmp_path, rows, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "a", "completion": "b"}, *rows]))
    source = Source(name="s", path=str(path))
    data = Data(sources=[source], template="chatml", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(TooManyDropped) as error:
        prepare_sources([source], data, Loss(), load_tokenizer("builtin:bytes"))
    assert error.value.brief == f"source 's': {said}"
