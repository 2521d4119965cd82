"""Rated replies to one prompt: which of them a pair is made of.

`completions: [{text, rating}, ...]`, or texts with a list of ratings beside them. Replies without a rating or
a text, and those of weight 0, are not chosen from. Left out: what an entry says (entries.py); rows of the
same prompt, which are not grouped; ranks, of which 1 is the best.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.json_rows import type_name
from posttrain.data.shapes.columns import USUAL
from posttrain.data.shapes.entries import (
    TEXTS,
    as_list,
    key_of_rating,
    key_of_text,
    last_message,
    number_in,
    read_entry,
    unread_keys,
)
from posttrain.data.shapes.names import CALLS, filled, says
from posttrain.data.shapes.same import is_silent, meaning
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema

SIDES = ("chosen", "rejected")


@dataclass(slots=True)
class Rated:
    """The replies of a row."""

    found: list[tuple[float, Any, str]] = field(default_factory=list)
    """(rating, reply, what it says) of each that can be chosen from."""
    empty: list[float] = field(default_factory=list)
    """The ratings of those that say nothing."""
    unrated: list[Any] = field(default_factory=list)
    """What stands in place of a rating."""
    untrained: int = 0
    """Those with a flag of 0."""
    null: int = 0
    unread: list[str] = field(default_factory=list)
    """Keys of entries that nothing reads."""

    def add(self, rating: float, reply: Any, place: str, ignore: set[str]) -> None:
        """A rated reply, text or messages, which is read as in a pair to know what it says. Raises as
        `last_message`."""
        last = last_message(reply, place, ignore)
        if last is None or (last.get("trained", True) and is_silent(last)):
            self.empty.append(rating)
        elif not last.get("trained", True):
            self.untrained += 1
        else:
            self.found.append((rating, reply, meaning([last])))


def of_ratings(
    row: dict[str, Any], source: schema.Source, where: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A row of rated replies with `chosen` and `rejected` in place of its list, and what of its entries is
    not used; any other row as it is.

    Raises:
        RequestError: the list has no known form, an entry has a key that is misspelt or means something else,
            or the row has a single rated reply.
        RowError: no_rating, rating_tie, no_chosen, no_rejected, and those of `read_message`.
    """
    if _is_pair(row, source):
        return row, ()
    column = _rated_column(row, source)
    if column is None:
        _refuse_other_forms(row, source, where)
        return row, ()
    if (named := source.columns.rating) in source.ignore:
        raise RequestError(
            f"{where}: source {source.name!r} names {named!r} under columns.rating and under ignore; take it "
            "out of one of them"
        )
    entries, used = _entries(row[column], source), [column]
    if any(isinstance(entry, dict) for entry in entries):
        rated = _of_objects(entries, column, source, where)
    else:
        ratings = _ratings(row, source)
        rated = _of_texts(row, entries, column, ratings, source, where)
        used += [ratings] if ratings is not None else []
    chosen, rejected = _best_and_lower(rated, column, len(entries))
    unused = [f"{column}.{key}" for key in rated.unread]
    if rated.empty or rated.null:
        unused.append(f"{column} (empty)")
    kept = {name: value for name, value in row.items() if name not in used}
    return kept | dict(zip(SIDES, (chosen, rejected), strict=True)), tuple(unused)


def ignored_in_entries(row: dict[str, Any], source: schema.Source) -> set[str]:
    """The keys of `source.ignore` that have content in the rated replies of `row`."""
    column = None if _is_pair(row, source) or not source.ignore else _rated_column(row, source)
    entries = () if column is None else as_list(row[column])
    found = (entry for entry in entries if isinstance(entry, dict))
    return {key for entry in found for key in source.ignore if filled(entry.get(key))}


def _is_pair(row: dict[str, Any], source: schema.Source) -> bool:
    """Whether chosen and rejected are there already."""
    return "chosen" in row or bool(source.columns.chosen or source.columns.rejected)


def _rated_column(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column of `row` that lists rated replies, if it is a row of that kind: the first that has some."""
    lists = [name for name in _reply_columns(source) if isinstance(as_list(row.get(name)), list)]
    return next((name for name in lists if filled(row[name])), None) or next(iter(lists), None)


def _reply_columns(source: schema.Source) -> tuple[str, ...]:
    named = source.columns.completion
    return USUAL["replies"] if named is None else (named,)


def _refuse_other_forms(row: dict[str, Any], source: schema.Source, where: str) -> None:
    """Raises `RequestError` where a row that lists no replies has a rating, or a list in a form that is not
    read, and `RowError` (no_rating) where the list is empty."""
    for name in _reply_columns(source):
        value = row.get(name)
        if filled(value) and (isinstance(value, dict) or str(value).lstrip()[:2] in ("[{", "['", '["')):
            raise RequestError(
                f"{where}: column {name!r} is neither a list, nor JSON text of one, nor an object of lists "
                f"of one length: {repr(value)[:60]}; write completions: [{{text, rating}}, ...]"
            )
    if empty := next((name for name in _reply_columns(source) if name in row and not says(row[name])), None):
        raise RowError("no_rating", f"column {empty!r} is empty")
    named = source.columns.rating
    names = USUAL["rating"] if named is None else (named,)
    rating = next((n for n in names if isinstance(row.get(n), int | float | str) and filled(row[n])), None)
    if rating is not None:
        raise RequestError(
            f"{where}: source {source.name!r} has one rated reply per row ({rating!r}), and rows of the same "
            "prompt are not grouped. Put the replies to a prompt into one row, completions: "
            "[{text, rating}, ...], or label each reply and set preference.loss: kto"
        )


def _entries(value: Any, source: schema.Source) -> list[Any]:
    """The list in `value`, its objects without the keys that the source ignores."""
    ignore = set(source.ignore)
    return [
        {key: each for key, each in entry.items() if key not in ignore} if isinstance(entry, dict) else entry
        for entry in as_list(value)
    ]


def _of_objects(entries: list[Any], column: str, source: schema.Source, where: str) -> Rated:
    """The replies in `entries`, objects and nulls."""
    place, named = f"{where}: column {column!r}", source.columns.rating
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict | None):
            raise RequestError(
                f"{place}, entry {index} is {type_name(entry)}, and others are objects; write it as an object"
            )
    given = [entry for entry in entries if entry is not None]
    score = key_of_rating(given, named)
    rated = Rated(null=len(entries) - len(given), unread=unread_keys(given, score))
    if rated.unread:  # one of which may be meant
        _refuse_other_keys(given, score, place, named)
    ignore = set(source.ignore)
    for index, entry in enumerate(entries):
        if entry is None:
            continue
        number = number_in(entry.get(score), f"{place}, {score!r}")
        if number is None:
            rated.unrated.append(entry.get(score))
            continue
        at = f"{place}, entry {index}"
        reply, is_trained = read_entry(entry, key_of_text(entry, score), score, at, ignore)
        if not is_trained:
            rated.untrained += 1
        else:
            rated.add(number, reply, at, ignore)
    return rated


def _refuse_other_keys(
    entries: list[dict[str, Any]], score: str | None, place: str, named: str | None
) -> None:
    """Raises `RequestError` where no entry has a key of its text, or of its rating."""
    has = dict.fromkeys(key for entry in entries for key in entry)
    there = f"{place}: its entries have {', '.join(map(str, has))}, but no"
    texts = has.keys() & {*TEXTS} - {score}
    if not texts and not all(any(filled(entry.get(key)) for key in CALLS) for entry in entries):
        raise RequestError(f"{there} text ({', '.join(TEXTS)}); write what each replies under {TEXTS[0]}")
    if score is None or score not in has:
        wanted = f"rating {named!r}" if named else "rating"
        raise RequestError(f"{there} {wanted}; name the rating under columns.rating")


def _of_texts(
    row: dict[str, Any],
    entries: list[Any],
    column: str,
    ratings: str | None,
    source: schema.Source,
    where: str,
) -> Rated:
    """The replies in `entries` with the ratings in another column."""
    place, rated = f"{where}: column {column!r}", Rated()
    scores = None if ratings is None else as_list(row.get(ratings))
    if not any(map(says, entries)):
        return Rated(null=len(entries))
    if ratings in row and not says(row[ratings]):
        return Rated(unrated=[None] * len(entries))
    if not isinstance(scores, list):
        raise RequestError(
            f"{place} has replies without ratings; write objects with {TEXTS[0]} and {USUAL['rating'][1]}, "
            f"or add a list {USUAL['ratings'][0]!r} beside it (name another one under columns.rating)"
        )
    if len(scores) != len(entries):
        raise RequestError(f"{place} has {len(entries)} replies, but {ratings!r} has {len(scores)} ratings")
    for index, (value, reply) in enumerate(zip(scores, entries, strict=True)):
        number = number_in(value, f"{where}: column {ratings!r}")
        if number is None:
            rated.unrated.append(value)
        else:
            rated.add(number, reply, f"{place}, entry {index}", set(source.ignore))
    return rated


def _ratings(row: dict[str, Any], source: schema.Source) -> str | None:
    """The column with a list of ratings: the one that is named, else the first usual one with a number."""
    if source.columns.rating is not None:
        return source.columns.rating
    lists = {name: as_list(row.get(name)) for name in USUAL["ratings"]}
    there = [name for name, each in lists.items() if isinstance(each, list)]
    rated = (name for name in there if any(map(says, lists[name])))
    empty = (name for name in USUAL["ratings"] if name in row and not says(row[name]))
    return next(rated, None) or next(iter(there), None) or next(empty, None)


def _best_and_lower(rated: Rated, column: str, count: int) -> tuple[Any, Any]:
    """(chosen, rejected) of the `count` replies in `column`: text or messages.

    Chosen is a reply of the highest rating, rejected one of a strictly lower rating that says something else;
    both are drawn by a hash of the list, so the choice is always the same.

    Raises RowError: no_rating (fewer than two rated replies), rating_tie (all rated the same), no_chosen and
    no_rejected (one of two rated replies is empty).
    """
    found = rated.found
    if len(found) < 2:
        raise _too_few(rated, column, count)
    top = max(score for score, _, _ in found)
    best, lower = ([one for one in found if (one[0] == top) == is_top] for is_top in (True, False))
    if not lower:
        raise RowError("rating_tie", f"all {len(found)} replies in {column!r} are rated {top:g}")
    listed = repr([(score, reply) for score, reply, _ in found])
    draw = hashlib.sha256(listed.encode("utf-8", "surrogatepass")).digest()
    low = {said for _, _, said in lower}
    _, chosen, meant = _drawn([one for one in best if low != {one[2]}] or best, draw[:8])
    _, rejected, _ = _drawn([one for one in lower if one[2] != meant] or lower, draw[8:16])
    return chosen, rejected


def _drawn(replies: list[Any], draw: bytes) -> Any:
    return replies[int.from_bytes(draw, "big") % len(replies)]


def _too_few(rated: Rated, column: str, count: int) -> RowError:
    """Why no pair can be made of fewer than two replies."""
    found, empty = rated.found, rated.empty
    if len(found) + len(empty) > 1:
        side = "no_rejected" if found and found[0][0] >= max(empty) else "no_chosen"
        return RowError(side, f"{len(empty)} of the rated replies in {column!r} are empty")
    why = []
    if rated.unrated:
        why.append(f"{len(rated.unrated)} without a number as rating ({repr(rated.unrated[0])[:20]})")
    if rated.untrained:
        why.append(f"{rated.untrained} with a flag of 0")
    if empty or rated.null:
        why.append(f"{len(empty) + rated.null} empty")
    said = f"; {', '.join(why)}" if why else ""
    if rated.unrated and len(rated.unrated) + rated.null == count and not any(map(filled, rated.unrated)):
        said += "; a key or column by another name may be named under columns.rating"
    return RowError("no_rating", f"{len(found)} of {count} replies in {column!r} can be chosen from{said}")
