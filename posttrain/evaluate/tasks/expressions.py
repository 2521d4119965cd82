"""What a task file says of a row: the name of a column, or a Jinja template over the columns.

`question` is the column of that name. A template sees the columns by name, and `row` (all of them), `file`
(the stem of the row's file) and `index`. One that is a single `{{ expression }}` keeps its type, so that a
list stays a list; any other gives text. Templates run in Jinja's sandbox, and a name that is not there is an
error. Left out: what the values are used for (`file_task.py`).
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from posttrain.errors import RequestError, what_is_there

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ONE = re.compile(r"\{\{((?:(?!\}\}).)*)\}\}", re.DOTALL)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")


def after(text: str, mark: str) -> str:
    """What follows the last `mark`, stripped; the text where it has none."""
    return str(text).rpartition(mark)[2].strip()


def before(text: str, mark: str) -> str:
    """What precedes the first `mark`, stripped; the text where it has none."""
    return str(text).partition(mark)[0].strip()


def boxed(text: str) -> str:
    r"""What the last `\boxed{...}` holds. Raises ValueError where there is none, or its brace stays open."""
    found = [*BOX.finditer(str(text))]
    if not found:
        raise ValueError("there is no \\boxed{...}")
    start = found[-1].end() + 1
    depth, at = 1, start
    while depth and at < len(text):
        depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
        at += 1
    if depth:
        raise ValueError("the brace of the last \\boxed{ is not closed")
    return text[start : at - 1].strip()


def lettered(options: list[str], form: str = "{letter}. {option}", between: str = "\n") -> str:
    """The options of a question in one text, each after its letter."""
    pairs = zip(LETTERS, map(str, options), strict=False)
    return between.join(form.replace("{letter}", a).replace("{option}", option) for a, option in pairs)


def letter(index: Any) -> str:
    """`B` of 1."""
    return LETTERS[int(index)]


def matches(text: Any, pattern: str) -> list[str]:
    """Every match of a regular expression, or of its one group: `completion | matches('[0-9]+') | last`."""
    return re.findall(pattern, str(text))


def match(text: Any, pattern: str) -> str:
    """The first group of the first match of a regular expression. Raises ValueError where there is none."""
    if (found := re.search(pattern, str(text))) is None:
        raise ValueError(f"{text!r} does not match {pattern!r}")
    return found[1] if found.groups() else found[0]


ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
ENVIRONMENT.filters |= {f.__name__: f for f in (after, before, boxed, lettered, letter, match, matches)}


def is_template(value: Any) -> bool:
    """Whether a value of a task file is a template, and not a column's name or another constant."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


FAULTS = (
    *(TemplateError, ValueError, TypeError, LookupError, ArithmeticError),
    *(MemoryError, RecursionError, re.error),
)
"""What a template of a task file may raise."""


class Expression:
    """A column or a template. `at` is its place for messages: `gsm8k.yaml: prompt`.

    Raises:
        RequestError: the template cannot be read.
    """

    def __init__(self, text: str, at: str) -> None:
        self.text, self.at = text, at
        self.is_column = not is_template(text)
        try:
            _ = self.is_column or self._compiled
        except (TemplateSyntaxError, SyntaxError, OverflowError, MemoryError) as error:
            said = getattr(error, "message", "") or type(error).__name__
            raise RequestError(f"{at}: the template cannot be read: {said}") from None

    @cached_property
    def names(self) -> set[str]:
        """Columns, and other names, that it reads."""
        return {self.text} if self.is_column else find_undeclared_variables(ENVIRONMENT.parse(self.text))

    @cached_property
    def _compiled(self) -> Any:
        if whole := ONE.fullmatch(self.text.strip()):
            return ENVIRONMENT.compile_expression(whole[1].strip(), undefined_to_none=False)
        return ENVIRONMENT.from_string(self.text).render

    def __call__(self, row: dict[str, Any], where: str, **known: Any) -> Any:
        """Its value for a row. `known`: other names. Raises `RequestError` with `where` and the columns."""
        if self.is_column:
            if self.text not in row:
                near = what_is_there(self.text, row)
                if " " in self.text:
                    near += "; a text around columns is written as '{{ column }} and text'"
                raise RequestError(f"{where}: column {self.text!r} is missing{near} ({self.at})")
            return row[self.text]
        try:
            value = self._compiled(**{**row, **known, "row": row})
        except FAULTS as error:
            raise RequestError(f"{where}: {self._why(error, row, known)} ({self.at})") from None
        if isinstance(value, StrictUndefined):
            name = value._undefined_name
            raise RequestError(f"{where}: {name!r} is undefined{what_is_there(name, row)} ({self.at})")
        return value

    def _why(self, error: Exception, row: dict[str, Any], known: dict[str, Any]) -> str:
        if missing := sorted(self.names - {*row, *known, "row"}):
            return f"{missing[0]!r} is undefined{what_is_there(missing[0], row)}"
        return str(error) or type(error).__name__


class Condition(Expression):
    """An expression without braces that is true or false: `Picture is none`."""

    def __init__(self, text: str, at: str) -> None:
        if is_template(text):
            raise RequestError(f"{at}: {text} is written without braces")
        super().__init__(f"{{{{ {text} }}}}", at)

    @cached_property
    def _compiled(self) -> Any:
        return ENVIRONMENT.compile_expression(self.text[2:-2].strip(), undefined_to_none=False)

    def __call__(self, row: dict[str, Any], where: str, **known: Any) -> bool:
        found = super().__call__(row, where, **known)
        if not isinstance(found, bool):
            what = f"{self.text[2:-2].strip()} is {str(found)[:40]!r}"
            raise RequestError(
                f"{where}: {what}, neither true nor false; compare it, as in x == 'yes' ({self.at})"
            )
        return found
