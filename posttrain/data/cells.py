"""What a CSV cell is: text, which may have messages as JSON.

A cell cannot be a list, so one that is the JSON of messages carries these; what reads a conversation takes
them, and a row is then as of JSON lines, while what reads a text takes the text. Text that was meant so and
is no JSON, as pandas writes lists, carries the reason, and is refused where it would be trained. Left out:
reading the file (readers.py), JSON in columns that are always lists (`messages`, `tools`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from posttrain.data.shapes.messages import ROLES, SPELLINGS, is_message, listed, speaker
from posttrain.data.shapes.names import CALLS
from posttrain.data.shapes.tools import parsed
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError

OPENS = re.compile(r"""(?:(?:array)?\(\s*)?(?:\[\s*)?\{\s*["']\w+["']\s*:""")
"""How messages, or one, begin in JSON, and as Python and numpy write them."""
KEY = r"""[{{,]\s*["']{}["']\s*:\s*"""
"""A key of an object, to be put into its place."""
WHO = re.compile(KEY.format("(?:role|from)"))
SPEAKS = re.compile(rf"{KEY.format('(role|from)')}(?:array\(\s*)?\[?\s*[\"']({'|'.join(ROLES)})[\"']")
"""A key that says who speaks, with a known role, or a list that begins with one."""
QUOTED = re.compile(r"""(["'])(?:\\.|(?!\1).)*(?:\1|\Z)""", re.DOTALL)
"""A text in the JSON or the Python of a value; the last one may have no end."""


class Cell(str):
    """The text of a cell that has messages, or was meant so. It goes to other processes as it is."""

    messages: list[Any] | None = None
    problem: str | None = None
    """Why the text is no messages, where it was meant so."""


def cell_value(text: str) -> str:
    """The text of a cell; a `Cell` where it has messages, each with a known role, or was meant so."""
    bare = text.strip()
    if not OPENS.match(bare) or not WHO.search(bare):  # as of most cells
        return text
    found = Cell(text)
    try:
        turns = listed(parsed(bare, ""))
    except RowError as error:
        if not _was_meant(bare):
            return text
        found.problem = error.detail.removeprefix(": ")
        return found
    if not isinstance(turns, list) or not all(is_message(turn) and speaker(turn) in ROLES for turn in turns):
        return text
    found.messages = turns
    return found


def with_messages(row: dict[str, Any], names: Iterable[str | None]) -> dict[str, Any]:
    """`row` with the messages that cells under `names` have in place of their text: a conversation may stand
    there."""
    cells = {name: row[name] for name in names if isinstance(row.get(name), Cell)}
    found = {name: cell.messages for name, cell in cells.items() if cell.messages is not None}
    return row | found if found else row


def refuse_garbled(value: Any, where: str, column: str) -> None:
    """Raises `RequestError` where a cell was meant as messages, and has none."""
    if isinstance(value, Cell) and value.problem is not None:
        raise RequestError(
            f"{where}: column {column!r} seems to have messages, but {value.problem}. Write JSON into it "
            f"(df[{column!r}].map(json.dumps)), or write JSON lines, where a text stays a text "
            "(df.to_json(path, orient='records', lines=True))"
        )


def _was_meant(text: str) -> bool:
    """Whether `text`, which cannot be read as JSON, has the keys of a message, and is not a value with words
    behind it."""
    found = SPEAKS.search(text)
    if found is None:
        return False
    bare = QUOTED.sub("", text)
    whole = all(bare.count(one) == bare.count(other) for one, other in ("[]", "{}", "()"))
    behind = bare[max(map(bare.rfind, "]})")) + 1 :]
    if whole and re.search(r"\w", behind):
        return False
    return any(re.search(KEY.format(key), text) for key in (dict(SPELLINGS)[found[1]], *CALLS))
