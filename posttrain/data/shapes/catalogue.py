"""What a stage makes of a row of its sources: one list of shapes, each a way to read, tokenise and keep a row.

`rows` are trained on as they are (sft), `pairs` are two sides of one prompt (dpo), `labelled` rows one side each (dpo with
the loss kto), `prompts` are sampled from (rlvr, pairs, pass_rate). A new shape is a class and a line in `SHAPES`. Left out:
which rows are dropped and counted (tabulate.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from posttrain.data.shapes.labelled import to_labelled
from posttrain.data.shapes.pairs import to_pair
from posttrain.data.shapes.prompts import ColumnWriter, PromptTable, to_prompt, tokenize_prompt
from posttrain.data.shapes.rows import to_example
from posttrain.data.table import PairTable, Table, TableWriter, TokenTable
from posttrain.data.tokenize import tokenize_example
from posttrain.data.tokens import TokenRow
from posttrain.recipe import schema
from posttrain.types import Example

Examples = tuple[Example, ...]


class Shape(Protocol):
    """`key` enters the name of a prepared table; rows of other shapes must not be found under it."""

    key: dict[str, Any]

    def read(self, row: dict[str, Any], source: schema.Source, where: str) -> Examples:
        """The examples of a row. Raises RequestError, RowError."""
        ...

    def tokenize(self, example: Example, tokenizer, data: schema.Data, loss: schema.Loss) -> TokenRow: ...

    def writer(self, writer: TableWriter, source: schema.Source) -> Any:
        """An object with `add(examples, row)`, called for each row that is kept, and `finish()`; or None."""
        ...

    def table(self, folder: Path) -> Table:
        """The finished table in `folder`. Raises WorkError where it is damaged."""
        ...


class RowShape:
    """A row is one example."""

    key: dict[str, Any] = {}

    def read(self, row, source, where) -> Examples:
        return (to_example(row, source, where),)

    def tokenize(self, example, tokenizer, data, loss) -> TokenRow:
        return tokenize_example(example, tokenizer, data, loss)

    def writer(self, writer, source) -> Any:
        return None

    def table(self, folder) -> Table:
        return TokenTable(folder)


class PairShape(RowShape):
    """A row is a chosen and a rejected example."""

    key = {"pairs": 2}

    def read(self, row, source, where) -> Examples:
        return to_pair(row, source, where)

    def table(self, folder) -> Table:
        return PairTable(TokenTable(folder))


class LabelledShape(RowShape):
    """A row is one example; its label stands in the table's `p`."""

    key = {"labelled": 1}

    def read(self, row, source, where) -> Examples:
        return to_labelled(row, source, where)


class PromptShape(RowShape):
    """A row is a prompt and the columns that rewards read."""

    key = {"prompts": 1}

    def read(self, row, source, where) -> Examples:
        return (to_prompt(row, source, where),)

    def tokenize(self, example, tokenizer, data, loss) -> TokenRow:
        return tokenize_prompt(example, tokenizer, data)

    def writer(self, writer, source) -> Any:
        return ColumnWriter(writer.temporary, source)

    def table(self, folder) -> Table:
        return PromptTable(folder)


SHAPES: dict[str, Shape] = {
    "rows": RowShape(),
    "pairs": PairShape(),
    "labelled": LabelledShape(),
    "prompts": PromptShape(),
}
