"""A row of rated replies to one prompt becomes a pair: the best reply against a lower one, as Zephyr and Tulu 3 do it.

UltraFeedback's list of objects (`completions: [{response, overall_score}]`) and parallel lists (`responses`, `ratings`).
The lower one is drawn by a hash of the row's own content, so the same row gives the same pair wherever it stands. Rows
without two different ratings are dropped and counted. Left out: ratings of replies spread over several rows, ranks
(where 1 is best).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

from posttrain.data.rows import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema

LISTS = ("completions", "responses")
TEXTS = ("response", "completion", "text", "content")
RATINGS = ("overall_score", "rating", "score")
"""Usual spellings: of the list, of a reply's text in it, of its rating."""
PARALLEL = ("ratings", "scores")
"""Of a list of ratings beside a list of texts."""


def rated_column(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column of `row` that lists rated replies, if it is a row of that kind."""
    names = (source.columns.completion,) if source.columns.completion else LISTS
    return next((n for n in names if isinstance(row.get(n), list)), None)


def loose_rating(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column with the one rating of a row that holds a single reply."""
    names = (source.columns.rating,) if source.columns.rating else RATINGS
    return next((n for n in names if isinstance(row.get(n), int | float | str)), None)


def best_and_lower(
    row: dict[str, Any], column: str, source: schema.Source, where: str
) -> tuple[Any, Any]:
    """(chosen, rejected) replies of the list in `column`: text or messages.

    Chosen is the highest rating, drawn among equals; rejected is drawn among the strictly lower ones. Replies
    without a number for a rating (UltraFeedback has N/A) do not take part.

    Raises:
        RequestError: the list is not of a known form.
        RowError: no_rating (fewer than two rated replies), rating_tie (all rated the same).
    """
    rated = [
        (score, reply) for score, reply in _rated(row, column, source, where) if score is not None
    ]
    if len(rated) < 2:
        raise RowError("no_rating", f"{len(rated)} of the replies in {column!r} have a rating")
    top = max(score for score, _ in rated)
    best, lower = ([r for s, r in rated if (s == top) == is_top] for is_top in (True, False))
    if not lower:
        raise RowError("rating_tie", f"all {len(rated)} replies in {column!r} are rated {top:g}")
    draw = hashlib.sha256(repr(rated).encode("utf-8", "surrogatepass")).digest()
    return tuple(
        each[int.from_bytes(draw[at : at + 8], "big") % len(each)]
        for at, each in ((0, best), (8, lower))
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
                f"{place}: its entries have {', '.join(map(str, first))}, but no {wanted}; name the rating under columns.rating"
            )
        return [(_number(e.get(score), f"{place}, {score!r}"), e.get(text)) for e in entries]
    scores = named or next((n for n in PARALLEL if isinstance(row.get(n), list)), None)
    if scores is None or not isinstance(row.get(scores), list):
        raise RequestError(
            f"{place} holds replies without ratings: give objects with {TEXTS[0]} and {RATINGS[1]}, or a list "
            f"{PARALLEL[0]!r} beside it (another name: columns.rating)"
        )
    if len(row[scores]) != len(entries):
        raise RequestError(
            f"{place} holds {len(entries)} replies, {scores!r} {len(row[scores])} ratings"
        )
    numbers = [_number(value, f"{where}: column {scores!r}") for value in row[scores]]
    return list(zip(numbers, entries, strict=True))


def _number(value: Any, place: str) -> float | None:
    """A finite rating, or None for what says that there is none."""
    if isinstance(value, bool):
        raise RequestError(
            f"{place} is {value}, not a rating; rows with a true or false label are for preference.loss: kto"
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
