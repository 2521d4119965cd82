"""A task as a YAML file: where its rows are, how they are asked, how replies are judged.

Shipped ones lie beside this module; a user's own is named by `file` of a task in a recipe, whose `options`
override keys of either. Left out: what the keys of one kind mean (`kinds/`), and reading rows (`reading.py`).
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from omegaconf import OmegaConf

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.recipe.reading import read

HERE = Path(__file__).parent
LOCAL = "POSTTRAIN_DATA"
"""Environment variable: the folder with local copies of the benchmarks."""


@dataclass
class Source:
    """Where rows are: a file or glob, a data set of the hub, or the first as a copy of the second."""

    file: str | None = None
    """Of a shipped task below the folder `$POSTTRAIN_DATA`, of your own beside the task file. A glob reads
    several; `file` in templates is the stem of each."""
    hub: str | None = None
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    header: list[str] = field(default_factory=list)
    """Names of the columns of a CSV file that has no header."""
    rows: str = ""
    """Key under which a JSON file that is one object has its rows; `.`: the object is a row."""
    origin: str = ""
    """Where a local copy is to be had, if not from the hub."""
    instances: int = 1
    """Questions that are made of a row that is a template in the form of GSM-Symbolic."""
    instances_seed: int = 0
    licence: str = "unknown"


@dataclass
class Shots(Source):
    """Solved rows before the question. The first `n` that are not the row itself; of one group, where rows
    have groups and `of_group` is set."""

    n: int = 0
    text: str = ""
    """Instead of rows: the file of a text that stands before the question; a template."""
    after: str = ""
    """The part of `text` behind this mark."""
    form: Literal["turns", "text"] = "turns"
    """Each a question and a reply of the conversation, or all in one turn with the question."""
    between: str = " "
    """Between question and answer, in the form `text`."""
    prompt: str = ""
    """Default: that of the task."""
    answer: str = ""
    """What the reply says. Default: the reference answer."""
    of_group: bool = False


@dataclass
class TaskFile:
    """The keys of every kind. `prompt`, `answer`, `id`, `group`: a column, or a template over columns."""

    REFUSED: ClassVar[dict[str, str]] = {
        "question": "is no key of a task; prompt names the column, or is a template: '{{ question }} Think.'",
        "extract": "is an option of the reward; set reward.options.extract",
        "split": "is a key of source; set source.split",
        "subset": "is a key of source; set source.subset",
    }
    kind: str
    about: str
    """One line: what is asked, and where it is from."""
    source: Source
    prompt: str
    answer: str
    where: str = ""
    """Only rows for which this expression is true: `Picture is none`."""
    id: str = ""
    """Default: the number of the row."""
    group: str = ""
    """Rows of one group are averaged together by macro metrics, and are a cluster of the intervals where they
    are not independent (`clusters`)."""
    clusters: bool = False
    sets: str = ""
    """The set that a row belongs to, one instance of every template; a column or template. The mean of each
    set is taken, and mean and standard deviation over sets."""
    versions: str = ""
    """The problem that a row is a version of; a column or template."""
    system: str = ""
    chat: bool = True
    """Rendered by the chat template; else the model continues the text as it is."""
    prefill: str = ""
    """Begins the reply."""
    shots: Shots | None = None
    tools: str | None = None
    """Column of the tools. Not set: `tools`, else `functions`. Empty: none is read."""
    published: str = "not measured"
    """A figure of others to aim at, and how it was measured."""


def shipped() -> dict[str, Path]:
    """Name -> file of the tasks of this package."""
    return {path.stem: path for path in sorted(HERE.glob("*.yaml"))}


def task_path(task: schema.Task) -> Path | None:
    """The file of a task; None where it has none. Raises `RequestError` where the file that it names is not
    there."""
    if task.file is None:
        return shipped().get(task.name)
    if task.file in shipped():
        return shipped()[task.file]
    path = Path(task.file).expanduser()
    if not path.is_file():
        near = did_you_mean(path.name, [*shipped(), *(p.name for p in path.parent.glob("*.yaml"))])
        raise RequestError(f"{task.file}: no such task file{near}")
    return path


def load_file(
    path: Path, options: dict[str, Any], kinds: dict[str, type], at: str, problems: Problems
) -> TaskFile | None:
    """The task in the file `path`, with `options` over its keys; `kinds`: name of a kind -> its dataclass.

    What is wrong with `options`, whose place in the recipe is `at`, is added to `problems`; then None.

    Raises:
        RequestError: the file cannot be read, or a key or value is wrong: one line for each, with file, line
            and the nearest key.
    """
    config, lines = read(path)
    values: Any = OmegaConf.to_container(config, resolve=False)
    kind = values.get("kind")
    if kind not in kinds:
        near = did_you_mean(kind, kinds)
        raise RequestError(f"{path}{_line(lines, 'kind')}: kind = {kind!r} is not a kind of tasks{near}")
    wrong = Problems()
    found = to_dataclass(kinds[kind], values, "", wrong)
    if wrong:
        raise RequestError("\n".join(f"{path}{_line(lines, p.path)}: {p}" for p in wrong.found))
    if not options:
        return found
    if "kind" in options:
        problems.add(f"{at}.kind", f"{at}.kind cannot be changed; write a task file of your own")
        return None
    return to_dataclass(kinds[kind], _merged(values, options), at, problems)


def _line(lines: dict[str, int], at: str) -> str:
    while at and at not in lines:
        at = at.rpartition(".")[0]
    return f":{lines[at]}" if at else ""


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(values)
    for key, value in over.items():
        inner = found.get(key)
        found[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found


def place(source: Source, path: Path, given: str | None, what: str, chosen: bool = False) -> str:
    """The path or hub id that rows of `source` are read from; `path` is the task file, `given` the recipe's
    own choice. `chosen`: whether a recipe names the file of `source`, which then must be there.

    Raises:
        RequestError: the rows are not at hand: where to get them, and under which licence.
    """
    if given is not None:
        return given
    if source.file is not None:
        if path.parent != HERE or Path(source.file).is_absolute():
            return str(path.parent / source.file)
        root = os.environ.get(LOCAL)
        if chosen and root and not any(Path(root).glob(source.file)):
            raise RequestError(f"{Path(root) / source.file}: no such file, which options.source.file names")
        if root and ("{{" in source.file or any(Path(root).glob(source.file))):
            return str(Path(root) / source.file)
    if source.hub is None:
        origin = f", from {source.origin}" if source.origin else ""
        raise RequestError(
            f"{what} are not at hand: set ${LOCAL} to the folder of local copies, in which they are "
            f"{source.file}{origin} (licence: {source.licence}), or path"
        )
    return source.hub
