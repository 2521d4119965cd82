"""What a refusal proposes leads to rows that are kept: a remedy for each reason of a drop, and which columns
to name and to ignore."""

from __future__ import annotations

import json
import re

import pytest

from posttrain.data.cache import TooManyDropped, prepare_sources
from posttrain.data.reasons import REASONS
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.rows import to_example
from posttrain.data.tokenizers import load_tokenizer
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Data, Loss, Source

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


TALK = conversation("ua")
CALL = {"name": "t", "arguments": {}}
RATED = [{"text": "5", "rating": 2}, {"text": "6", "rating": 1}]
VALUES = [
    *("some text", "1", "on", 3, 0, 0.5, True, TALK, TALK[:1], TALK[1:], json.dumps(TALK), RATED),
    *("\n\nHuman: u\n\nAssistant: a", {"a": 1}, {"name": "t"}, [CALL], json.dumps([CALL]), ["a", "b"]),
    {"role": ["user", "assistant"], "content": ["u", "a"]},
]
NAMES = [
    *(
        "Prompt",
        "questions",
        "Question",
        "q",
        "a",
        "Response",
        "responses",
        "completions",
        "answers",
        "texts",
    ),
    *(
        "mesages",
        "message",
        "Messages",
        "dialog",
        "conversation_id",
        "content",
        "input",
        "story",
        "repo_name",
    ),
    *("tool", "function", "Tools", "tool_call", "tool_calls", "reasonings", "thinking", "sytem", "System"),
    *("chat_template_kwarg", "loss", "weight", "training", "id"),
]
PARTS = [
    {"prompt": "q", "completion": "c"},
    {"Question": "q", "Answer": "c"},
    {"q": "q", "a": "c"},
    {"input": "q", "content": "c"},
    {"question_text": "q", "answer_text": "a"},
    {"prompt": TALK[:1], "output": "x"},
    {"messages": TALK},
    {"dialog": TALK},
    {"mesages": TALK},
    {"text": "t"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
]


def ends(row: dict, shape: str, columns: dict, ignore: list) -> list[tuple[set, str]]:
    """(the columns that were proposed, what is said then) at the end of each way through the remedies."""
    source, sentence = Source(name="s", path="x", columns=Columns(**columns), ignore=ignore), ""
    try:
        SHAPES[shape].read(row, source, "x:1")
    except RowError as error:
        return [({*columns.values(), *ignore}, str(error))]
    except RequestError as error:
        sentence = str(error)
    found = []
    for written in re.findall(r"columns: \{([^}]*)\}", sentence):
        named = dict(each.split(": ") for each in written.split(", "))
        assert not named.items() <= columns.items(), sentence
        found += ends(row, shape, columns | named, ignore)
    for written in re.findall(r"ignore: \[([^]]*)\]", sentence):
        assert not {*written.split(", ")} <= {*ignore}, sentence
        found += ends(row, shape, columns, ignore + written.split(", "))
    return found or [({*columns.values(), *ignore}, sentence)]


@pytest.mark.parametrize("name", NAMES)
def test_every_column_that_is_proposed_can_be_read(name):
    """A column of any name and value beside an example in any spelling, by whichever remedies one goes."""
    for parts in PARTS:
        shape = "pairs" if "chosen" in parts else "rows"
        for value in VALUES if name not in parts else ():
            row = parts | {name: value}
            for proposed, said in ends(row, shape, {}, []):
                assert not said or name not in proposed, (row, proposed, said)
                if said and name not in said:  # the fault of a column that nothing is proposed of
                    assert said.startswith(("bad_call", "x:1: source 's' has rated")), (row, proposed, said)
