"""Which runs of a stage were trained with the same loss: only those share an axis of losses.

Left out: the pictures (`training_figures.py`), and names of losses (`text.py`).
"""

from __future__ import annotations

from typing import Any

from posttrain.base.files import number
from posttrain.report.tables import plain
from posttrain.rundir.reading import RunData

FORMULA = {"sft": "loss", "dpo": "preference"}
"""Stage -> the section of the recipe that fixes its loss."""
NO_FORMULA = ("backend", "chunk_rows", "skip_below", "reference", "reference_model", "reference_revision")
"""Keys of those sections that do not change the loss as a function of log-probabilities."""


def by_loss(stage: str, members: dict[int, RunData]) -> dict[str, list[int]]:
    """What the losses differ in, as text -> the runs that have that loss; a single entry, "", where the
    losses are equal. A key at zero is as good as absent: older recipes do not have all keys."""
    sections = {i: run.section(FORMULA.get(stage, "")) for i, run in members.items()}
    given = {
        i: {k: _spelt(v) for k, v in section.items() if k not in NO_FORMULA and v}
        for i, section in sections.items()
    }
    keys = list(dict.fromkeys(k for found in given.values() for k in found))
    keys = [k for k in keys if len({found.get(k) for found in given.values()}) > 1]
    groups: dict[str, list[int]] = {}
    for i, found in given.items():
        told = [found[k] if k in ("name", "loss") else f"{k} {found[k]}" for k in keys if k in found]
        told = told or ["without these" if found else "unknown"] * bool(keys)
        groups.setdefault(", ".join(told), []).append(i)
    return groups


def _spelt(value: Any) -> str:
    """A value on one line; 256 and 256.0 are the same."""
    return f"{value:.12g}" if number(value) is not None else " ".join(plain(value).split())
