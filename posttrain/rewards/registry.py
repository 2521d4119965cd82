"""Rewards by name: the decorator, the lookup, and the binding of options.

A reward is `fn(completion, example, **options) -> Verdict`. Its options are its parameters: typed by their
annotations, checked when a recipe is read. Rewards of other packages come by the entry point `posttrain.rewards` or
by a dotted path `package.module:function`. Left out: running rewards (batch.py) and adding them up (compose.py).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from posttrain.base.registry import Registry
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.rewards.catalogue import MODULES
from posttrain.types import Example, Verdict

RewardFn = Callable[..., Any]
ENTRY_POINTS = "posttrain.rewards"


@dataclass(frozen=True, eq=False)
class Spec:
    """A registered reward: the function, what it needs, and where it may run."""

    name: str
    fn: RewardFn
    columns: tuple[str, ...] = ()
    """Columns a row must have; `tests|stdin_tests` asks for one of the two."""
    check_row: Callable[..., None] | None = None
    """`check_row(example, **options)` raises ValueError where a row cannot be judged (the gold answer is broken)."""
    runs: Literal["inline", "worker", "thread", "batch"] = "worker"
    """`inline`: cheap and linear. `worker`: in a process that is killed after `limit_s`. `thread`: in a thread of the
    caller (owns its processes, or waits for a network). `batch`: takes and returns lists."""
    limit_s: float = 2.0
    """Seconds a check may take: enforced in a worker; elsewhere the reward keeps to it, and deadlines count on it."""
    shaping: bool = False
    """The value may be any finite number; it never decides success."""
    missing: Callable[[], str | None] | None = None
    """What this machine lacks to run the reward, in a sentence; None where nothing is."""
    prepare: Callable[[], None] | None = None
    """Called once in a worker before its clock starts: slow imports."""

    @property
    def about(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    @property
    def lacks(self) -> str:
        """What this machine lacks to run it, in a sentence; empty where nothing is."""
        return (self.missing() or "") if self.missing is not None else ""

    @functools.cached_property
    def options(self) -> type:
        """A dataclass of the function's options."""
        try:
            hints = typing.get_type_hints(self.fn)
            given = list(inspect.signature(self.fn).parameters.values())[2:]
        except (TypeError, ValueError, NameError) as error:
            raise RequestError(f"reward {self.name!r}: its options cannot be read: {error}") from None
        fields = []
        for p in given:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise RequestError(f"reward {self.name!r}: takes *args or **kwargs; name its options")
            hint = hints.get(p.name, type(p.default) if p.default is not p.empty else str)
            default = field() if p.default is p.empty else field(default_factory=lambda v=p.default: v)
            fields.append((p.name, hint, default))
        return dataclasses.make_dataclass("Options", fields, kw_only=True)


@dataclass(frozen=True, eq=False)
class Bound:
    """A reward with its options settled; what batch.py runs."""

    spec: Spec
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.spec.name

    def check_columns(self, example: Example) -> None:
        """Raises `RequestError` (file, line, column) where a row lacks a column."""
        where = f"{example.where}: " if example.where else ""
        for column in self.spec.columns:
            if not any(has_column(example, name) for name in column.split("|")):
                near = did_you_mean(column.partition("|")[0], example.extra)
                wanted = " or ".join(repr(name) for name in column.split("|"))
                raise RequestError(f"{where}reward {self.name!r} needs column {wanted}{near}")

    def check_row(self, example: Example) -> None:
        """Raises `RequestError` where a row lacks a column or cannot be judged (its gold answer is broken)."""
        self.check_columns(example)
        where = f"{example.where}: " if example.where else ""
        try:
            if self.spec.check_row is not None:
                self.spec.check_row(example, **self.options)
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
    """The reward called `name`. Raises `RequestError` with the nearest name.

    Built-in names come first: a plugin cannot take the place of one.
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
    raise RequestError(f"unknown reward {name!r}{near}; `posttrain rewards list` shows all")


def load_all() -> Registry[Spec]:
    """Every registered reward, the built-in ones imported."""
    for name in MODULES:
        find(name)
    return REWARDS


@functools.cache
def _dotted(path: str, name: str | None = None) -> Spec:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a module of somebody else does when it is imported
        sentence = f"{type(error).__name__}: {error}"
        raise RequestError(f"reward {path!r}: cannot import {module_name}: {sentence}") from None
    fn = getattr(module, attribute, None)
    if fn is None:
        near = did_you_mean(attribute, (n for n in dir(module) if not n.startswith("_")))
        raise RequestError(f"reward {path!r}: {module_name} has no {attribute!r}{near}")
    if not callable(fn):
        raise RequestError(f"reward {path!r}: {attribute} is {type(fn).__name__}, no function")
    decorated = [REWARDS[n] for n in REWARDS if REWARDS[n].fn is fn]
    if decorated:
        return dataclasses.replace(decorated[0], name=name or path)
    return Spec(name or path, fn)


def bind(name: str, options: dict[str, Any] | None = None, at: str = "") -> Bound:
    """Reward `name` with every option settled. `at` is the place in a recipe, `rewards[0]`.

    Raises:
        RequestError: unknown reward or option, wrong type or value; with all that is wrong.
    """
    where = f"{at}: " if at else ""
    try:
        spec = find(name)
    except RequestError as error:
        raise RequestError(f"{where}{error}") from None
    problems = Problems()
    built = to_dataclass(spec.options, dict(options or {}), "", problems)
    if problems:
        said = [p.message.replace("unknown key", "unknown option") for p in problems.found]
        raise RequestError("\n".join(f"{where}reward {name!r}: {sentence}" for sentence in said))
    values = {f.name: getattr(built, f.name) for f in dataclasses.fields(built)}
    return Bound(spec, values)


def has_column(example: Example, name: str) -> bool:
    """Whether a row has a value in column `name`."""
    own = (
        getattr(example, name, None) if name in ("answer", "prompt", "messages", "completion", "p") else None
    )
    return own is not None or example.extra.get(name) is not None


def as_example(item: Any) -> Example:
    """Any value with an `answer` (a `Problem`, an `Example`) as the `Example` a reward takes."""
    if isinstance(item, Example):
        return item
    names = ("messages", "prompt", "completion", "answer", "where")
    return Example(
        **{name: value for name in names if (value := getattr(item, name, None)) is not None},
        extra=getattr(item, "extra", None) or {},
    )


def failed(reason: str, status: Literal["timeout", "error"] = "error") -> Verdict:
    """A verdict that says the checker failed, not the completion."""
    return Verdict(None, status, reason)


def limited(what: str) -> Verdict:
    """The completion was too costly to judge: 0, so that a policy gains nothing by hanging the checker."""
    return Verdict(0.0, "scored", "limit", details={"limit": what})
