"""Prompts for stages that sample: a row of a source to what the model is asked, with every column a reward may want.

A prompt is text, a list of messages, or a conversation whose last reply is left out. Its columns are kept beside the
tokens on disk, so that memory does not grow with the number of prompts. Left out: how a prompt is judged (rewards).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.base.files import plain
from posttrain.data.shapes.rows import SPELLINGS, TRANSCRIPT, to_example
from posttrain.data.table import TokenTable
from posttrain.data.template import load_template
from posttrain.data.tokenize import IGNORED, conversation
from posttrain.data.tokens import RowError, TokenRow
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import schema
from posttrain.types import Example, Message

COLUMNS, OFFSETS = "columns.jsonl", "columns.idx"
REPLY, STANDS_IN = ".", "<reply>"
"""Stand for the reply and its column while the columns of a prompt are mapped."""
NOT_ASKED = {n for what in ("messages", "completion", "text", "p") for n in SPELLINGS[what]}
"""Columns that say nothing of what is asked, whatever they hold."""


def to_prompt(row: dict[str, Any], source: schema.Source, where: str) -> Example:
    """What the model is asked, as `prompt` or `messages`; `answer` and the columns in `extra` as rewards take them.

    A column `rewards` (or the one named so) lists the row's own verifiers.

    Raises:
        RequestError: no column holds a prompt, or it holds no text and no messages.
        RowError: no_prompt, and those of `to_example`.
    """
    named = source.columns
    messages = named.messages or next((n for n in SPELLINGS["messages"] if n in row), None)
    if named.prompt and not named.messages and source.format == "auto":
        messages = None  # named columns count first
    if source.format == "messages" or (source.format == "auto" and messages is not None):
        turns = {messages: _with_reply(row[messages])} if messages in row else row
        columns = replace(named, prompt=None, completion=None, text=None, answer=None, p=None)
        mapped = replace(source, format="messages", columns=replace(columns, messages=messages))
        example = to_example(turns | _system(row, source), mapped, where)
    else:
        asked = named.prompt or next((n for n in SPELLINGS["prompt"] if n in row), None)
        if asked is None:
            has = ", ".join(map(str, row)) or "no column at all"
            raise RequestError(
                f"{where}: no column is known to hold the prompt; the row has {has}. "
                f"Name it under columns.prompt of source {source.name!r}"
            )
        kept = {k: v for k, v in row.items() if k not in NOT_ASKED or k == asked}
        reply = [{"role": "assistant", "content": REPLY}] if isinstance(row.get(asked), list) else REPLY
        columns = replace(named, messages=None, text=None, completion=STANDS_IN, answer=None, p=None)
        mapped = replace(source, format="prompt_completion", columns=columns)
        example = to_example(kept | {STANDS_IN: reply}, mapped, where)
    example.completion = None
    if example.messages is not None:
        example.messages = example.messages[:-1]
        if all(message["role"] == "system" for message in example.messages):
            raise RowError("no_prompt", "the conversation asks nothing before the reply")
    elif not (example.prompt or "").strip():
        raise RowError("no_prompt", "there is no prompt")
    return example


def _with_reply(turns: Any) -> Any:
    """A conversation that ends with a reply: its own, or one that stands in for it."""
    if isinstance(turns, str) and TRANSCRIPT.findall(turns)[-1:] == ["Human"]:
        return f"{turns}\n\nAssistant: {REPLY}"
    last = turns[-1] if isinstance(turns, list) and turns else None
    if isinstance(last, dict) and last.get("role", last.get("from")) not in ("assistant", "gpt"):
        return [*turns, {"role": "assistant", "content": REPLY}]
    return turns


def columns_of(row: dict[str, Any], source: schema.Source) -> dict[str, Any]:
    """Every column of `row`; the named answer (and verifiers) also under the names that rewards read."""
    named = {"answer": source.columns.answer, "rewards": source.columns.rewards}
    return row | {name: row.get(own) for name, own in named.items() if own is not None}


def tokenize_prompt(example: Example, tokenizer: Any, data: schema.Data) -> TokenRow:
    """The tokens that generation starts from; nothing of them is trained.

    Raises:
        RowError: overlong (`data.overlong: drop`), template_error.
        RequestError: too long and `data.overlong: error`.
    """
    template = load_template(data.template, tokenizer)
    text = template.render(conversation(example), add_generation_prompt=True)
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)
    if not len(ids):
        raise RowError("empty", "the prompt has no token")
    if len(ids) > data.max_length:
        if data.overlong == "error":
            raise RequestError(
                f"{example.where}: the prompt has {len(ids)} tokens, more than data.max_length = {data.max_length}"
            )
        raise RowError("overlong", f"{len(ids)} tokens")
    return TokenRow(ids, np.full_like(ids, IGNORED), np.zeros_like(ids))


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as the source has it."""

    where: str
    """`file:line` or the like."""
    prompt: str | list[Message]
    columns: dict[str, Any]
    """The row, with the named answer and verifiers also as `answer` and `rewards`."""

    def example(self) -> Example:
        """What rewards take."""
        row = to_row(self.columns, self.where)
        if row.prompt is None and row.messages is None:
            if isinstance(self.prompt, str):
                row.prompt = self.prompt
            else:
                row.messages = self.prompt
        return row


class ColumnWriter:
    """Writes the columns of kept prompts of `source` beside the tokens, in the folder of an unfinished table."""

    def __init__(self, folder: Path, source: schema.Source) -> None:
        self.folder, self.source, self.ends, self.at = folder, source, [], 0
        self.file = open(folder / COLUMNS, "wb")  # noqa: SIM115  (closed by `finish`)

    def add(self, examples: tuple[Example], row: dict[str, Any]) -> None:
        """The one example made of `row`, and the row itself."""
        (example,) = examples
        asked = example.prompt if example.messages is None else example.messages
        kept = [example.where, asked, plain(columns_of(row, self.source))]
        # half a character (a lone surrogate) is kept as JSON spells it: UTF-8 cannot
        text = json.dumps(kept, ensure_ascii=False, default=str)
        line = text.encode(errors="backslashreplace") + b"\n"
        self.file.write(line)
        self.at += len(line)
        self.ends.append(self.at)

    def finish(self) -> None:
        self.file.close()
        np.array(self.ends, dtype="<i8").tofile(self.folder / OFFSETS)


class PromptTable(TokenTable):
    """Prompts on disk: `table[i]` the tokens, `asked(i)` the row they came from. Raises WorkError where damaged."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        try:
            self.ends = np.fromfile(self.folder / OFFSETS, dtype="<i8")
            size = (self.folder / COLUMNS).stat().st_size
        except OSError as error:
            raise self._damaged() from error
        if len(self.ends) != len(self) or (len(self) and self.ends[-1] != size):
            raise self._damaged()

    def _damaged(self) -> WorkError:
        return WorkError(f"the prompts in {self.folder} are damaged; delete the folder")

    def asked(self, i: int) -> Asked:
        """What prompt i asks, and the row it came from."""
        start = int(self.ends[i - 1]) if i else 0
        with open(self.folder / COLUMNS, "rb") as file:
            file.seek(start)
            try:
                return Asked(*json.loads(file.read(int(self.ends[i]) - start)))
            except (ValueError, TypeError) as error:
                raise self._damaged() from error


def _system(row: dict[str, Any], source: schema.Source) -> dict[str, Any]:
    names = {source.columns.system, *SPELLINGS["system"]}
    return {name: row[name] for name in names if name in row}


def to_row(columns: dict[str, Any], where: str) -> Example:
    """`answer` as text, `prompt` and `messages` in their fields, every column in `extra`.

    A number as an answer keeps its spelling, true and false become `True` and `False`, a list its items with commas.
    """
    prompt, messages = columns.get("prompt"), columns.get("messages")
    return Example(
        prompt=prompt if isinstance(prompt, str) else None,
        messages=messages if isinstance(messages, list) else None,
        answer=_text(columns.get("answer"), where),
        where=where,
        extra={name: value for name, value in columns.items() if name != "answer"},
    )


def _text(answer: Any, where: str) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, bool | int | float):
        return str(answer)
    if isinstance(answer, list) and answer and not any(isinstance(a, list | dict) for a in answer):
        return ", ".join(str(item) for item in answer)
    raise RequestError(
        f"{where}: answer is {type(answer).__name__}; it takes text, a number or a list of these"
    )
