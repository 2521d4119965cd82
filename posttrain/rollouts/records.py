"""Rollouts on disk: one JSON line for each completion with its verdicts, one file for each batch.

A file is replaced in one step, so that a batch that is sampled again after a kill replaces its file. Left
out: reading rollouts for people (rundir/rollouts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from posttrain.rollouts.groups import Group

Row = dict[str, Any]
"""One line of a rollout file."""


def rows_of(group: Group, number: int, text: str) -> list[Row]:
    """A row for each completion of group `number`; `text` is the rendered prompt. Keys: see README.md."""
    prompt = group.prompt
    about = {
        "group": number,
        "round": group.round,
        "position": prompt.position,
        "source": prompt.source,
        "row": prompt.row,
        "where": prompt.asked.where,
        "prompt": text,
        "answer": prompt.asked.example().answer,
    }
    found = []
    for completion, graded in zip(group.completions, group.graded, strict=True):
        components = {
            label: {k: v for k, v in asdict(verdict).items() if k != "details"}
            for label, verdict in graded.components.items()
        }
        found.append(
            about
            | {
                "sample": completion.sample_index,
                "completion": completion.text,
                "tokens": len(completion.token_ids),
                "finish": completion.finish,
                "reward": graded.value,
                "success": graded.success,
                "components": components,
                "trained": False,
            }
        )
    return found


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by `group`, in order of first appearance."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return list(found.values())
