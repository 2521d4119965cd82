"""The list of shapes.

A new shape is a class, a line in `SHAPES`, and its stage in `STAGE_SHAPES` of recipe/plan.py. Left out: which
rows are dropped and counted (make_table.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from posttrain.data.encode import Asking, alone
from posttrain.data.shapes.columns import is_tokenised, without_ignored
from posttrain.data.shapes.labelled import to_labelled
from posttrain.data.shapes.pairs import to_pair
from posttrain.data.shapes.prompts import (
    ColumnWriter,
    PromptTable,
    columns_line,
    to_prompt,
    tokenizing_prompt,
)
from posttrain.data.shapes.rows import to_example
from posttrain.data.shapes.tokenised import (
    TokenExample,
    fit_tokenised,
    read_tokenised,
    refuse_both,
    refuse_tokenised,
)
from posttrain.data.shapes.turn_order import end_in_reply, refuse_thoughts_alone
from posttrain.data.table import PairTable, Table, TokenTable
from posttrain.data.table_writer import TableWriter
from posttrain.data.texts import check_texts, control_tokens
from posttrain.data.tokenize import each_turn, tokenizing
from posttrain.data.tokens import IGNORED, RowError, TokenRow
from posttrain.recipe import schema
from posttrain.types import Example

Examples = tuple[Example, ...]


class Shape(Protocol):
    """How rows of one shape are read, tokenised and kept.

    `key` is part of the name of a prepared table, so that tables of other shapes are not found under it.
    """

    key: dict[str, Any]

    def read(self, row: dict[str, Any], source: schema.Source, where: str) -> Examples:
        """The examples that a row means. Raises RequestError, RowError."""
        ...

    def parts(self, examples: Examples, data: schema.Data) -> Examples:
        """The examples as they are tokenised, one row of tokens for each. Raises RequestError, RowError where
        they cannot or must not be tokenised."""
        ...

    def tokenizing(self, example: Example, tokenizer, data, loss) -> Asking[TokenRow]:
        """Makes the tokens of one example. Raises RequestError, RowError."""
        ...

    def tokenize(self, example: Example, tokenizer, data: schema.Data, loss: schema.Loss) -> TokenRow:
        """The same by itself."""
        ...

    def beside(self, examples: Examples, row: dict[str, Any], source: schema.Source) -> bytes | None:
        """What the table keeps of a row besides its tokens."""
        ...

    def writer(self, writer: TableWriter) -> Any:
        """Writes it: `add(bytes)` for each row, `flush()` before the table is kept or finished; or None."""
        ...

    def table(self, folder: Path) -> Table:
        """The finished table in `folder`. Raises WorkError where it is damaged."""
        ...


class RowShape:
    """A row is one example."""

    key: dict[str, Any] = {}

    def read(self, row, source, where) -> Examples:
        """Columns that the source ignores are gone before anything looks for one, in every shape."""
        used, ignored = without_ignored(row, source)
        first, *others = self.examples(used, source, where)
        if ignored:
            first.ignored = tuple(sorted({*first.ignored, *ignored}))
        return (first, *others)

    def examples(self, row, source, where) -> Examples:
        """As `read`, of a row without the columns that the source ignores."""
        if is_tokenised(row, source):
            return (read_tokenised(row, source, where),)
        refuse_both(row, source, where)
        return (to_example(row, source, where),)

    def parts(self, examples, data) -> Examples:
        examples = _checked(examples, data)
        for example in examples if data.train_on != "all" else ():
            end_in_reply(example)
        if data.train_on != "each":
            return examples
        found = tuple(part for example in examples for part in each_turn(example))
        if not found:
            raise RowError("empty", "the conversation has no assistant turn to train on")
        return found

    def tokenizing(self, example, tokenizer, data, loss) -> Asking[TokenRow]:
        if isinstance(example, TokenExample):
            return fit_tokenised(example, tokenizer, data, loss)
        row = yield from tokenizing(example, tokenizer, data, loss)
        row.control_tokens = control_tokens(example, tokenizer)
        return row

    def tokenize(self, example, tokenizer, data, loss) -> TokenRow:
        return alone(self.tokenizing(example, tokenizer, data, loss), tokenizer)

    def beside(self, examples, row, source) -> bytes | None:
        return None

    def writer(self, writer) -> Any:
        return None

    def table(self, folder) -> Table:
        return TokenTable(folder)


class ReplyShape(RowShape):
    """Rows whose log-probability is that of a whole reply: all that is trained is one segment."""

    def tokenizing(self, example, tokenizer, data, loss) -> Asking[TokenRow]:
        row = yield from super().tokenizing(example, tokenizer, data, loss)
        row.segment_ids = (row.labels != IGNORED).astype(np.int32)
        return row

    def parts(self, examples, data) -> Examples:
        return _checked(examples, data)


class PairShape(ReplyShape):
    """A row is a chosen and a rejected example."""

    key = {"pairs": 2}

    def examples(self, row, source, where) -> Examples:
        refuse_tokenised(row, source, where)
        return to_pair(row, source, where)

    def table(self, folder) -> Table:
        return PairTable(TokenTable(folder))


class LabelledShape(ReplyShape):
    """A row is one example; the table keeps its label as `p`."""

    key = {"labelled": 1}

    def examples(self, row, source, where) -> Examples:
        refuse_tokenised(row, source, where)
        return to_labelled(row, source, where)


class PromptShape(RowShape):
    """A row is a prompt; the table keeps its columns, which rewards read."""

    key = {"prompts": 1}

    def examples(self, row, source, where) -> Examples:
        refuse_tokenised(row, source, where)
        return (to_prompt(row, source, where),)

    def parts(self, examples, data) -> Examples:
        return _checked(examples, data)

    def tokenizing(self, example, tokenizer, data, loss) -> Asking[TokenRow]:
        row = yield from tokenizing_prompt(example, tokenizer, data)
        row.control_tokens = control_tokens(example, tokenizer)
        return row

    def beside(self, examples, row, source) -> bytes | None:
        return columns_line(examples[0], row, source)

    def writer(self, writer) -> Any:
        return ColumnWriter(writer)

    def table(self, folder) -> Table:
        return PromptTable(folder)


def _checked(examples: Examples, data: schema.Data) -> Examples:
    for example in examples:
        check_texts(example, data)
        refuse_thoughts_alone(example)
    return examples


SHAPES: dict[str, Shape] = {
    "rows": RowShape(),
    "pairs": PairShape(),
    "labelled": LabelledShape(),
    "prompts": PromptShape(),
}
