"""Which tasks there are, which settings a recipe may give them, and what they measure; without torch.

A new task is a YAML file in this folder; a new kind is a file in `kinds/` and a line in `KINDS`. A generated
task is a module and a name in the import below.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from posttrain.base.resolved import plain_text
from posttrain.errors import RequestError, did_you_mean
from posttrain.evaluate.summary import MACRO
from posttrain.evaluate.tasks import (  # noqa: F401  (importing registers)
    arithmetic,
    worked,
)
from posttrain.evaluate.tasks.base import SAMPLER, TASKS, EvalTask
from posttrain.evaluate.tasks.file_task import FileTask
from posttrain.evaluate.tasks.files import load_file, shipped, task_path
from posttrain.evaluate.tasks.kinds.choice import Choice
from posttrain.evaluate.tasks.kinds.code import Code
from posttrain.evaluate.tasks.kinds.exact import Exact
from posttrain.evaluate.tasks.kinds.first_error import FirstError
from posttrain.evaluate.tasks.kinds.generate import Generate
from posttrain.evaluate.tasks.kinds.instructions import Instructions
from posttrain.evaluate.tasks.kinds.judge import Judge
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.recipe.reading import apply_override
from posttrain.recipe.schema import Task

KINDS: dict[str, type[FileTask]] = {
    "generate": Generate,
    "choice": Choice,
    "exact": Exact,
    "code": Code,
    "instructions": Instructions,
    "first_error": FirstError,
    "judge": Judge,
}
"""Kind of a task file -> its class."""
RIGHT: set[str] = set()
"""What tasks said whose rows this process has read and found right."""


def names() -> list[str]:
    """The tasks that a recipe can name without a file."""
    return sorted({*TASKS, *shipped()})


def named_task(name: str) -> Task:
    """The task that a command line names: a known one, or the path of a task file."""
    own = name not in names() and name.endswith((".yaml", ".yml"))
    return Task(Path(name).stem, file=name) if own else Task(name)


def load_task(task: Task) -> EvalTask:
    """The task that a recipe names. Raises RequestError with everything that is wrong with its settings."""
    wrong = check_task(task, f"task {task.name}")
    if wrong:
        raise RequestError("\n".join(message for _, message in wrong))
    return known(task)


def _build(task: Task, at: str, problems: Problems) -> Any:
    """The task; None where it is unknown or its options are wrong, which `problems` then says. Raises
    RequestError where its file is wrong."""
    if task.file is None and task.name in TASKS:
        cls = TASKS[task.name]
        options = to_dataclass(cls.Options, task.options, f"{at}.options", problems)
        return None if options is None else cls(task, options)
    path = task_path(task)
    if path is None:
        near = did_you_mean(task.name, names())
        problems.add(f"{at}.name", f"{at}.name = {task.name!r} is not a task{near}")
        return None
    spec = load_file(path, task.options, {k: c.File for k, c in KINDS.items()}, f"{at}.options", problems)
    return None if spec is None else KINDS[spec.kind](task, spec, path)


def check_task(task: Task, at: str) -> list[tuple[str, str]]:
    """(place, sentence) of everything wrong with a task of a recipe; `at` is its place, e.g.
    `evaluate.tasks[0]`."""
    problems = Problems()
    try:
        built = _build(task, at, problems)
    except RequestError as error:
        return [(at, f"{at}: {line}") for line in str(error).splitlines()]
    found = [(p.path, str(p)) for p in problems.found]
    plain = built or _build(replace(task, options={}), at, Problems())
    if plain is not None:
        wrong = _sampler(_filled(task, plain)) if plain.kind == "sampled" else _exact(task, plain.kind)
        found += [(f"{at}.{key}", f"{at}.{key} {message}") for key, message in wrong]
    for key in ("limit", "batch_size"):
        if getattr(task, key) is not None and getattr(task, key) < 1:
            found.append((f"{at}.{key}", f"{at}.{key} = {getattr(task, key)} must be at least 1"))
    if built is not None and task.path is not None and not built.reads_path:
        found.append((f"{at}.path", f"{at}.path: {task.name} generates its problems and reads no file"))
    if built is not None and not found:
        try:
            built.check()
        except RequestError as error:
            found.append((at, f"{at}: {error}"))
    return found


def changed(task: Task, overrides: list[str]) -> Task:
    """`task` with `overrides`, `key=value`. Raises RequestError with everything that is wrong with it."""
    values: Any = OmegaConf.create(plain_text(asdict(task)))
    given = {override.partition("=")[0].strip() for override in overrides}
    if given and "temperatures" not in given:  # the recipe's are controls of its own settings
        values.temperatures = []
    if any(override.startswith("k.") for override in overrides):  # one of the list's own
        values.k = resolved(task).k
    for override in overrides:
        apply_override(values, override, f"the settings of task {task.name}")
    problems = Problems()
    built = to_dataclass(Task, OmegaConf.to_container(values), "", problems)
    found = [str(p) for p in problems.found]
    if built is not None:
        found = [message for _, message in check_task(built, f"task {task.name}")]
    if found:
        raise RequestError("\n".join(found))
    return built


def read_task(task: Task, at: str) -> list[tuple[str, str]]:
    """As `check_task`, of its rows, where they are files that are at hand: each is read. Rows that were right
    are not read again until their files change: the runs of a sweep have the same tasks."""
    built = known(task)
    try:
        if isinstance(built, FileTask) and built.is_local:
            state = (built.spec, built.path, built.stamps())
            if repr(state) not in RIGHT:
                built.problems()
                RIGHT.add(repr(state))
    except RequestError as error:
        return [(at, f"{at}: {error}")]
    return []


def resolved(task: Task) -> Task:
    """`task` with the sampler that it is scored with: what the recipe leaves open is the task's own. Raises
    `RequestError` where there is no such task."""
    return _filled(task, known(task))


def metrics(task: Task) -> list[str]:
    """The metrics that scoring this task writes, in order; the ones that `keep_best` and gates may name.
    Raises as `resolved`."""
    built = known(task)
    found = built.metrics(_filled(task, built))
    return [*found, *(f"{metric}{MACRO}" for metric in built.macro), *(f"{found[0]}{e}" for e in built.ends)]


def known(task: Task) -> Any:
    """The task, unchecked. Raises RequestError where it is unknown or its file or options are wrong."""
    problems = Problems()
    built = _build(task, f"task {task.name}", problems)
    if built is None:
        raise RequestError("\n".join(map(str, problems.found)))
    return built


def _filled(task: Task, built: Any) -> Task:
    own = getattr(built, "spec", None)
    usual = {key: getattr(own, key, value) for key, value in SAMPLER.items()}
    return replace(task, **{key: value for key, value in usual.items() if getattr(task, key) is None})


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


def _exact(task: Task, kind: str) -> list[tuple[str, str]]:
    """What is wrong with the settings of a task of probabilities, and those that it would ignore silently."""
    greedy = "metric accuracy of an exact task" if kind == "exact" else "metric acc of a choice task"
    found = [
        (key, f"has no effect: {task.name} computes exact probabilities and does not sample")
        for key in SAMPLER
        if key != "temperature" and getattr(task, key) not in (None, SAMPLER[key])
    ]
    every = [1.0 if task.temperature is None else task.temperature, *task.temperatures]
    for key, value in zip(["temperature"] + ["temperatures"] * len(task.temperatures), every, strict=True):
        if value == 0:
            found.append((key, f"= 0 must be above 0; greedy decoding is the {greedy}"))
        elif not 0 < value < float("inf"):
            found.append((key, f"= {value} must be positive"))
    if len(set(every)) < len(every):
        text = (
            f"= {task.temperatures} lists one twice, or temperature = {every[0]:g}, which is always measured"
        )
        found.append(("temperatures", text))
    return found
