"""The shape `pairs`: a row is two examples that differ in the last reply, chosen and rejected.

`prompt`/`chosen`/`rejected` as text (an alpaca `input` is joined as in rows.py) or as message lists,
conversations under `chosen` and `rejected`, HH-RLHF transcripts, and lists of rated replies, of which the
best and a lower one are taken. With `rejected_is_prefix: true` (or `chosen_is_prefix`) that side is a prefix
of a solution, for example up to its first wrong step (arXiv 2406.14532), and gets no end of turn. A pair
without a difference, with an empty side or with two different prompts is dropped and counted. Left out:
unpaired rows with a label (labelled.py).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

from posttrain.data.shapes.labelled import LABEL, ending_in_reply, truth
from posttrain.data.shapes.rows import SPELLINGS, TRANSCRIPT, to_example
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema
from posttrain.types import Example, Message

SIDES = ("chosen", "rejected")
LISTS = ("completions", "responses")
TEXTS = ("response", "completion", "text", "content")
RATINGS = ("overall_score", "rating", "score")
"""Usual names: of the list of rated replies, of the text of an entry, of its rating."""
PARALLEL = ("ratings", "scores")
"""Usual names of a list of ratings beside a list of texts."""


def to_pair(row: dict[str, Any], source: schema.Source, where: str) -> tuple[Example, Example]:
    """(chosen, rejected) of `row`, with the same prompt.

    Raises:
        RequestError: a column does not exist, or contains neither text nor messages.
        RowError: no_chosen, no_rejected, equal_pair, prompt_mismatch, no_rating, rating_tie, and those of
            `to_example`.
    """
    row = _of_ratings(row, source, where)
    names = [getattr(source.columns, side) or side for side in SIDES]
    for side, name in zip(SIDES, names, strict=True):
        if name not in row:
            advice = f"name the column under columns.{side}"
            if LABEL in row:
                advice += "; single replies with a label need preference.loss: kto"
            raise RequestError(
                f"{where}: source {source.name!r} has no column {name!r}{did_you_mean(name, row)}; {advice}"
            )
    chosen, rejected = (
        _side(row, name, side, source, where) for side, name in zip(SIDES, names, strict=True)
    )
    if _prompt(chosen) != _prompt(rejected):
        raise RowError("prompt_mismatch", "chosen and rejected answer different prompts")
    if _reply(chosen).strip() == _reply(rejected).strip():
        raise RowError("equal_pair", "chosen and rejected are the same")
    chosen.partial, rejected.partial = (_is_prefix(row, side, where) for side in SIDES)
    return chosen, rejected


def _of_ratings(row: dict[str, Any], source: schema.Source, where: str) -> dict[str, Any]:
    """A row of rated replies with `chosen` and `rejected` in place of its list; any other row as it is."""
    if "chosen" in row or source.columns.chosen or source.columns.rejected:
        return row
    column = _rated_column(row, source)
    if column is not None:
        sides = _best_and_lower(row, column, source, where)
        return {k: v for k, v in row.items() if k != column} | dict(zip(SIDES, sides, strict=True))
    rating = _loose_rating(row, source)
    if rating is not None:
        raise RequestError(
            f"{where}: source {source.name!r} has one rated reply per row ({rating!r}), and rows of the same "
            "prompt are not grouped. Put the replies to a prompt into one row, completions: "
            "[{text, rating}, ...], or label each reply and set preference.loss: kto"
        )
    return row


def _is_prefix(row: dict[str, Any], side: str, where: str) -> bool:
    value = row.get(f"{side}_is_prefix")
    found = False if value is None else truth(value)
    if found is None:
        raise RequestError(f"{where}: {side}_is_prefix must be true or false, not {value!r}")
    return found


def _side(row: dict[str, Any], name: str, side: str, source: schema.Source, where: str) -> Example:
    value = row[name]
    if value is None or (isinstance(value, str) and not value.strip()) or value == []:
        raise RowError(f"no_{side}", f"column {name!r} is empty")
    whole = isinstance(value, list) or (isinstance(value, str) and TRANSCRIPT.match(value))
    prompt = source.columns.prompt or next((n for n in SPELLINGS["prompt"] if n in row), None)
    columns = replace(source.columns, completion=None, messages=None, text=None)
    if whole and not (prompt and isinstance(row[prompt], list)):
        kept = {"messages": value} | _other(row, columns)
        return ending_in_reply(
            to_example(kept, replace(source, format="messages", columns=replace(columns, prompt=None)), where)
        )
    if not isinstance(value, str | list):
        raise RequestError(f"{where}: {name!r} must be text or messages, not {type(value).__name__}")
    taken = {*SPELLINGS["completion"], *SPELLINGS["messages"], *SPELLINGS["text"]} - {prompt}
    kept = {k: v for k, v in row.items() if k not in taken} | {"completion": value}
    format_ = replace(source, format="prompt_completion", columns=columns)
    return ending_in_reply(to_example(kept, format_, where))


def _other(row: dict[str, Any], columns: schema.Columns) -> dict[str, Any]:
    """The columns that `to_example` reads besides a conversation."""
    names = {columns.system, columns.answer, columns.p, *SPELLINGS["system"], *SPELLINGS["answer"]}
    return {name: row[name] for name in names if name in row}


def _prompt(example: Example) -> str | list[Message] | None:
    return example.prompt if example.messages is None else example.messages[:-1]


def _reply(example: Example) -> str:
    return (example.completion or "") if example.messages is None else example.messages[-1]["content"]


def _rated_column(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column of `row` that lists rated replies, if it is a row of that kind."""
    names = (source.columns.completion,) if source.columns.completion else LISTS
    return next((n for n in names if isinstance(row.get(n), list)), None)


def _loose_rating(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column with the rating of a row that has a single reply."""
    names = (source.columns.rating,) if source.columns.rating else RATINGS
    return next((n for n in names if isinstance(row.get(n), int | float | str)), None)


def _best_and_lower(row: dict[str, Any], column: str, source: schema.Source, where: str) -> tuple[Any, Any]:
    """(chosen, rejected) replies of the list in `column`: text or messages.

    Chosen is a reply of the highest rating, rejected one of a strictly lower rating; both are drawn by a hash
    of the list, so the choice is always the same. Replies whose rating is not a number (UltraFeedback has
    N/A) are left out.

    Raises:
        RequestError: the list has no known form.
        RowError: no_rating (fewer than two rated replies), rating_tie (all rated the same).
    """
    rated = [(score, reply) for score, reply in _rated(row, column, source, where) if score is not None]
    if len(rated) < 2:
        raise RowError("no_rating", f"{len(rated)} of the replies in {column!r} have a rating")
    top = max(score for score, _ in rated)
    best, lower = ([r for s, r in rated if (s == top) == is_top] for is_top in (True, False))
    if not lower:
        raise RowError("rating_tie", f"all {len(rated)} replies in {column!r} are rated {top:g}")
    draw = hashlib.sha256(repr(rated).encode("utf-8", "surrogatepass")).digest()
    return tuple(
        each[int.from_bytes(draw[at : at + 8], "big") % len(each)] for at, each in ((0, best), (8, lower))
    )


def _rated(
    row: dict[str, Any], column: str, source: schema.Source, where: str
) -> list[tuple[float | None, Any]]:
    """(rating or None, reply) of each entry."""
    entries, named = row[column], source.columns.rating
    place = f"{where}: column {column!r}"
    if not entries:
        return []
    if all(isinstance(entry, dict) for entry in entries):
        first = entries[0]
        text = next((n for n in TEXTS if n in first), None)
        score = named or next((n for n in RATINGS if n in first), None)
        if text is None or score is None or score not in first:
            wanted = "text (" + ", ".join(TEXTS) + ")" if text is None else "rating"
            wanted = f"rating {named!r}" if text is not None and named else wanted
            raise RequestError(
                f"{place}: its entries have {', '.join(map(str, first))}, but no {wanted}; "
                "name the rating under columns.rating"
            )
        return [(_number(e.get(score), f"{place}, {score!r}"), e.get(text)) for e in entries]
    scores = named or next((n for n in PARALLEL if isinstance(row.get(n), list)), None)
    if scores is None or not isinstance(row.get(scores), list):
        raise RequestError(
            f"{place} has replies without ratings; write objects with {TEXTS[0]} and {RATINGS[1]}, or add a "
            f"list {PARALLEL[0]!r} beside it (name another one under columns.rating)"
        )
    if len(row[scores]) != len(entries):
        raise RequestError(
            f"{place} has {len(entries)} replies, but {scores!r} has {len(row[scores])} ratings"
        )
    numbers = [_number(value, f"{where}: column {scores!r}") for value in row[scores]]
    return list(zip(numbers, entries, strict=True))


def _number(value: Any, place: str) -> float | None:
    """A finite rating, or None where the value stands for no rating."""
    if isinstance(value, bool):
        raise RequestError(
            f"{place} is {value}, not a rating; rows with a true or false label need preference.loss: kto"
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
