"""The exceptions that loading a model or a tokenizer raises for incomplete or odd files, and a line on each.

Configs are read by code that looks names up, asserts and divides, so that an odd value ends in an exception
of almost any class. Left out: weights that are missing or do not fit (whole_weights.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

BARE = (LookupError, AssertionError, AttributeError, ArithmeticError)
"""Their text alone may be no more than a name."""
UNLOADED = (OSError, ValueError, TypeError, ImportError, RuntimeError, EOFError, UnpicklingError, *BARE)
"""Of Python's own classes, those that `from_pretrained` raises for incomplete or missing models, for values
in their configs that mean nothing, and for arguments it does not accept."""


def why_unloaded(error: Exception, folder: str | Path | None = None) -> str:
    """What `error` says, in one line. A name that was looked up in vain is searched for in config.json of
    `folder`."""
    kind, said = type(error).__name__, str(error).strip()
    if kind.startswith("StrictDataclass"):  # of huggingface_hub: the first line only names the field
        return " ".join(said.split())
    if isinstance(error, KeyError) and error.args and " " in str(error.args[0]):
        return str(error.args[0]).splitlines()[0]  # a sentence
    said = said.splitlines()[0] if said else ""
    if kind == "SafetensorError" or isinstance(error, EOFError | UnpicklingError):
        return f"its weights are damaged ({said or kind})"
    if not isinstance(error, BARE):
        return said or kind
    found = list(_keys(_config(folder), error.args[0])) if isinstance(error, KeyError) and error.args else []
    where = f" ({', '.join(found)} in config.json)" if found else ""
    return f"{kind}: {said}{where}" if said else kind


def _config(folder: str | Path | None) -> Any:
    if folder is None:
        return None
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _keys(values: Any, wanted: object, above: str = "") -> Iterator[str]:
    """The keys that have the value `wanted`."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if value == wanted:
            yield above + key
        yield from _keys(value, wanted, f"{above}{key}.")
