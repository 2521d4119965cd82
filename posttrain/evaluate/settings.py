"""The settings hash of a score: equal hashes mean that the same thing was measured in the same way.

`<task>-<rendering>`. The first half covers the content of the problems, the options and the sampler, and can be
told without a model; the second the chat template's text and the weights' dtype. Left out on purpose:
`batch_size`, place of the file and number of ranks, which change nothing but the last bits, and library
versions, which stand in run.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from posttrain.evaluate.tasks.catalogue import SAMPLER_FIELDS, load_task
from posttrain.recipe.schema import Task
from posttrain.types import Problem

SCORER = 1
"""Raised when a change of ours alters what a task measures: scores of both kinds can then stand side by side."""


def problems_of(task: Task) -> list[Problem]:
    """The problems of a task, the first `limit` of them. Raises RequestError where there are none."""
    return load_task(task).problems()[: task.limit]


def task_hash(task: Task, problems: list[Problem] | None = None) -> str:
    """First half: what is asked, and how it is sampled and judged."""
    loaded = load_task(task)
    problems = problems_of(task) if problems is None else problems
    sampler = {key: getattr(task, key) for key in SAMPLER_FIELDS if loaded.kind == "sampled"}
    options = asdict(loaded.options)
    asked = [asdict(problem) for problem in problems]
    return _hash([SCORER, task.name, options, task.seed, sampler, asked])


def settings_hash(task_half: str, template: str, dtype: str) -> str:
    """Both halves: `template` is its source text, `dtype` that of the weights."""
    return f"{task_half}-{_hash([template, dtype])[:6]}"


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
