"""Chat templates of published models, as TRL ships them, and conversations to try them on.

`verdict` compares what we train with the template's own rendering and, where TRL ships a variant with `{%
generation %}` marks that renders the same text, with these. The tokenizer is one of bytes, with the marks of
the template as single tokens.
"""

from __future__ import annotations

import re
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


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    own = name.removeprefix(OWN)
    path = FOLDER / f"{name}.jinja" if own == name else template.FOLDER / f"{own}.jinja"
    source = path.read_text(encoding="utf-8").rstrip("\n")
    backend = Tokenizer(models.BPE(vocab=_byte_letters(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    end = next((mark for mark in ENDS if mark in source), "<eos>")
    begin = next((mark for mark in BEGINS if mark in source), "<bos>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token=end, pad_token=end
    )
    marks = sorted(set(MARK.findall(source)) - {begin, end})
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.chat_template = source
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
    text is the template's, and there are no marks to compare with. `sampled`: the text is not the template's,
    which leaves out the thought, but the prompt and the reply as it is sampled. `refused`. Anything else is
    wrong.
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


ORDER = ("marks", "within", "right", "sampled", "wrong text", "wrong tokens")


def _judged(name: str, example, row, train_on: str, options) -> str:
    tokenizer = tokenizer_of(name)
    text = tokenizer.decode(row.input_ids)
    tools = example.tools or None
    messages = conversation(example)
    if "developer" not in tokenizer.chat_template:
        messages = [m | {"role": m["role"].replace("developer", "system")} for m in messages]
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    if text != whole:
        prompt = tokenizer.apply_chat_template(
            messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True, **options
        )
        return "sampled" if text.startswith(prompt) else "wrong text"
    theirs = marked(name, example) if train_on == "assistant" and not options else None
    if theirs is None or theirs[0] != text:
        return "right"
    ours = (row.labels >= 0).tolist()
    if ours == [bool(mark) for mark in theirs[1]]:
        return "marks"
    return "within" if all(b for a, b in zip(ours, theirs[1], strict=True) if a) else "wrong tokens"


def cell(name: str, case: str) -> tuple[str, str]:
    """As `verdict`, by the first setting that trains: as it is, `train_on: each`, thinking off."""
    first = verdict(name, case)
    if first[0] != "refused":
        return first
    if len([turn for turn in CASES[case]["messages"] if turn["role"] == "assistant"]) > 1:
        again = verdict(name, case, "each")
        if again[0] != "refused":
            return f"each: {again[0]}", again[1]
    for train_on in ("assistant", "each") if case not in ("reasoning", "thought") else ():
        again = verdict(name, case, train_on, enable_thinking=False)
        if again[0] != "refused":
            return f"thinking off{', each' if train_on == 'each' else ''}: {again[0]}", again[1]
    return first
