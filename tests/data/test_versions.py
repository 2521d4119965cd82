"""Tables of older code are not found once the same rows would give other tokens.

The rows below are read and tokenised, and what comes out is compared with what was noted in
`golden/versions.json` under the version in the names of tables. After a change that is meant, raise the
version (`READER` in cache.py for conversations, `key` of the shape otherwise, `CODE` for all) and note the
new outcome: `python -m tests.data.test_versions`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.cache import CODE, READER
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Data, Loss, Source
from tests.data import shapes_page
from tests.data.tokens import BYTES

NOTED = Path(__file__).parent / "golden" / "versions.json"
Q = {"role": "user", "content": "2+2?"}
A = {"role": "assistant", "content": "It is 4."}
B = {"role": "assistant", "content": "It is 5."}
THOUGHT = {**A, "reasoning_content": "Two and two."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": True}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
OTHER_CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 1}}}],
}
ANSWER = {"role": "tool", "content": "4"}
AS_JSON = json.dumps([Q, A, Q])
TEXTS = {"prompt": "2+2?", "completion": "It is 4."}
RATED = {"text": "It is 4.", "rating": 5}, {"text": "It is 5.", "rating": 1}
ROWS: dict[str, list[dict[str, Any]]] = {
    "rows": [
        TEXTS,
        {"text": "It is 4."},
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        {"instruction": [Q], "input": "2, 2", "output": "4"},
        {**TEXTS, "system": "Be brief."},
        {**TEXTS, "reasoning": "Two and two."},
        {**TEXTS, "reasoning": "<think>Two and two.</think>"},
        {**TEXTS, "reasoning": "none"},
        {**TEXTS, "reasoning": " "},
        {**TEXTS, "weight": 0},
        {**TEXTS, "loss": 1.3},
        {**TEXTS, "weigth": 0},
        {**TEXTS, "loss_mask": 0},
        {**TEXTS, "conversation_id": "1"},
        {"prompt": "2+2?", "completion": "", "reasoning": "Two and two."},
        {"prompt": "2+2?", "tool_calls": [CALL]},
        {"prompt": AS_JSON, "completion": "4"},
        {"prompt": "As JSON?", "completion": AS_JSON},
        {"prompt": [Q], "completion": [A]},
        {"prompt": [Q, A, {"role": "user", "content": ""}], "completion": [A]},
        {"messages": [Q, A, Q, B]},
        {"messages": AS_JSON.replace("2+2?", "3+3?")},
        {"messages": [{"role": "system", "content": "Be brief."}, Q, THOUGHT, Q, THOUGHT]},
        {"messages": [Q, {**A, "content": "<think>\nTwo.\n</think>\n\n4"}]},
        {"messages": [Q, {**THOUGHT, "content": "<think>\nTwo and two.\n</think>\n\n4"}]},
        {"messages": [Q, {**A, "reasoning_content": " \n"}]},
        {"messages": [Q, {**A, "content": "", "reasoning_content": "Two."}]},
        {"messages": [Q, {**A, "weight": 0}, Q, B]},
        {"messages": [Q, {**A, "train": False}]},
        {"messages": [Q, CALLS, ANSWER, A]},
        {"messages": [Q, CALLS, A]},
        {"messages": [Q, {**CALLS, "function_call": {"name": "add", "arguments": {"a": 2, "b": 1}}}]},
        {"messages": [Q, Q, A]},
        {"messages": [A, Q, A]},
        {"messages": [Q, A, {"role": "assistant", "content": ""}]},
        {"messages": [Q, {"role": "assistant", "content": [{"type": "text", "text": "It is 4."}]}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "It is 4."}]},
        {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "completion": " It is 4."},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"query": "2+2?", "answers": json.dumps([{"name": "add", "arguments": {"a": 2}}])},
    ],
    "pairs": [
        {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "It is 5."},
        {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "It is  4."},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"prompt": "2+2?", "chosen": [Q, A], "rejected": [Q, B]},
        {"prompt": [{"role": "system", "content": "Be brief."}, Q], "chosen": [Q, A], "rejected": [Q, B]},
        {"prompt": "2+2?", "chosen": json.dumps([A]), "rejected": json.dumps([B])},
        {"messages": [Q], "chosen": A, "rejected": B},
        {"prompt": "2+2?", "chosen": [CALLS], "rejected": [OTHER_CALLS]},
        {"chosen": [Q, CALLS, ANSWER, A], "rejected": [Q, OTHER_CALLS, ANSWER, B]},
        {"chosen": [Q, THOUGHT], "rejected": [Q, {**THOUGHT, "content": "<think>Two.</think>5"}]},
        {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "It", "rejected_is_prefix": True},
        {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "It is 4.", "rejected_is_prefix": True},
        {"prompt": "2+2?", "chosen": "It is 4.", "rejected": ""},
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
        {"prompt": "2+2?", "completions": [*RATED]},
        {"prompt": "2+2?", "completions": [*RATED, {"text": "", "rating": 5}]},
        {"prompt": "2+2?", "completions": [*RATED, {"text": "It is 4.", "rating": 0}]},
        {"prompt": "2+2?", "completions": [{"response": None, **each} for each in RATED]},
        {"prompt": "2+2?", "completions": [{**each, "overall_score": -each["rating"]} for each in RATED]},
        {"prompt": "2+2?", "completions": [{**each, "reasoning": "Two."} for each in RATED]},
        {"prompt": "2+2?", "completions": [{**A, "rating": 2}, {**CALLS, "rating": 1}]},
        {"prompt": "2+2?", "completions": [{**RATED[0], "weight": 0}, *RATED]},
        {"prompt": "2+2?", "responses": ["It is 4.", "It is 5.", None], "ratings": [2, 1, 3]},
    ],
    "labelled": [
        {**TEXTS, "label": True},
        {**TEXTS, "label": "0"},
        {**TEXTS, "label": "1.0"},
        {"messages": [Q, THOUGHT], "label": False},
        {"prompt": [Q], "completion": [CALLS], "label": 1},
        {**TEXTS, "label": True, "weight": 0},
    ],
    "prompts": [
        {"prompt": "2+2?", "answer": "4"},
        {"prompt": "2+2?", "answer": None},
        {"prompt": AS_JSON, "answer": "4"},
        {"messages": [Q, A], "answer": "4"},
        {"prompt": [Q, {"role": "user", "content": ""}], "answer": "4"},
        {"prompt": "2+2?", "tools": [shapes_page.TOOL], "answer": "4"},
        {"question": "2+2?", "answer": "2+2 = <<2+2=4>>4\n#### 4"},
    ],
}
SOURCES = {
    "": {},
    "ignore": {"ignore": ["overall_score", "reasoning", "weight"]},
    "loose": {"roles": "loose"},
    "named": {"columns": Columns(prompt="prompt", completion="completion")},
}


def version(name: str) -> dict[str, Any]:
    return {"code": CODE, "reader": READER} | SHAPES[name].key


def outcome(name: str, row: dict[str, Any], source: Source) -> Any:
    """What is trained of a row, with its numbers; or why nothing is."""
    shape, data = SHAPES[name], Data([source], template="chatml")
    try:
        parts = shape.parts(shape.read(row, source, "x:1"), data)
        made = [shape.tokenize(part, BYTES, data, Loss()) for part in parts]
    except RowError as error:
        return error.reason
    except RequestError:
        return "refused"
    return [[e.input_ids.tolist(), e.labels.tolist(), e.segment_ids.tolist(), e.p] for e in made]


def outcomes(name: str) -> dict[str, str]:
    """Setting and row -> hash of the outcome."""
    rows = list(ROWS[name])
    if name == "rows":
        rows += [each.row for each in shapes_page.SHAPES.values()]
    found = {}
    for said, settings in SOURCES.items():
        for row in rows:
            key = hashlib.sha256(json.dumps([said, row]).encode()).hexdigest()[:8]
            made = outcome(name, row, Source("s", path="x", **settings))
            found[key] = (
                made if isinstance(made, str) else hashlib.sha256(repr(made).encode()).hexdigest()[:8]
            )
    return found


@pytest.mark.parametrize("name", ROWS)
def test_other_tokens_have_another_name(name):
    noted = json.loads(NOTED.read_text())[name]
    found = outcomes(name)
    changed = [key for key, each in found.items() if noted["outcomes"].get(key, each) != each]
    assert not changed or noted["version"] != version(name), (
        f"{len(changed)} rows give other tokens under the same name: raise READER or the shape's key"
    )
    assert noted == {"version": version(name), "outcomes": found}, (
        "note what comes out now: python -m tests.data.test_versions"
    )


def main() -> None:
    before = json.loads(NOTED.read_text()) if NOTED.exists() else {}
    now = {name: {"version": version(name), "outcomes": outcomes(name)} for name in ROWS}
    for name, each in now.items():
        old = before.get(name, each)
        if old["version"] == each["version"]:
            changed = [key for key, was in old["outcomes"].items() if each["outcomes"].get(key, was) != was]
            if changed:
                raise SystemExit(f"{name}: {len(changed)} rows give other tokens; raise the version first")
    NOTED.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
