"""Rollouts on disk: one JSON line for each completion with its verdicts, one file for each batch.

A file is replaced in one step, so that a batch that is sampled again after a kill replaces its file. Left
out: reading rollouts for people (rundir/rollouts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from posttrain.rollouts.batch import BatchAdvantages
from posttrain.rollouts.draw import Drawn
from posttrain.rollouts.groups import Group

Row = dict[str, Any]
"""One line of a rollout file."""


def rows_of(group: Group, number: int, text: str, calls_end: Mapping[int, str] | None = None) -> list[Row]:
    """A row for each completion of group `number`; `text` is the rendered prompt. Keys: see README.md.

    `calls_end`: see `Template`.
    """
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
        call = calls_end and completion.finish == "stop" and calls_end.get(completion.token_ids[-1])
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
            | ({"end_of_call": call} if call else {})
        )
    return found


def batch_rows(
    drawn: Drawn,
    scored: BatchAdvantages,
    step: int,
    decode: Callable[[list[int]], str],
    differences: Mapping[int, float | None] | None = None,
) -> list[Row]:
    """The rows of a batch of an rlvr run whose first optimizer step is `step`; groups set aside come last.

    `differences`: place of a completion in the batch -> its `logp_diff`; None where nothing was compared.
    """
    rows = []
    for number, group in enumerate((*drawn.groups, *drawn.aside)):
        text, kept = decode(group.prompt.ids), number < len(drawn.groups)
        for i, row in enumerate(rows_of(group, number, text)):
            own: Row = {"advantage": None, "trained": False}
            if kept:
                own["advantage"] = float(scored.advantages[number, i])
                own["trained"] = bool(scored.trained[number, i])
            if differences is not None:
                at = number * len(group.completions) + i
                own["logp_diff"] = differences.get(at) if kept else None
            rows.append({"step": step} | row | own)
    return rows


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by `group`, in order of first appearance."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return list(found.values())
