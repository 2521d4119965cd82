"""Chat templates of published models, as TRL ships them, and conversations to try them on.

`verdict` compares what we train with the template's own rendering and, where TRL ships a variant with `{%
generation %}` marks that renders the same text, with these. The tokenizer is one of bytes, with the marks of
the template as single tokens. The stand-ins in `stand_ins/` are written from the documentation of models
whose template no installed package has: what is trained under one is compared with that stand-in only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.data import template
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.rows import to_example
from posttrain.data.tokenize import conversation, tokenize_example
from posttrain.data.tokenizers import _byte_letters
from posttrain.data.tokens import RowError, TokenRow
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.types import Example

FOLDER = Path(trl.__file__).parent / "chat_templates"
OTHER = re.compile("vl|smolvlm|idefics|llava|diffusion")
"""Templates of models that also read images."""
NAMES = sorted(
    path.stem
    for path in FOLDER.glob("*.jinja")
    if not path.stem.endswith("_training") and not OTHER.search(path.stem)
)
OWN = "posttrain: "
"""Before the name of a template of ours."""
OURS = [f"{OWN}{name}" for name in template.NAMES[1:]]
STAND_IN = "stand-in: "
"""Before the name of a stand-in."""
STAND_IN_FOLDER = Path(__file__).parent / "stand_ins"
STAND_INS = sorted(f"{STAND_IN}{path.stem}" for path in STAND_IN_FOLDER.glob("*.jinja"))
WANTS_TEXT = (f"{STAND_IN}deepseek_v3_1",)
"""Templates that add the arguments of a call to a text, so that they must be JSON text."""
HEADER = re.compile(r"\{#- From (\S+) Begin: (\S+) End: (\S+) Tokens: (.*) -#\}\n")
"""First line of a stand-in: the documentation, and the tokens of the model's tokenizer."""
MARK = re.compile(
    r"<[|｜][^|｜<>\s]+[|｜]?>|<[a-z_]+\|>|\[/?[A-Z_]+\]|"
    r"</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn|bos|eos|s)>"
)
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|return|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end|>",
    "<|user|>",
    "<turn|>",
)
BEGINS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<BOS_TOKEN>", "<bos>")

USER = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "It is 4."}
MORE = [{"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "6."}]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "first"}},
            "required": ["a"],
        },
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefgh1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    ],
}
ANSWER = {"role": "tool", "name": "add", "tool_call_id": "abcdefgh1", "content": "4"}
CASES = {
    "chat": {"messages": [USER, REPLY]},
    "system": {"messages": [SYSTEM, USER, REPLY]},
    "turns": {"messages": [USER, REPLY, *MORE]},
    "tools": {"messages": [USER, CALL, ANSWER, REPLY], "tools": [TOOL]},
    "reasoning": {"messages": [USER, {**REPLY, "reasoning_content": "Two and two."}]},
    "thought": {"messages": [USER, {**REPLY, "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}]},
}
"""Name of a case -> row. `thought`: the reasoning is in the text of the reply."""


@dataclass(frozen=True)
class Family:
    """The source of a template and the tokens of its models; of a stand-in also its documentation."""

    source: str
    begin: str
    end: str
    marks: tuple[str, ...]
    url: str = ""


@cache
def family(name: str) -> Family:
    own, stand_in = name.removeprefix(OWN), name.removeprefix(STAND_IN)
    if stand_in != name:
        text = (STAND_IN_FOLDER / f"{stand_in}.jinja").read_text(encoding="utf-8").rstrip("\n")
        url, begin, end, tokens = HEADER.match(text).groups()
        marks = tuple(tokens.split()) if tokens != "none" else ()
        return Family(text[HEADER.match(text).end() :], begin, end, marks, url)
    path = FOLDER / f"{name}.jinja" if own == name else template.FOLDER / f"{own}.jinja"
    source = path.read_text(encoding="utf-8").rstrip("\n")
    end = next((mark for mark in ENDS if mark in source), "<eos>")
    begin = next((mark for mark in BEGINS if mark in source), "<bos>")
    return Family(source, begin, end, tuple(sorted(set(MARK.findall(source)) - {begin, end})))


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    found = family(name)
    backend = Tokenizer(models.BPE(vocab=_byte_letters(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=found.begin, eos_token=found.end, pad_token=found.end
    )
    tokenizer.add_tokens(list(found.marks), special_tokens=True)
    tokenizer.chat_template = found.source
    return tokenizer


def marked(name: str, example) -> tuple[str, list[int]] | None:
    """Text and mask of the variant with `{% generation %}` marks; None where there is none or it fails."""
    path = FOLDER / f"{name}_training.jinja"
    if not path.is_file():
        return None
    try:
        found = tokenizer_of(name).apply_chat_template(
            example.messages,
            tools=example.tools or None,
            chat_template=path.read_text(encoding="utf-8"),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except Exception:
        return None
    return tokenizer_of(name).decode(found["input_ids"]), found["assistant_masks"]


def verdict(
    name: str, case: str | dict, train_on: str = "assistant", source: Source | None = None, **options
) -> tuple[str, str]:
    """What became of a case, or of a row of `source`, and what is trained or the refusal.

    `marks`: the trained tokens are those of TRL's marks. `within`: those that are sampled among TRL's marks,
    which also cover a line break behind the end of turn, or what the generation prompt contains. `right`: the
    text is the template's, and there are no marks to compare with; of a stand-in `as rendered`. `sampled`:
    the text is not the template's, which leaves out the thought, but the prompt and the reply as it is
    sampled. `refused`. Anything else is wrong.
    """
    tokenizer = tokenizer_of(name)
    row = CASES[case] if isinstance(case, str) else case
    try:
        found = rows_of(name, row, train_on, source, options)
    except (RowError, RequestError) as error:
        return "refused", str(error)
    verdicts = [_judged(name, example, row, train_on, options) for example, row in found]
    said = [tokenizer.decode(row.input_ids[row.labels >= 0]) for _, row in found]
    return max(verdicts, key=ORDER.index), " | ".join(said)


def rows_of(
    name: str,
    row: dict,
    train_on: str = "assistant",
    source: Source | None = None,
    options: dict | None = None,
) -> list[tuple[Example, TokenRow]]:
    """What `row` means, and its tokens; with `train_on: each` of each reply."""
    data = Data([], template="tokenizer", train_on=train_on, template_options=options or {})
    told = to_example(row, source or Source(name="s", path="x"), "x:1")
    return [
        (part, tokenize_example(part, tokenizer_of(name), data, Loss()))
        for part in SHAPES["rows"].parts((told,), data)
    ]


ORDER = ("marks", "within", "right", "as rendered", "sampled", "wrong text", "wrong tokens")


def _with_texts(turn: dict) -> dict:
    """A turn with the arguments of its calls as JSON text."""
    calls = [dict(call["function"]) for call in turn.get("tool_calls", ())]
    for call in calls:
        call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return turn | ({"tool_calls": [{"function": call} for call in calls]} if calls else {})


def _judged(name: str, example, row, train_on: str, options) -> str:
    tokenizer = tokenizer_of(name)
    text = tokenizer.decode(row.input_ids)
    tools = example.tools or None
    messages = conversation(example)
    if "developer" not in tokenizer.chat_template:
        messages = [m | {"role": m["role"].replace("developer", "system")} for m in messages]
    if name in WANTS_TEXT:
        messages = [_with_texts(m) for m in messages]
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    if text != whole:
        prompt = tokenizer.apply_chat_template(
            messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True, **options
        )
        return "sampled" if text.startswith(prompt) else "wrong text"
    if name.startswith(STAND_IN):
        return "as rendered"
    theirs = marked(name, example) if train_on == "assistant" and not options else None
    if theirs is None or theirs[0] != text:
        return "right"
    ours = (row.labels >= 0).tolist()
    if ours == [bool(mark) for mark in theirs[1]]:
        return "marks"
    return "within" if all(b for a, b in zip(ours, theirs[1], strict=True) if a) else "wrong tokens"
