"""Rows as they should not be: each is kept as it is, dropped under a reason, or refused in one sentence."""

from __future__ import annotations

import json

import pytest

from posttrain.data import readers
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Loss, Source
from tests.data.tokens import BYTES, HERMES, byte_tokenizer, prepare_source, trained

USER = {"role": "user", "content": "2+2?"}
SAID = {"role": "assistant", "content": "It is 4."}
ROWS = SHAPES["rows"]
TOOLS = byte_tokenizer()
TOOLS.chat_template = HERMES  # renders calls and tools
GOOD = {"prompt": "p", "completion": "Hi"}


def call(*ids, arguments='{"a": 2}'):
    """An assistant's turn with a call for each id."""
    inner = {"name": "add", "arguments": arguments}
    calls = [{"type": "function", "function": inner} | ({"id": i} if i else {}) for i in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answer(link=None):
    return {"role": "tool", "content": "4"} | ({"tool_call_id": link} if link else {})


def said(content):
    return {"messages": [USER, {"role": "assistant", "content": content}]}


def talk(*turns, **more):
    return {"messages": [USER, *turns]} | more


def nested(depth):
    return json.loads('{"a": ' * depth + "1" + "}" * depth)


def outcome(content, tmp_path, name="rows.jsonl", source=None, **data):
    """`trained: ...`, `dropped: reason: detail` or `refused: sentence` for the last row of a file."""
    path = tmp_path / name
    lines = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(lines)
    source = Source(name="s", path=str(path), **(source or {}))
    settings, found = Data(sources=[], template="tokenizer", **data), "nothing"
    try:
        for where, row in readers.read(path):
            try:
                parts = ROWS.parts(ROWS.read(row, source, where), settings)
                made = [ROWS.tokenize(part, TOOLS, settings, Loss()) for part in parts]
                found = "trained: " + " | ".join(trained(each, TOOLS) for each in made)
            except RowError as error:
                found = f"dropped: {error}"
    except RequestError as error:
        found = f"refused: {error}"
    return found.replace(f"{tmp_path}/", "")


AT = "rows.jsonl:1: column 'messages', message"
ENDED = "<|im_end|>"
ROLES = "(one of: assistant, developer, system, tool, user)"


@pytest.mark.parametrize(
    ("row", "want"),
    [
        # a call without an answer
        (
            talk(call("a"), USER, SAID),
            "dropped: tool_order: message 2 (user) follows a call that no tool has answered",
        ),
        (
            talk(call(None), SAID),
            "dropped: tool_order: message 2 (assistant) follows a call that no tool has answered",
        ),
        (
            talk(call("a", "b"), answer("a"), SAID),
            "dropped: tool_order: message 3 (assistant) follows call 'b', which no tool has answered",
        ),
        # an answer without a call
        (talk(answer("a"), SAID), "dropped: tool_order: message 1 (tool) answers no call"),
        (talk(SAID, answer(), SAID), "dropped: tool_order: message 2 (tool) answers no call"),
        (
            talk(call("a"), answer("b"), SAID),
            "dropped: tool_order: message 2 (tool) answers call 'b', which was not made",
        ),
        # arguments that are no JSON, or no object
        (talk(call("a", arguments='{"a": ')), f"dropped: bad_call: {AT} 1: '{{\"a\": ' is not JSON"),
        (
            talk(call("a", arguments="[2]")),
            f"dropped: bad_call: {AT} 1: the arguments of 'add' must be an object",
        ),
        (
            talk(call("a", arguments=2)),
            f"dropped: bad_call: {AT} 1: the arguments of 'add' must be an object",
        ),
        (
            talk(call("a", arguments=nested(300))),
            "dropped: bad_call: a value is nested deeper than 100 levels",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "?"},
                    {"from": "function_call", "value": "add(2)"},
                ]
            },
            "dropped: bad_call: rows.jsonl:1: column 'conversations', message 1: 'add(2)' is not JSON",
        ),
        (talk(SAID, tools="[{"), "dropped: bad_tools: rows.jsonl:1: column 'tools': '[{' is not JSON"),
        # roles
        (talk({"role": "judge", "content": "x"}), f"refused: {AT} 1: unknown role 'judge' {ROLES}"),
        (
            talk({"role": "Assistant", "content": "x"}),
            f"refused: {AT} 1: unknown role 'Assistant' (did you mean 'assistant'?)",
        ),
        (talk({"role": None, "content": "x"}), f"refused: {AT} 1: unknown role None {ROLES}"),
        (talk({"role": ["x"], "content": "x"}), f"refused: {AT} 1: unknown role ['x'] {ROLES}"),
        # nothing that is trained
        (talk(SAID | {"weight": 0}), "dropped: empty: the conversation has no assistant turn to train on"),
        (
            talk(SAID | {"train": False}, USER, SAID | {"loss": 0}),
            "dropped: empty: the conversation has no assistant turn to train on",
        ),
        # what is not text
        (
            said([{"type": "image_url", "image_url": {"url": "x"}}]),
            f"refused: {AT} 1: has a part of type 'image_url'; only text can be trained",
        ),
        (
            said([{"type": "text", "text": "a"}, {"type": "image"}]),
            f"refused: {AT} 1: has a part of type 'image'; only text can be trained",
        ),
        (said([["a"]]), f"refused: {AT} 1: has a part that is an array; only text can be trained"),
        (said({"a": 1}), f"refused: {AT} 1: 'content' must be text, not an object ({{'a': 1}})"),
        ({"messages": [[USER, SAID]]}, f"refused: {AT} 0: must be an object with role and content"),
        (
            {"prompt": ["p"], "completion": "c"},
            "refused: rows.jsonl:1: prompt, message 0: must be an object with role and content",
        ),
        (
            {"prompt": "p", "completion": [["c"]]},
            "refused: rows.jsonl:1: completion, message 0: must be an object with role and content",
        ),
        # half a character, wherever it stands
        (said("a\ud800"), "dropped: bad_text: 'content' contains half a character (a lone surrogate)"),
        (
            talk(SAID | {"reasoning": "\udfff"}),
            "dropped: bad_text: 'reasoning' contains half a character (a lone surrogate)",
        ),
        (
            talk(call("a", arguments={"a": "\ud800"})),
            "dropped: bad_text: a text contains half a character (a lone surrogate)",
        ),
        (
            talk(call("a", arguments={"\ud800": 1})),
            "dropped: bad_text: a text contains half a character (a lone surrogate)",
        ),
        (
            talk(SAID, tools=[{"name": "add", "description": "\ud800"}]),
            "dropped: bad_text: a text contains half a character (a lone surrogate)",
        ),
        # characters that are kept as they are
        (said("a\ud83d\ude00"), f"trained: a😀{ENDED}"),
        (said("a\0b"), f"trained: a\0b{ENDED}"),
        (said("a\r\nb\r"), f"trained: a\r\nb\r{ENDED}"),
        (said("\ufeffa"), f"trained: \ufeffa{ENDED}"),
        (said("a\u2028b\x1b[31m"), f"trained: a\u2028b\x1b[31m{ENDED}"),
    ],
)
def test_one_row(row, want, tmp_path):
    assert outcome(row, tmp_path) == want


@pytest.mark.parametrize(
    "turns",
    [
        [call("a"), answer("a"), SAID],
        [call("a", "b"), answer("b"), answer("a"), SAID],
        [call(None, None), answer(), SAID],  # one answer to both, tied by their order
        [call("a", None), answer("a"), SAID],
        [call("a"), answer(), SAID],
        [call("a"), answer("a"), call("b"), answer("b"), SAID],
        [SAID, USER, call("a")],  # the call is what is learnt
    ],
)
def test_calls_and_answers_that_belong_together_are_kept(turns, tmp_path):
    found = outcome(talk(*turns), tmp_path)
    assert found.startswith("trained: ") and found.count(ENDED) == sum(
        t["role"] == "assistant" for t in turns
    )


def test_any_order_is_kept_where_the_source_says_so(tmp_path):
    row = talk(call("a"), answer("b"), SAID)
    assert outcome(row, tmp_path, source={"roles": "loose"}).startswith("trained: ")


@pytest.mark.parametrize("which", ["assistant", "last", "each", "all"])
@pytest.mark.parametrize(
    ("kept", "end"),
    [
        ([SAID], [USER]),
        ([SAID, USER, call("a")], [answer("a")]),
        ([SAID, USER, call("a")], [answer("a"), USER]),
    ],
)
def test_what_follows_the_last_reply_is_cut_off_and_counted(kept, end, which, tmp_path):
    """With `all` it is trained."""
    path, tables = tmp_path / "rows.jsonl", []
    for turns in (kept + end, kept):
        path.write_text(json.dumps(talk(*turns)))
        data = Data(sources=[], template="tokenizer", train_on=which, cache_dir=str(tmp_path))
        tables.append(prepare_source(Source(name="s", path=str(path), roles="loose"), data, Loss(), TOOLS))
    longer, table = tables
    cut = which != "all"
    assert longer.stats.get("ignored") == ({"turns behind the last reply": 1} if cut else None)
    assert "ignored" not in table.stats and len(longer) == len(table)
    same = longer[len(table) - 1].input_ids.tolist() == table[len(table) - 1].input_ids.tolist()
    assert same == cut


@pytest.mark.parametrize("which", ["assistant", "last", "each"])
def test_a_conversation_without_a_trained_turn_is_counted(which, tmp_path):
    row = talk(SAID | {"weight": 0}, USER, SAID | {"weight": 0})
    want = "dropped: empty: the conversation has no assistant turn to train on"
    assert outcome(row, tmp_path, train_on=which) == want


LINE = json.dumps(GOOD).encode()
KEPT = f"trained: Hi{ENDED}"


@pytest.mark.parametrize(
    ("name", "content", "want"),
    [
        ("rows.jsonl", b"\xef\xbb\xbf" + LINE, KEPT),
        ("rows.jsonl", LINE + b"\r\n" + LINE + b"\r\n", KEPT),
        ("rows.jsonl", LINE + b"\n\n \r\n" + LINE, KEPT),
        ("rows.json", b"\xef\xbb\xbf[\r\n" + LINE + b"\r\n]", KEPT),
        ("rows.csv", b"\xef\xbb\xbfprompt,completion\r\np,Hi\r\n", KEPT),
        ("rows.csv", b'prompt,completion\r\np,"H\r\ni"\r\n', f"trained: H\r\ni{ENDED}"),
        (
            "rows.jsonl",
            LINE + b"\n\xef\xbb\xbf" + LINE,
            "refused: rows.jsonl:2: broken JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1",
        ),
        (
            "rows.jsonl",
            b'{"prompt": "a\0b"}',
            "refused: rows.jsonl:1: broken JSON: Invalid control character at column 14",
        ),
        (
            "rows.jsonl",
            LINE + b"\n" + LINE[:20],
            "refused: rows.jsonl:2: broken JSON: Unterminated string starting at column 17",
        ),
        (
            "rows.jsonl",
            LINE + b"\n[1, 2]",
            "refused: rows.jsonl:2: a row must be a JSON object, not an array",
        ),
        (
            "rows.jsonl",
            b'{"prompt": "\xff"}',
            "refused: rows.jsonl:1: not UTF-8 (byte 13 of the line); convert the file to UTF-8",
        ),
        (
            "rows.jsonl",
            LINE.decode().encode("utf-16"),
            "refused: rows.jsonl:1: not UTF-8 (byte 1 of the line); convert the file to UTF-8",
        ),
    ],
)
def test_one_file(name, content, want, tmp_path):
    assert outcome(content, tmp_path, name) == want


def test_a_broken_line_of_many_is_named(tmp_path):
    lines = [LINE] * 1000
    lines[816] = LINE[:-3]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    data = Data(sources=[], template="chatml", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(RequestError, match=r"rows\.jsonl:817: broken JSON: Unterminated string"):
        prepare_source(Source(name="s", path=str(path)), data, Loss(), BYTES)
    assert not [each for each in (tmp_path / "cache" / "tables").iterdir() if each.is_dir()]
