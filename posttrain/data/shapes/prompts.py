"""The shape `prompts`, of stages that sample: a row is a prompt, with every column that a reward may read.

A prompt is text, a list of messages, or a conversation whose last reply is left out. Its columns are kept on
disk beside the tokens, so memory does not grow with the number of prompts. Left out: how a completion is
judged (rewards/).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.base.files import plain
from posttrain.data.cells import with_messages
from posttrain.data.encode import Asking, alone
from posttrain.data.json_rows import as_text, type_name
from posttrain.data.shapes.columns import column, form_of, refuse_shared, refuse_unanswered, usual_names
from posttrain.data.shapes.hints import not_found
from posttrain.data.shapes.messages import ROLES, TRANSCRIPT, listed, speaker
from posttrain.data.shapes.names import filled
from posttrain.data.shapes.rows import BESIDE, to_example
from posttrain.data.shapes.turn_order import OPENING, ordered
from posttrain.data.table import TokenTable
from posttrain.data.table_writer import TableWriter
from posttrain.data.template import load_template
from posttrain.data.tokenize import prompt_text
from posttrain.data.tokens import IGNORED, RowError, TokenRow
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import schema
from posttrain.types import Example, Message

COLUMNS, OFFSETS = "columns.jsonl", "columns.idx"
LINES = 256
"""Prompts kept in memory before they are written."""
REPLY, STANDS_IN = ".", "<reply>"
"""Placeholders of the reply and of its column while the columns of a prompt are mapped."""
LAST = "last reply"
"""What is counted as ignored where a conversation ends in a reply."""
DECIDE = ("messages", "prompt", "completion")
"""What decides whether a row is a conversation, as for sft; the completion only where it is named, because
messages and prompts come before it."""
NOT_ASKED = usual_names("messages", "completion", "text", "p")
"""Columns that are never part of the prompt."""


def to_prompt(row: dict[str, Any], source: schema.Source, where: str) -> Example:
    """The prompt of `row` as an example: `prompt`, or `messages` without the last reply.

    Raises:
        RequestError: there is no column with a prompt, it contains neither text nor messages, or it ends with
            an assistant's turn, which sampling would have to continue.
        RowError: no_prompt, no_answer, and those of `to_example`.
    """
    named = source.columns
    refuse_unanswered(row, source, where)
    found = {what: column(row, source, what) for what in DECIDE}
    messages, asked = found["messages"], found["prompt"]
    whole = form_of([what for what, name in found.items() if name is not None], source) == "messages"
    own = {"messages": messages} if whole else {"prompt": asked}
    refuse_shared(own | {"answer": named.answer, "rewards": named.rewards}, source, where)
    row = with_messages(row, own.values())
    if whole:
        turns = {messages: _with_reply(row[messages])} if messages in row else row
        columns = replace(named, prompt=None, completion=None, text=None, answer=None, p=None)
        mapped = replace(
            source, format="messages", roles="loose", columns=replace(columns, messages=messages)
        )
        example = to_example(turns | _beside(row, source), mapped, where, trained=False)
        last = (LAST,) if _has_reply(row.get(messages)) else ()
        example.ignored += last
    else:
        if asked is None:
            row = with_messages(row, row)
            known = {"completion": named.completion or ""}  # which is not asked for
            raise RequestError(not_found(row, "prompt", known, source, where, trained=False))
        kept = {k: v for k, v in row.items() if k not in NOT_ASKED or k == asked}
        reply = [{"role": "assistant", "content": REPLY}] if isinstance(row.get(asked), list) else REPLY
        columns = replace(named, messages=None, text=None, completion=STANDS_IN, answer=None, p=None)
        mapped = replace(source, format="prompt_completion", roles="loose", columns=columns)
        example = to_example(kept | {STANDS_IN: reply}, mapped, where, trained=False)
    example.completion = None
    example.unused = ()  # rewards read every column
    if example.messages is not None:
        if all(turn["role"] in OPENING for turn in example.messages[:-1]):
            raise RowError("no_prompt", "the conversation has no message before the reply")
        if example.messages[-2]["role"] == "assistant" and not (whole and source.roles != "loose"):
            raise RequestError(
                f"{where}: the prompt ends with an assistant message, and a reply that is begun is not "
                "continued; end it with the user's message"
            )
        example.messages = ordered(example.messages, source.roles, bool(example.tools))[:-1]
    elif not (example.prompt or "").strip():
        raise RowError("no_prompt", "the prompt is empty")
    return example


def _has_reply(turns: Any) -> bool:
    """Whether a conversation ends in a reply that says something, which is no part of the prompt."""
    turns = listed(turns)
    if isinstance(turns, str):
        return TRANSCRIPT.findall(turns)[-1:] == ["Assistant"] and bool(TRANSCRIPT.split(turns)[-1].strip())
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict):
        return False
    says = any(filled(value) for key, value in last.items() if key not in ("role", "from"))
    return says and ROLES.get(speaker(last)) == "assistant"


def _with_reply(turns: Any) -> Any:
    """A conversation that ends with a placeholder in place of its reply."""
    name = TRANSCRIPT.findall(turns)[-1:] if isinstance(turns, str) else []
    if name == ["Human"]:
        return f"{turns}\n\nAssistant: {REPLY}"
    if name and not _has_reply(turns):
        return f"{turns} {REPLY}"
    reply = {"role": "assistant", "content": REPLY}
    turns = listed(turns)
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict):
        return turns
    if ROLES.get(str(speaker(last))) != "assistant":
        return [*turns, reply]
    return [*turns[:-1], reply]


def columns_of(row: dict[str, Any], source: schema.Source) -> dict[str, Any]:
    """Every column of `row`, of which a prompt may have messages; the named answer and rewards also under the
    names that rewards read.

    The column `rewards` lists the row's own verifiers.
    """
    row = with_messages(row, [column(row, source, what) for what in ("prompt", "messages")])
    named = {"answer": source.columns.answer, "rewards": source.columns.rewards}
    return row | {name: row.get(own) for name, own in named.items() if own is not None}


def tokenize_prompt(example: Example, tokenizer: Any, data: schema.Data) -> TokenRow:
    """The tokens that generation starts from, none of them trained.

    Raises:
        RowError: overlong, empty, template_error.
        RequestError: the prompt is too long and `data.overlong` is `error`.
    """
    return alone(tokenizing_prompt(example, tokenizer, data), tokenizer)


def tokenizing_prompt(example: Example, tokenizer: Any, data: schema.Data) -> Asking[TokenRow]:
    """`tokenize_prompt` as work that may be done together with that of others."""
    text = prompt_text(example, load_template(data.template, tokenizer, data.template_options))
    ids = (yield text, None).ids
    if len(ids) > data.max_length:
        if data.overlong == "error":
            raise RequestError(
                f"{example.where}: the prompt has {len(ids)} tokens, more than "
                f"data.max_length = {data.max_length}; raise it, or set data.overlong: drop"
            )
        raise RowError("overlong", f"{len(ids)} tokens")
    return TokenRow(ids, np.full_like(ids, IGNORED), np.zeros_like(ids))


def reward_example(columns: dict[str, Any], where: str) -> Example:
    """A row as rewards take it: `answer` as text, `prompt` and `messages`, every column in `extra`.

    Raises RequestError where the answer is of a type that `as_text` does not know.
    """
    prompt, messages = columns.get("prompt"), columns.get("messages")
    given = columns.get("answer")
    answer = as_text(given)
    if answer is None and given is not None:
        raise RequestError(
            f"{where}: answer is {type_name(given)}; it must be text, a number or a list of these"
        )
    return Example(
        prompt=prompt if isinstance(prompt, str) else None,
        messages=messages if isinstance(messages, list) else None,
        answer=answer,
        where=where,
        extra={name: value for name, value in columns.items() if name != "answer"},
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and the row that it came from."""

    where: str
    """The place of the row: `file:line`, `file[index]` or `generator[index]`."""
    prompt: str | list[Message]
    columns: dict[str, Any]
    """The row, as `columns_of` gives it."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """As in `Example`."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """As in `Example`."""

    def rendered(self) -> Example:
        """The prompt as the table rendered it, for `prompt_text`."""
        text = isinstance(self.prompt, str)
        return Example(
            prompt=self.prompt if text else None,
            messages=None if text else self.prompt,
            where=self.where,
            tools=self.tools,
            template_options=self.template_options,
        )

    def example(self) -> Example:
        """The row as rewards take it."""
        example = reward_example(self.columns, self.where)
        if example.prompt is None and example.messages is None:
            if isinstance(self.prompt, str):
                example.prompt = self.prompt
            else:
                example.messages = self.prompt
        return example


def columns_line(example: Example, row: dict[str, Any], source: schema.Source) -> bytes:
    """A prompt and the row that it came from, as a line of `COLUMNS`."""
    asked = example.prompt if example.messages is None else example.messages
    kept = [example.where, asked, plain(columns_of(row, source))]
    beside = {"tools": example.tools, "template_options": example.template_options}
    if any(beside.values()):  # lines of other prompts are those of tables without tools
        kept.append(plain({key: value for key, value in beside.items() if value}))
    # UTF-8 cannot encode half a character (a lone surrogate), so it is kept as JSON escapes it
    text = json.dumps(kept, ensure_ascii=False, default=str)
    return text.encode(errors="backslashreplace") + b"\n"


class ColumnWriter:
    """Writes the columns of kept prompts beside their tokens."""

    def __init__(self, writer: TableWriter) -> None:
        self.writer, self.lines, self.ends = writer, [], []
        path = writer.temporary / COLUMNS
        self.at = path.stat().st_size if path.exists() else 0

    def add(self, line: bytes) -> None:
        """Write a line, which `columns_line` gave."""
        self.at += len(line)
        self.lines.append(line)
        self.ends.append(self.at)
        if len(self.lines) >= LINES:
            self.flush()

    def flush(self) -> None:
        """Hand what is in memory to the table; before it is finished, or kept."""
        self.writer.append(COLUMNS, b"".join(self.lines))
        self.writer.append(OFFSETS, np.array(self.ends, dtype="<i8").tobytes())
        self.lines, self.ends = [], []


class PromptTable(TokenTable):
    """Prompts on disk: `table[i]` are the tokens, `asked(i)` is the row they came from.

    Raises WorkError where the folder is damaged.
    """

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
        return WorkError(f"the prompts in {self.folder} are damaged; delete the folder to prepare them again")

    def asked(self, i: int) -> Asked:
        """Prompt i, and the row it came from."""
        start = int(self.ends[i - 1]) if i else 0
        with open(self.folder / COLUMNS, "rb") as file:
            file.seek(start)
            try:
                where, prompt, columns, *beside = json.loads(file.read(int(self.ends[i]) - start))
                return Asked(where, prompt, columns, **(beside[0] if beside else {}))
            except (ValueError, TypeError) as error:
                raise self._damaged() from error


def _beside(row: dict[str, Any], source: schema.Source) -> dict[str, Any]:
    """The columns of a prompt that are not messages."""
    names = {source.columns.system, source.columns.tools, *usual_names("system", *BESIDE)}
    return {name: row[name] for name in names if name in row}
