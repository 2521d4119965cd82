"""Rated replies to one prompt: which of them a pair is made of.

`completions: [{text, rating}, ...]`, or texts with a list of ratings beside them. An entry is a reply: its
reasoning and its calls are those of its message, and one of weight 0 is not chosen from. Left out: rows of
the same prompt, which are not grouped.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

from posttrain.data.shapes.columns import USUAL
from posttrain.data.shapes.messages import messages_in, read_message, speaker
from posttrain.data.shapes.names import CALLS, FLAGS, REASONING, almost, filled
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema

SIDES = ("chosen", "rejected")
TEXTS = ("response", "completion", "text", "content")
"""Usual keys of the text of an entry in a list of rated replies. That of its rating is as of a column."""
SAYS = (*REASONING, *CALLS, *FLAGS)
"""Keys of an entry that say the same as those of a message."""


def of_ratings(
    row: dict[str, Any], source: schema.Source, where: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A row of rated replies with `chosen` and `rejected` in place of its list, and the keys of its entries
    that are not read; any other row as it is.

    Raises:
        RequestError: the list has no known form, an entry has a key that is misspelt or means something else,
            or the row has a single rated reply.
        RowError: no_rating, rating_tie, and those of `read_message`.
    """
    if _is_pair(row, source):
        return row, ()
    column = _rated_column(row, source)
    if column is not None:
        sides = _best_and_lower(row, column, source, where)
        objects = isinstance(row[column][0], dict)
        used = (column, None if objects else _ratings(row, source))
        unused = tuple(f"{column}.{key}" for key in _unread(row[column], source)) if objects else ()
        return {k: v for k, v in row.items() if k not in used} | dict(zip(SIDES, sides, strict=True)), unused
    rating = _loose_rating(row, source)
    if rating is not None:
        raise RequestError(
            f"{where}: source {source.name!r} has one rated reply per row ({rating!r}), and rows of the same "
            "prompt are not grouped. Put the replies to a prompt into one row, completions: "
            "[{text, rating}, ...], or label each reply and set preference.loss: kto"
        )
    return row, ()


def ignored_in_entries(row: dict[str, Any], source: schema.Source) -> set[str]:
    """The keys of `source.ignore` that have content in the rated replies of `row`."""
    entries = () if _is_pair(row, source) else row.get(_rated_column(row, source), ())
    found = (entry for entry in entries if isinstance(entry, dict))
    return {key for entry in found for key in source.ignore if filled(entry.get(key))}


def _is_pair(row: dict[str, Any], source: schema.Source) -> bool:
    """Whether chosen and rejected are there already."""
    return "chosen" in row or bool(source.columns.chosen or source.columns.rejected)


def _rated_column(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column of `row` that lists rated replies, if it is a row of that kind."""
    named = source.columns.completion
    return next((n for n in ([named] if named else USUAL["replies"]) if isinstance(row.get(n), list)), None)


def _loose_rating(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column with the rating of a row that has a single reply."""
    named = source.columns.rating
    names = [named] if named else USUAL["rating"]
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
    rated = _rated(row, column, source, where)
    if len(rated) < 2:
        raise RowError(
            "no_rating", f"{len(rated)} of the replies in {column!r} have a rating and are trained"
        )
    top = max(score for score, _ in rated)
    best, lower = ([r for s, r in rated if (s == top) == is_top] for is_top in (True, False))
    if not lower:
        raise RowError("rating_tie", f"all {len(rated)} replies in {column!r} are rated {top:g}")
    draw = hashlib.sha256(repr(rated).encode("utf-8", "surrogatepass")).digest()
    return tuple(
        each[int.from_bytes(draw[at : at + 8], "big") % len(each)] for at, each in ((0, best), (8, lower))
    )


def _rated(row: dict[str, Any], column: str, source: schema.Source, where: str) -> list[tuple[float, Any]]:
    """(rating, reply) of each entry that has a rating and is trained."""
    entries, named = row[column], source.columns.rating
    place = f"{where}: column {column!r}"
    if not entries:
        return []
    if all(isinstance(entry, dict) for entry in entries):
        text, score = _keys(entries, source)
        has = [*dict.fromkeys(key for entry in entries for key in entry)]
        there = f"{place}: its entries have {', '.join(map(str, has))}, but no"
        if text is None and not all(any(filled(entry.get(key)) for key in CALLS) for entry in entries):
            raise RequestError(f"{there} text ({', '.join(TEXTS)}); write what each replies under {TEXTS[0]}")
        if score not in has:
            wanted = f"rating {named!r}" if named else "rating"
            raise RequestError(f"{there} {wanted}; name the rating under columns.rating")
        found = []
        for index, entry in enumerate(entries):
            number = _number(entry.get(score), f"{place}, {score!r}")
            if number is not None:
                reply, is_trained = _reply(entry, text, score, f"{place}, entry {index}", source)
                found += [(number, reply)] if is_trained else []
        return found
    scores = _ratings(row, source)
    if scores is None or not isinstance(row.get(scores), list):
        raise RequestError(
            f"{place} has replies without ratings; write objects with {TEXTS[0]} and {USUAL['rating'][1]}, "
            f"or add a list {USUAL['ratings'][0]!r} beside it (name another one under columns.rating)"
        )
    if len(row[scores]) != len(entries):
        raise RequestError(
            f"{place} has {len(entries)} replies, but {scores!r} has {len(row[scores])} ratings"
        )
    numbers = [_number(value, f"{where}: column {scores!r}") for value in row[scores]]
    return [(number, reply) for number, reply in zip(numbers, entries, strict=True) if number is not None]


def _reply(
    entry: dict[str, Any], text: str | None, score: str, place: str, source: schema.Source
) -> tuple[Any, bool]:
    """(what an entry replies, whether it is trained): its text or messages, or where it says more than these
    a list of one message."""
    reply, ignore = messages_in(entry.get(text)), {*source.ignore} - {"role", "content"}
    given = {k: v for k, v in entry.items() if filled(v) and k not in (text, score) and k not in ignore}
    for key, value in given.items():
        near = _near(key)
        if near and (near not in FLAGS or value in (0, 1)):
            raise RequestError(
                f"{place}: key {key!r} is not read; did you mean {near!r}? Rename it, or set ignore: [{key}]"
            )
    said = {key: given[key] for key in ("role", *SAYS) if key in given}
    if not said:  # as in most
        return reply, True
    turns = isinstance(reply, list) and bool(reply) and speaker(reply[0]) is not None
    content = None if turns else reply
    found = read_message({"role": "assistant", "content": content} | said, place, ignore)
    is_trained = found.pop("trained", True)
    more = found.keys() - {"role", "content"}
    if turns and more:
        raise RequestError(
            f"{place}: {min(more)!r} stands beside messages; write it into the message that it belongs to, "
            f"or set ignore: [{min(more)}]"
        )
    if found["role"] != "assistant":
        raise RowError("no_assistant_turn", f"{place} has the role {found['role']}")
    return ([found] if more else reply), is_trained


def _unread(entries: list[Any], source: schema.Source) -> list[str]:
    """The keys with content of `entries` that nothing reads, each once."""
    read = {*_keys(entries, source), *SAYS, "role", *source.ignore}
    found = (key for entry in entries for key, value in entry.items() if key not in read and filled(value))
    return [*dict.fromkeys(found)]


def _keys(entries: list[Any], source: schema.Source) -> tuple[str | None, str | None]:
    """The keys of the text and of the rating of `entries`, of which some may lack them: one only calls."""
    has = {key for entry in entries for key in entry}
    text = next((name for name in TEXTS if name in has), None)
    score = source.columns.rating or next((name for name in USUAL["rating"] if name in has), None)
    return text, score


def _ratings(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column with a list of ratings."""
    usual = (name for name in USUAL["ratings"] if isinstance(row.get(name), list))
    return source.columns.rating or next(usual, None)


@lru_cache(maxsize=256)
def _near(key: str) -> str | None:
    """The key of `SAYS` that `key` is almost, if it is none itself."""
    return None if key in SAYS else almost(key, SAYS)


def _number(value: Any, place: str) -> float | None:
    """A finite rating, or None where the value stands for no rating."""
    if isinstance(value, bool):
        raise RequestError(
            f"{place} is {value}, not a rating; rows with a true or false label need preference.loss: kto"
        )
    try:
        number = float(value)
    except OverflowError:
        raise RequestError(f"{place} is {str(value)[:20]}..., too large for a rating") from None
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
