"""Writes posttrain/data/SHAPES.md: `python -m tests.data.shapes_page`.

Rows in the shapes of widely used data sets, each under a template of the models that it is made for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trl

from posttrain.recipe.schema import Source
from tests.data.families import OWN, rows_of, tokenizer_of

PAGE = Path(__file__).resolve().parents[2] / "posttrain" / "data" / "SHAPES.md"
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": ADD}
ADD_TEXT = json.dumps(ADD)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": arguments}, **more}


@dataclass(frozen=True)
class Shape:
    """A row, the template, the settings beside them, and what of the row is trained, written by hand."""

    row: dict[str, Any]
    template: str
    trained: list[str]
    source: dict[str, Any] = field(default_factory=dict)
    train_on: str = "assistant"
    options: dict[str, Any] = field(default_factory=dict)
    sampled: bool = False
    """The template's own rendering leaves out a thought that stands there while the reply is sampled."""


SHAPES = {
    "TRL, prompt and completion": Shape(
        {"prompt": [user("2+2?")], "completion": [{"role": "assistant", "content": "It is 4."}]},
        "qwen2_5",
        ["It is 4.<|im_end|>"],
    ),
    "TRL, tools": Shape(
        {
            "tools": [TOOL],
            "messages": [
                user("2+2?"),
                {"role": "assistant", "tool_calls": [call({"a": 2})]},
                {"role": "tool", "name": "add", "content": "4"},
                {"role": "assistant", "content": "It is 4."},
            ],
        },
        f"{OWN}chatml",
        ['<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>', "It is 4.<|im_end|>"],
    ),
    "OpenAI": Shape(
        {
            "tools": [TOOL],
            "messages": [
                {"role": "developer", "content": "Be brief."},
                user("2+2?"),
                {"role": "assistant", "content": "5", "weight": 0},
                user("Use the tool."),
                {"role": "assistant", "content": None, "tool_calls": [call('{"a": 2}', id="call_1")]},
                {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "4"}]},
                {"role": "assistant", "content": "4"},
            ],
        },
        f"{OWN}tulu",
        ["<function_calls>add(a=2)</function_calls><eos>", "4<eos>"],
    ),
    "ShareGPT": Shape(
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello."},
                {"from": "human", "value": "Bye"},
                {"from": "gpt", "value": "Bye."},
            ]
        },
        "llama3",
        ["Hello.<|eot_id|>", "Bye.<|eot_id|>"],
    ),
    "Hermes function calling": Shape(
        {
            "tools": json.dumps([TOOL]),
            "conversations": [
                {"from": "system", "value": f"You can call:\n<tools>\n{json.dumps(TOOL)}\n</tools>"},
                {"from": "human", "value": "2+2?"},
                {
                    "from": "gpt",
                    "value": '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>',
                },
                {"from": "tool", "value": "<tool_response>\n4\n</tool_response>"},
                {"from": "gpt", "value": "It is 4."},
            ],
        },
        f"{OWN}chatml",
        ['<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>', "It is 4.<|im_end|>"],
        source={"ignore": ["tools"]},
    ),
    "xLAM": Shape(
        {
            "query": "2+2?",
            "tools": f"[{ADD_TEXT}]",
            "answers": '[{"name": "add", "arguments": {"a": 2}}, {"name": "add", "arguments": {"a": 3}}]',
        },
        "qwen2_5",
        [
            '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
            '\n<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call><|im_end|>'
        ],
    ),
    "APIGen-MT": Shape(
        {
            "system": "Be brief.",
            "tools": f"[{ADD_TEXT}]",
            "conversations": [
                {"from": "human", "value": "2+2?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
                {"from": "observation", "value": '{"sum": 4}'},
                {"from": "gpt", "value": "It is 4."},
            ],
        },
        f"{OWN}llama3",
        ['{"name": "add", "parameters": {"a": 2}}<|eot_id|>', "It is 4.<|eot_id|>"],
    ),
    "Qwen 3": Shape(
        {
            "messages": [
                user("2+2?"),
                {"role": "assistant", "reasoning_content": "Easy.", "content": "4"},
                user("And 3+3?"),
                {"role": "assistant", "reasoning_content": "As easy.", "content": "6"},
            ]
        },
        "qwen3",
        [
            "<think>\nEasy.\n</think>\n\n4<|im_end|>",
            "<think>\nAs easy.\n</think>\n\n6<|im_end|>",
        ],
        train_on="each",
    ),
    "gpt-oss": Shape(
        {
            "tools": [TOOL],
            "messages": [
                user("2+2?"),
                {"role": "assistant", "thinking": "Easy.", "tool_calls": [call({"a": 2})]},
                {"role": "tool", "name": "add", "content": "4"},
                {"role": "assistant", "thinking": "Done.", "content": "4"},
            ],
        },
        "gptoss",
        [
            "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant"
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>',
            "<|channel|>analysis<|message|>Done.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        ],
        train_on="each",
        sampled=True,
    ),
    "Llama 3.1 tools": Shape(
        {
            "tools": [TOOL],
            "messages": [
                user("2+2?"),
                {"role": "assistant", "content": "", "tool_calls": [call({"a": 2})]},
                {"role": "ipython", "content": "4"},
                {"role": "assistant", "content": "It is 4."},
            ],
        },
        "llama3_1",
        ['{"name": "add", "parameters": {"a": 2}}<|eot_id|>', "It is 4.<|eot_id|>"],
    ),
    "DeepSeek R1, the thought in the text": Shape(
        {"prompt": "2+2?", "completion": "<think>\nEasy.\n</think>\n\n4"},
        "deepseek_r1_distill",
        ["Easy.\n</think>\n\n4<｜end▁of▁sentence｜>"],
        sampled=True,
    ),
}
OPENING = """\
# Rows of many shapes, and what is trained

Each row under a template of this package (`posttrain: ...`), or of those that TRL {version} ships. What is
trained stands in `⟦ ⟧`; what the template of another writes before the user's words is left out (`…`), as
it is long. The templates write their marks as here; a tokenizer makes one token of each. Written by
`python -m tests.data.shapes_page`, and held by `tests/data/test_shapes_page.py`.
"""


def made(shape: Shape) -> list[str]:
    """The text of each row of tokens that a row becomes, what is trained in ⟦ ⟧."""
    source = Source(name="s", path="rows.jsonl", **shape.source)
    found = rows_of(shape.template, shape.row, shape.train_on, source, shape.options)
    return [_marked(row, tokenizer_of(shape.template)) for _, row in found]


def _marked(row, tokenizer) -> str:
    text, inside = "", False
    ids, trained = row.input_ids.tolist(), [*(row.labels >= 0).tolist(), False]
    part: list[int] = []
    for token, now in zip([*ids, None], trained, strict=True):
        if now != inside or token is None:
            text += tokenizer.decode(part) + ("⟦" if now else "⟧" if inside else "")
            part, inside = [], now
        if token is not None:
            part.append(token)
    return text


def _shown(shape: Shape, text: str) -> str:
    """`text` from the user's first words on, or whole, where it is that of our template."""
    if shape.template.startswith(OWN):
        return text
    turns = shape.row.get("messages") or shape.row.get("prompt") or shape.row.get("query")
    first = turns if isinstance(turns, str) else None
    for turn in turns if isinstance(turns, list) else shape.row.get("conversations", ()):
        if first is None and turn.get("role", turn.get("from")) in ("user", "human"):
            first = turn.get("content", turn.get("value"))
    return "…" + text[text.index(first) :]


def page() -> str:
    parts = [OPENING.format(version=trl.__version__)]
    for name, shape in SHAPES.items():
        settings = {"train_on": shape.train_on} if shape.train_on != "assistant" else {}
        said = ", ".join(
            f"`{key}: {value}`".replace("'", "") for key, value in {**shape.source, **settings}.items()
        )
        texts = "\n\n".join(_shown(shape, text).rstrip("\n") for text in made(shape))
        row = json.dumps(shape.row, ensure_ascii=False)
        under = f"`{shape.template}`" + (f", with {said}" if said else "")
        parts.append(f"## {name}\n\n```json\n{_wrapped(row)}\n```\n\nUnder {under}:\n\n```\n{texts}\n```\n")
    return "\n".join(parts)


def _wrapped(row: str) -> str:
    """JSON with a line for each message."""
    return re.sub(r'([\[}],? ?)(?=\{"(?:role|from)")', lambda found: found[1].rstrip() + "\n  ", row)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
