"""The settings hash of a score: equal hashes mean that the same thing was measured in the same way.

It reads `<task>-<rendering>`. The first half covers the content of the problems, the options and the sampler,
and needs no model; the second the text of the chat template and the dtype of the weights. Left out on
purpose: `batch_size`, the path of the file and the number of ranks, which change nothing but the last bits,
and library versions, which are in run.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from posttrain.evaluate.tasks.base import SAMPLER
from posttrain.evaluate.tasks.catalogue import load_task, resolved
from posttrain.recipe.schema import Data, Task
from posttrain.types import Problem

NOT_MEASURED = ("batch_size", "temperatures")
"""Fields of a task that change no measurement, or only how many there are."""
LATER = ("tools", "template_options", "plain", "prefill", "set", "version_of")
"""Fields of a problem that problems did not always have."""
SCORER = {"exact": 1, "sampled": 2, "choice": 1}
"""Kind of a task -> number, raised by one when a change of this package alters what such a task measures: old
and new scores are then told apart. sampled 2: special tokens inside a completion are part of its text."""


def problems_of(task: Task) -> list[Problem]:
    """The first `limit` problems of a task. Raises RequestError where they cannot be read."""
    return load_task(task).problems()[: task.limit]


def task_hash(task: Task, problems: list[Problem] | None = None) -> str:
    """First half: the problems, and how replies are sampled and judged. `problems` spares reading them
    again."""
    loaded, task = load_task(task), resolved(task)
    problems = problems_of(task) if problems is None else problems
    sampler = {key: getattr(task, key) for key in SAMPLER if loaded.kind == "sampled"}
    if loaded.kind != "sampled" and task.temperature != 1:  # older scores keep their hash
        sampler = {"temperature": float(task.temperature)}
    asked = [_content(problem) for problem in problems]
    return _hash([SCORER[loaded.kind], task.name, loaded.identity, task.seed, sampler, asked])


def measurements(task: Task) -> list[Task]:
    """One task a temperature, the first at `task.temperature`: what one pass over an exact task measures."""
    alone = replace(resolved(task), temperatures=[])
    return [alone, *(replace(alone, temperature=float(t)) for t in task.temperatures)]


def differences(task: Task, own: Task) -> dict[str, Any]:
    """Settings of `task` that differ from those of `own` in what is measured, and their values."""
    if task == own:
        return {}
    every = [asdict(resolved(one)) for one in (task, own)]
    mine, theirs = (given.pop("options") | given for given in every)
    keys = [k for k in {**theirs, **mine} if k not in NOT_MEASURED]
    return {k: mine.get(k) for k in keys if mine.get(k) != theirs.get(k)}


def template_of(data: Data) -> str:
    """The name of the template that a checkpoint of a recipe with this `data` is scored with: the saved one
    where `data.template_options` are written into it."""
    return "tokenizer" if data.template_options else data.template


def settings_hash(task_half: str, template: str, dtype: str) -> str:
    """Both halves: `template` is the source text of the chat template, `dtype` that of the weights."""
    return f"{task_half}-{_hash([template, dtype])[:6]}"


def _content(problem: Problem) -> dict[str, Any]:
    """A problem without what it does not have and problems did not always have: older scores keep their
    hash."""
    return {k: v for k, v in asdict(problem).items() if v or k not in LATER}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
