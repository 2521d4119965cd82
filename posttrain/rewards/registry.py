"""Rewards by name: the decorator, the lookup, and the binding of options.

A reward is `fn(completion, example, **options) -> Verdict`. Its options are its parameters; their types are
the annotations, and they are checked when a recipe is read. A reward of another package is found by the entry
point `posttrain.rewards` or by the path `package.module:function`. Left out: running rewards (engine) and
their weighted sum (compose.py).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from posttrain.base.files import hash_of
from posttrain.base.registry import Registry, import_path
from posttrain.errors import RequestError, did_you_mean, what_is_there
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.rewards.catalogue import MODULES
from posttrain.types import Example, Verdict

RewardFn = Callable[..., Any]
ENTRY_POINTS = "posttrain.rewards"


@dataclass(frozen=True, eq=False)
class Spec:
    """A registered reward: the function, what it needs, and where it runs."""

    name: str
    fn: RewardFn
    columns: tuple[str, ...] = ()
    """Columns that a row must have; `tests|stdin_tests` means one of the two."""
    check_row: Callable[..., None] | None = None
    """`check_row(example, ...)` raises ValueError for a row that cannot be scored, such as one with a
    malformed reference answer. Its other parameters name the options of the reward that it reads, without
    defaults."""
    runs: Literal["inline", "worker", "thread", "batch"] = "worker"
    """`inline`: in the caller, for what is cheap and linear in the text. `worker`: in a process that is
    killed after `limit_s`. `thread`: in a thread of the caller, for a reward that has its own processes or
    waits for a network. `batch`: as `thread`, but the reward takes and returns lists."""
    limit_s: float = 2.0
    """Seconds that a check may take. Enforced in a worker; elsewhere the reward must keep to it, because the
    default deadline of a batch relies on it."""
    shaping: bool = False
    """Whether it is a shaping term: its value may be any finite number, and it never decides success."""
    missing: Callable[[], str | None] | None = None
    """What this machine lacks to run the reward, as a sentence; None if nothing."""
    model: str | None = None
    """The option that names a model (folder or hub id) whose weights score."""
    prepare: Callable[[], None] | None = None
    """Called once in a worker before the clock of its first check starts, for slow imports."""

    @property
    def about(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    @property
    def built_in(self) -> bool:
        return str(getattr(self.fn, "__module__", "")).startswith("posttrain.")

    @property
    def code(self) -> tuple[str, str] | None:
        """Module and hash of the file of a reward of your own; None of a built-in one, whose version of the
        package tells, and where there is no file."""
        module = str(getattr(self.fn, "__module__", None) or "")
        file = getattr(sys.modules.get(module), "__file__", None)
        return (module, hash_of(Path(file))) if file and not self.built_in else None

    @property
    def lacks(self) -> str:
        """What this machine lacks to run the reward, as a sentence; empty if nothing."""
        return (self.missing() or "") if self.missing is not None else ""

    @functools.cached_property
    def options(self) -> type:
        """A dataclass of the options. Raises `RequestError` if the function's signature cannot be read."""
        try:
            hints = typing.get_type_hints(self.fn)
            given = list(inspect.signature(self.fn).parameters.values())[2:]
        except (TypeError, ValueError, NameError) as error:
            raise RequestError(f"reward {self.name!r}: cannot read its options: {error}") from None
        fields = []
        for p in given:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise RequestError(
                    f"reward {self.name!r}: it takes *args or **kwargs; declare every option as a parameter"
                )
            hint = hints.get(p.name, type(p.default) if p.default is not p.empty else str)
            default = field() if p.default is p.empty else field(default_factory=lambda v=p.default: v)
            fields.append((p.name, hint, default))
        return dataclasses.make_dataclass("Options", fields, kw_only=True)

    @functools.cached_property
    def row_options(self) -> tuple[str, ...]:
        """The options that `check_row` reads. Raises `RequestError` if one is not an option of the reward."""
        if self.check_row is None:
            return ()
        names = [f.name for f in dataclasses.fields(self.options)]
        read = list(inspect.signature(self.check_row).parameters.values())[1:]
        if any(p.kind is p.VAR_KEYWORD for p in read):
            return tuple(names)
        for p in read:
            if p.name not in names and p.default is p.empty:
                near = did_you_mean(p.name, names)
                raise RequestError(
                    f"reward {self.name!r}: its check_row reads the unknown option {p.name!r}{near}"
                )
        return tuple(p.name for p in read if p.name in names)


class LacksColumn(RequestError):
    """A row has no `column`, which a reward needs."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True, eq=False)
class Bound:
    """A reward with a value for every option; what the engine runs."""

    spec: Spec
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.spec.name

    def check_columns(self, example: Example) -> None:
        """Raises `RequestError` (file, line, column) if a row lacks a column."""
        where = f"{example.where}: " if example.where else ""
        for column in self.spec.columns:
            if not any(has_column(example, name) for name in column.split("|")):
                near = what_is_there(column.partition("|")[0], example.extra)
                wanted = " or ".join(repr(name) for name in column.split("|"))
                raise LacksColumn(f"{where}reward {self.name!r} needs column {wanted}{near}", column)

    def check_row(self, example: Example) -> None:
        """Raises `RequestError` if a row lacks a column or cannot be scored, as its content is malformed."""
        self.check_columns(example)
        where = f"{example.where}: " if example.where else ""
        try:
            if self.spec.check_row is not None:
                self.spec.check_row(example, **{name: self.options[name] for name in self.spec.row_options})
        except ValueError as error:
            raise RequestError(f"{where}reward {self.name!r}: {error}") from None


REWARDS: Registry[Spec] = Registry("reward")


def reward(name: str, **about: Any) -> Callable[[RewardFn], RewardFn]:
    """Decorator `@reward("math", columns=("answer",), ...)`; the keywords are the fields of `Spec`."""

    def add(fn: RewardFn) -> RewardFn:
        REWARDS.register(name)(Spec(name, fn, **about))
        return fn

    return add


def find(name: str) -> Spec:
    """The reward called `name`; built-in names come first, so that a plugin cannot replace one.

    Raises:
        RequestError: there is no such reward (with the nearest name), or its module cannot be imported.
    """
    if name not in REWARDS and name in MODULES:
        importlib.import_module(f"posttrain.rewards.{MODULES[name]}")
    if name in REWARDS:
        return REWARDS[name]
    if ":" in name:
        return _dotted(name)
    plugins = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if name in plugins:
        return _dotted(plugins[name].value, name)
    near = did_you_mean(name, {*MODULES, *REWARDS, *plugins})
    raise RequestError(f"unknown reward {name!r}{near}; `posttrain rewards list` lists all of them")


def load_all() -> Registry[Spec]:
    """All registered rewards, after importing the built-in ones."""
    for name in MODULES:
        find(name)
    return REWARDS


def bind(name: str, options: dict[str, Any] | None = None, at: str = "") -> Bound:
    """Reward `name` with a value for every option. `at` is the place in the recipe, such as `rewards[0]`.

    Raises:
        RequestError: unknown reward or option, wrong type or value; one line for each problem.
    """
    where = f"{at}: " if at else ""
    try:
        spec = find(name)
    except RequestError as error:
        raise RequestError(f"{where}{error}") from None
    problems = Problems()
    built = to_dataclass(spec.options, dict(options or {}), "", problems)
    if problems:
        sentences = [p.message.replace("unknown key", "unknown option") for p in problems.found]
        raise RequestError("\n".join(f"{where}reward {name!r}: {sentence}" for sentence in sentences))
    values = {f.name: getattr(built, f.name) for f in dataclasses.fields(built)}
    return Bound(spec, values)


def has_column(example: Example, name: str) -> bool:
    """Whether a row has a value in column `name`."""
    own = (
        getattr(example, name, None) if name in ("answer", "prompt", "messages", "completion", "p") else None
    )
    return own is not None or example.extra.get(name) is not None


def as_example(item: Any) -> Example:
    """A value with an `answer` (a `Problem` or an `Example`) as the `Example` that a reward takes."""
    if isinstance(item, Example):
        return item
    names = ("messages", "prompt", "completion", "answer", "where")
    return Example(
        **{name: value for name in names if (value := getattr(item, name, None)) is not None},
        extra=getattr(item, "extra", None) or {},
    )


def failed(reason: str, status: Literal["timeout", "error"] = "error") -> Verdict:
    """A verdict without a value: the check failed, which says nothing about the completion."""
    return Verdict(None, status, reason)


def limited(what: str) -> Verdict:
    """Value 0: the completion was too costly to check. A policy gains nothing by stalling the check."""
    return Verdict(0.0, "scored", "limit", details={"limit": what})


@functools.cache
def _dotted(path: str, name: str | None = None) -> Spec:
    fn = import_path(path, "reward")
    decorated = [REWARDS[n] for n in REWARDS if REWARDS[n].fn is fn]
    if decorated:
        return dataclasses.replace(decorated[0], name=name or path)
    return Spec(name or path, fn)
