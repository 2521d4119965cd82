"""Text that a resolver gave, such as `${oc.env:TOKEN}`: used by its value, saved and quoted as written.

Text that becomes part of a row must be plain text, as rows are saved too. Left out: numbers and containers
that resolvers give, which only the recipe itself keeps as written (`recipe/written.py`).
"""

from __future__ import annotations

from typing import Any


class Resolved(str):
    """A text with the expression that gave it. Files (`base/files.py`) and messages (`repr`) have `written`.

    Copies keep it; where a text is made from it, and in another process, it is plain text.
    """

    written: str

    def __new__(cls, value: str, written: str) -> Resolved:
        made = super().__new__(cls, value)
        made.written = written
        return made

    def __repr__(self) -> str:
        return repr(self.written)

    def __copy__(self) -> Resolved:
        return self

    def __deepcopy__(self, memo: Any) -> Resolved:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def plain_text(value: Any) -> Any:
    """`value` with plain text in the place of `Resolved`, in dicts and lists too."""
    if isinstance(value, dict):
        return {key: plain_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_text(item) for item in value]
    return str(value) if isinstance(value, Resolved) else value
