"""What a CSV cell is: text, or messages as JSON.

A cell cannot be a list, so one that is the JSON of messages is read as these messages; behind it a row is as
of JSON lines, where a text is always a text. Text that was meant so and is no JSON, as pandas writes lists,
is marked, and refused where it would be trained. Left out: reading the file (readers.py), JSON in columns
that are always lists (`messages`, `tools`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from posttrain.data.shapes.messages import ROLES, SPELLINGS, is_message, speaker
from posttrain.data.shapes.names import CALLS
from posttrain.data.shapes.tools import parsed
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError

OPENS = re.compile(r"""\[\s*\{\s*["']\w+["']\s*:""")
"""How a list of messages begins in JSON, and as Python and numpy write it."""
KEY = r"""[{{,]\s*["']{}["']\s*:\s*"""
"""A key of an object, to be put into its place."""
SPEAKS = re.compile(f"{KEY.format('(role|from)')}[\"']({'|'.join(ROLES)})[\"']")
"""A key that says who speaks, with a known role."""


class Garbled(str):
    """The text of a cell that was meant as messages. `problem`: why it is none."""

    problem: str


def cell_value(text: str) -> Any:
    """The messages in a cell, where it is the JSON of a list of them; else its text."""
    bare = text.strip()
    if not OPENS.match(bare):  # as of most cells
        return text
    try:
        value = parsed(bare, "")
    except RowError as error:
        if not _was_meant(bare):
            return text
        found = Garbled(text)
        found.problem = error.detail.removeprefix(": ")
        return found
    known = all(is_message(turn) and speaker(turn) in ROLES for turn in value)
    return value if known else text


def refuse_garbled(value: Any, where: str, column: str) -> None:
    """Raises `RequestError` where a cell was meant as messages."""
    if isinstance(value, Garbled):
        raise RequestError(
            f"{where}: column {column!r} seems to have messages, but {value.problem}. Write JSON into it "
            f"(df[{column!r}].map(json.dumps)), or write JSON lines, where a text stays a text "
            "(df.to_json(path, orient='records', lines=True))"
        )


def _was_meant(text: str) -> bool:
    """Whether `text`, which cannot be read as JSON, has the keys of a message, and is not a list with words
    behind it."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return False
    except ValueError:
        end = len(text)
    found = SPEAKS.search(text) if end == len(text) else None
    return found is not None and any(
        re.search(KEY.format(key), text) for key in (dict(SPELLINGS)[found[1]], *CALLS)
    )
