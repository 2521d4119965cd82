"""Which column of a row means what: the one table of usual names, and what comes first.

A column that `source.columns` names counts before all others, and no usual name stands in for it where a row
lacks it. Otherwise the first usual name that the row has counts. A new name of a column is one word in
`USUAL`. Left out: what the values mean (rows.py and its neighbours), which columns an error proposes
(hints.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

from posttrain.data.shapes.names import CALLS, FLAGS, REASONING, almost, filled, says
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema

USUAL = {
    # one example
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "problem", "query"),
    "completion": ("completion", "output", "response", "solution", "answer", "answers"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "answer": ("answer",),
    "p": ("p",),
    "tools": ("tools", "functions"),
    "template_options": ("chat_template_kwargs",),
    # as keys of the message of a reply
    "reasoning": REASONING,
    "calls": CALLS,
    "trained": FLAGS,
    # replies that are compared or judged
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "replies": ("completions", "responses"),
    "rating": ("overall_score", "rating", "score"),
    "ratings": ("ratings", "scores"),
    "label": ("label",),
    # rows that are tokenised already
    "tokens": ("input_ids",),
}
"""What a column may mean -> its usual names, the first of which counts first."""
EXAMPLE = ("messages", "prompt", "completion", "text", "system", "answer", "p", "tools", "template_options")
"""What the columns of one example may mean."""
SAID = ("reasoning", "calls")
"""What they may mean beside a prompt and its completion. All columns of these names count, as do flags."""
PARTS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Form of a row -> what it consists of."""
NAMED_FIRST = ("messages", "prompt", "completion", "text")
"""Which meaning decides the form, where `source.columns` names several."""
FOUND_FIRST = ("messages", "prompt", "text", "completion")
"""Which one, where none is named: a completion without a prompt is not trained where there is a text."""
MAY_MEAN = {
    "messages": tuple(what for what in EXAMPLE if what not in ("prompt", "completion", "text")),
    "prompt_completion": tuple(what for what in EXAMPLE if what != "text"),
    "text": EXAMPLE,  # which is also what a row is where no column decides
}
"""Form of a row -> what another column of it would mean under a usual name, by `FOUND_FIRST`."""
FORMS = {part: form for form, parts in PARTS.items() for part in parts}


def without_ignored(row: dict[str, Any], source: schema.Source) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(`row` without the columns that the source ignores, those of them that had content). Whatever looks for
    a column by its usual names looks here, for another one may stand behind an ignored one."""
    if not source.ignore:
        return row, ()
    used = {name: value for name, value in row.items() if name not in source.ignore}
    return used, tuple(name for name in source.ignore if filled(row.get(name)))


def column(row: dict[str, Any], source: schema.Source, *meanings: str) -> str | None:
    """The column of `row` with one of `meanings`, the first that there is; None where there is none. A column
    that is named may be missing in the row."""
    named = (getattr(source.columns, what, None) for what in meanings)
    usual = (name for what in meanings for name in USUAL[what] if name in row)
    return next(filter(None, named), None) or next(usual, None)


def find_columns(
    row: dict[str, Any], source: schema.Source, where: str, meanings: Iterable[str] = EXAMPLE
) -> dict[str, str]:
    """The column for each of `meanings` that the row has.

    Raises RequestError where the source names a column that the row lacks.
    """
    meanings = (*meanings,)
    named = (*map(vars(source.columns).get, meanings),)
    found = _find(tuple(row), named, meanings)
    for what, name in found.items():
        if name not in row:
            raise RequestError(
                f"{where}: source {source.name!r} has no column {name!r} "
                f"(columns.{what}){did_you_mean(name, row)}"
            )
    return {**found}


@lru_cache(maxsize=1024)
def _find(names: tuple[str, ...], named: tuple[str | None, ...], meanings: tuple[str, ...]) -> dict[str, str]:
    """As `find_columns`, from the `names` of a row's columns; rows of a source have the same ones."""
    found = {}
    for what, own in zip(meanings, named, strict=True):
        name = own or next((each for each in USUAL[what] if each in names), None)
        if name is not None:
            found[what] = name
    return found


def refuse_shared(names: dict[str, str | None], source: schema.Source, where: str) -> None:
    """Raises `RequestError` where one column would be read as two of `names`, meaning -> column, and so stand
    in the example twice. Usual names alone never do that."""
    found: dict[str, str] = {}
    for what, name in names.items():
        if name is not None and (other := found.setdefault(name, what)) != what:
            raise RequestError(
                f"{where}: column {name!r} of source {source.name!r} is read as {other} and as {what}; name "
                f"another column under columns.{other} or columns.{what}"
            )


def refuse_unanswered(row: dict[str, Any], source: schema.Source, where: str) -> None:
    """Raises `RowError` (no_answer) where the column with the answer is empty, or named and missing: rewards
    would compare with nothing. A row that names its own verifiers, as one of code does, has tests instead.

    Raises `RequestError` where the source misspells a usual name that the row has.
    """
    name = column(row, source, "answer")
    if name is None or name in source.ignore or says(row.get(name)):
        return
    if filled(row.get(source.columns.rewards or "rewards")):
        return
    if name in row:
        raise RowError("no_answer", f"column {name!r} is empty")
    if meant := almost(name, [usual for usual in USUAL["answer"] if usual in row]):
        raise RequestError(
            f"{where}: source {source.name!r} has no column {name!r} (columns.answer); did you mean "
            f"{meant!r}?"
        )
    raise RowError("no_answer", f"the row has no column {name!r} (columns.answer)")


def form_of(has: Collection[str], source: schema.Source) -> str | None:
    """The form of a row with columns of the meanings `has`: what `source.format` says, else by the columns
    that the source names, else by those of usual names. None where no column decides it."""
    if source.format != "auto":
        return source.format
    for what in NAMED_FIRST:
        if what in has and getattr(source.columns, what):
            return FORMS[what]
    for what in FOUND_FIRST:
        if what in has:
            return FORMS[what]
    return None


def is_tokenised(row: dict[str, Any], source: schema.Source) -> bool:
    """Whether `row` is read as tokens: by `format`, or because it has `input_ids` and no text."""
    if source.format != "auto":
        return source.format == "tokens"
    (ids,) = USUAL["tokens"]
    if ids not in row or ids in source.ignore:
        return False
    texts = ("messages", "prompt", "text")
    if any(getattr(source.columns, what) for what in texts) or filled(row.get(column(row, source, "chosen"))):
        return False
    return not any(filled(row.get(name)) for name in usual_names(*texts))


def usual_names(*meanings: str) -> set[str]:
    """All usual names of columns with `meanings`."""
    return {name for what in meanings for name in USUAL[what]}
