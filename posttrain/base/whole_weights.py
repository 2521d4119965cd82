"""Whether `from_pretrained` found every weight of a model: those that it lacks, it draws at random.

Here because language models and reward models, of rooms that do not import each other, are loaded by the same
rule. Left out: the loading; weights of adapters (models/adapters.py).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from posttrain.errors import RequestError

log = logging.getLogger(__name__)

REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained` that make it return (model, what it found) also where shapes differ."""

MEND = "restore the files, or the config.json that belongs to them"


def refuse_partial(place: str | Path, found: dict[str, Any]) -> None:
    """Warns of weights in the files of the model at `place` that it does not use.

    `found`: `missing_keys`, `mismatched_keys` (name, shape in the file, shape of the model) and
    `unexpected_keys`, as `from_pretrained` reports them. A tied weight that is stored once is not missing.

    Raises:
        RequestError: the files lack a weight of the model, or have it in another shape.
    """
    if found["missing_keys"]:
        raise RequestError(f"{place} is not a whole model: {differing(found)}; {MEND}")
    if problem := differing(found):
        raise RequestError(f"{place} does not fit its config.json: {problem}; {MEND}")
    if unused := sorted(found["unexpected_keys"]):
        log.warning("%s: its files have weights that the model does not use: %s", place, _first(unused))


def differing(found: dict[str, Any], unused: bool = False) -> str | None:
    """How the files differ from the model, as the end of a sentence, or None; also by weights that the model
    does not use, where `unused`. `found`: see `refuse_partial`."""
    if found["missing_keys"]:
        return f"its files lack {_first(sorted(found['missing_keys']))}"
    if found["mismatched_keys"]:
        mismatched = sorted(found["mismatched_keys"])
        names = [f"{name} as {list(stored)} instead of {list(own)}" for name, stored, own in mismatched]
        return f"its files have {_first(names)}"
    if unused and found["unexpected_keys"]:
        return f"its files have {_first(sorted(found['unexpected_keys']))}, which the model does not"
    return None


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
