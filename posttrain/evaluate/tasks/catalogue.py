"""Which tasks there are, which settings a recipe may give them, and what they measure; without torch.

A new task is a small file in this folder and a name in the import below.
"""

from __future__ import annotations

from dataclasses import asdict

from posttrain.errors import RequestError, did_you_mean
from posttrain.evaluate.tasks import (  # noqa: F401  (importing registers)
    arithmetic,
    gsm8k,
    questions,
    worked,
)
from posttrain.evaluate.tasks.base import TASKS, EvalTask
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.recipe.schema import Task

ATTEMPTS = tuple(2**i for i in range(13))
"""N of pass@N in exact tasks: 1, 2, 4 .. 4096."""
SAMPLER_FIELDS = ("samples", "k", "temperature", "top_p", "max_new_tokens")


def load_task(task: Task) -> EvalTask:
    """The task that a recipe names. Raises RequestError with everything that is wrong with its settings."""
    wrong = check_task(task, f"task {task.name}")
    if wrong:
        raise RequestError("\n".join(message for _, message in wrong))
    cls = TASKS[task.name]
    return cls(task, to_dataclass(cls.Options, task.options, "options", Problems()))


def check_task(task: Task, at: str) -> list[tuple[str, str]]:
    """(place, sentence) of everything wrong with a task of a recipe; `at` is its place, e.g.
    `evaluate.tasks[0]`."""
    if task.name not in TASKS:
        near = did_you_mean(task.name, TASKS)
        return [(f"{at}.name", f"{at}.name = {task.name!r} is not a task{near}")]
    cls, problems = TASKS[task.name], Problems()
    options = to_dataclass(cls.Options, task.options, f"{at}.options", problems)
    found = [(p.path, str(p)) for p in problems.found]
    for key, message in _sampler(task) if cls.kind == "sampled" else _exact(task):
        found.append((f"{at}.{key}", f"{at}.{key} {message}"))
    for key in ("limit", "batch_size"):
        if getattr(task, key) is not None and getattr(task, key) < 1:
            found.append((f"{at}.{key}", f"{at}.{key} = {getattr(task, key)} must be at least 1"))
    if task.path is not None and not cls.reads_path:
        found.append((f"{at}.path", f"{at}.path: {task.name} generates its problems and reads no file"))
    if options is not None and not found:
        try:
            cls(task, options).check()
        except RequestError as error:
            found.append((at, f"{at}: {error}"))
    return found


def metrics(task: Task) -> list[str]:
    """The metrics that scoring this task writes, in order; the ones that `keep_best` and gates may name."""
    if TASKS[task.name].kind == "exact":
        return [*(f"pass@{n}" for n in ATTEMPTS), "nll", "accuracy"]
    votes = [f"maj@{k}" for k in task.k if k > 1]
    return [*(f"pass@{k}" for k in task.k), *votes, "truncated", "parsed", "tokens_mean"]


def _sampler(task: Task) -> list[tuple[str, str]]:
    found = []
    if not task.k or min(task.k) < 1 or len(set(task.k)) < len(task.k):
        found.append(("k", f"= {task.k} must list distinct whole numbers of at least 1"))
    elif max(task.k) > task.samples:
        found.append(("k", f"= {task.k} needs at least {max(task.k)} samples, but samples = {task.samples}"))
    if task.samples < 1:
        found.append(("samples", f"= {task.samples} must be at least 1"))
    if not 0 <= task.temperature < float("inf"):
        found.append(("temperature", f"= {task.temperature} must be 0 (greedy) or positive"))
    elif task.temperature == 0 and task.samples > 1:
        found.append(("samples", f"= {task.samples}, but temperature 0 gives the same text every time"))
    if not 0 < task.top_p <= 1:
        found.append(("top_p", f"= {task.top_p} must be in (0, 1]"))
    if task.temperatures:
        why = "is for exact tasks; a sampled one is scored at another temperature by posttrain eval"
        found.append(("temperatures", why))
    if task.max_new_tokens < 1:
        found.append(("max_new_tokens", f"= {task.max_new_tokens} must be at least 1"))
    return found


def _exact(task: Task) -> list[tuple[str, str]]:
    """What is wrong with the settings of an exact task, and those that it would ignore silently."""
    default = asdict(Task(name=task.name))
    found = [
        (key, f"has no effect: {task.name} computes exact probabilities and does not sample")
        for key in SAMPLER_FIELDS
        if key != "temperature" and getattr(task, key) != default[key]
    ]
    every = [task.temperature, *task.temperatures]
    for key, value in zip(["temperature"] + ["temperatures"] * len(task.temperatures), every, strict=True):
        if value == 0:
            found.append(
                (key, "= 0 must be above 0; greedy decoding is the metric accuracy of an exact task")
            )
        elif not 0 < value < float("inf"):
            found.append((key, f"= {value} must be positive"))
    if len(set(every)) < len(every):
        text = (
            f"= {task.temperatures} lists one twice, or temperature = {every[0]:g}, which is always measured"
        )
        found.append(("temperatures", text))
    return found
