"""An entry of a list of rated replies, `{text, rating}`: which of its keys has the text and which the rating,
and what it replies.

Its reasoning, calls and flags are those of its message. A key by another name is counted as unused. Left out:
which of the replies a pair is made of (rated.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from posttrain.data.json_rows import type_name
from posttrain.data.shapes.columns import USUAL
from posttrain.data.shapes.messages import TRANSCRIPT, message, read_message, read_messages, speaker
from posttrain.data.shapes.names import (
    CALLS,
    FLAGS,
    REASONING,
    almost,
    as_flag,
    filled,
    like_a_flag,
    says,
    unzipped,
)
from posttrain.data.shapes.reply import may_be_calls
from posttrain.data.shapes.tools import from_json
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.types import Message

TEXTS = ("response", "completion", "text", "content")
"""Usual keys of the text of an entry; the first that has one counts. That of its rating is as of a column."""
SAYS = (*REASONING, *CALLS, *FLAGS)
"""Keys of an entry that say the same as those of a message."""


def as_list(value: Any) -> Any:
    """A list of replies or of ratings where `value` is JSON text of one, as in CSV, or an object of lists of
    one length, as `datasets` reads a Sequence of objects; else as it is."""
    value = from_json(value)
    rows = unzipped(value) if isinstance(value, dict) and filled(value) else None
    return value if rows is None else rows


def key_of_text(entry: dict[str, Any], score: str | None) -> str | None:
    """The key that has the text of `entry`, of which others may be there and empty: Parquet fills them up."""
    has = (name for name in TEXTS if name != score and says(entry.get(name)))
    return next(has, None)


def key_of_rating(entries: Iterable[dict[str, Any]], named: str | None) -> str | None:
    """The key of the rating of `entries`: the one that is `named`, else the first usual one with a number."""
    if named is not None:
        return named
    values = {name: [e[name] for e in entries if name in e] for name in USUAL["rating"]}
    there = [name for name, each in values.items() if each]
    rated = (name for name in there if any(_is_rating(value) for value in values[name]))
    said = (name for name in there if any(filled(value) for value in values[name]))
    return next(rated, None) or next(said, None) or next(iter(there), None)


def read_entry(
    entry: dict[str, Any], text: str | None, score: str, place: str, ignore: set[str]
) -> tuple[Any, bool]:
    """(what an entry replies, whether it is trained): its text or messages, or where it says more than these
    a list of one message.

    Raises:
        RequestError: a key is misspelt or means something else, or the text is neither text nor messages.
        RowError: no_assistant_turn, and those of `read_message`.
    """
    reply = entry[text] if text is not None else None
    if speaker(reply) is not None:
        reply = [reply]
    if not isinstance(reply, str | list | None):
        raise RequestError(f"{place}: {text!r} must be text or messages, not {type_name(reply)}")
    given = {key: each for key, each in entry.items() if filled(each) and key not in (text, score)}
    for key, value in given.items():
        _refuse_other(key, value, place)
    said = {key: given[key] for key in ("role", *SAYS) if key in given}
    turns = isinstance(reply, list) and speaker(reply[0]) is not None
    if not said and (turns or not isinstance(reply, list)):  # as in most
        return reply, True
    whole = {"role": "assistant", "content": None if turns else reply} | said
    found = read_message(whole, place, ignore - {"role", "content"})
    is_trained = found.pop("trained", True)
    more = found.keys() - {"role", "content"}
    if turns and more:
        raise RequestError(
            f"{place}: {min(more)!r} stands beside messages; write it into the message that it belongs to, "
            f"or set ignore: [{min(more)}]"
        )
    if found["role"] != "assistant":
        raise RowError("no_assistant_turn", f"{place} has the role {found['role']}")
    if turns:
        return reply, is_trained
    return ([found] if more else found["content"]), is_trained


def unread_keys(entries: Iterable[dict[str, Any]], score: str | None) -> list[str]:
    """The keys with content of `entries` that nothing reads, each once."""
    found: dict[str, None] = {}
    for entry in entries:
        read = (*SAYS, "role", score, key_of_text(entry, score))
        found |= dict.fromkeys(key for key, value in entry.items() if key not in read and says(value))
    return [*found]


def number_in(value: Any, place: str) -> float | None:
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


def last_message(reply: Any, place: str, ignore: set[str]) -> Message | None:
    """The last message of a reply, text or messages, which is what of it is trained; None where it has none.

    Raises RequestError, RowError (no_assistant_turn), and as `read_messages`.
    """
    if isinstance(reply, str) and not TRANSCRIPT.match(reply):
        return message("assistant", reply)
    turns = read_messages(reply, place, ignore) if says(reply) else []
    if turns and turns[-1]["role"] != "assistant":
        raise RowError("no_assistant_turn", f"{place} does not end in a reply")
    return turns[-1] if turns else None


def _refuse_other(key: str, value: Any, place: str) -> None:
    """Raises `RequestError` where a key with content is almost one that is read, may say what is
    trained, or has another value."""
    near = _near(key)
    if near in FLAGS and as_flag(value) in (0, 1):  # ignored, it would let the reply be trained
        raise RequestError(f"{place}: key {key!r} is not read; did you mean {near!r}? Rename it")
    if near is not None and near not in FLAGS:
        raise RequestError(
            f"{place}: key {key!r} is not read; did you mean {near!r}? Rename it, or set ignore: [{key}]"
        )
    if like_a_flag(key):
        raise RequestError(
            f"{place}: key {key!r} may say what is trained, and is not read; write it as 'weight', 0 or 1, "
            f"or set ignore: [{key}]"
        )
    must = ""
    if key in FLAGS and value not in (0, 1):
        must = "0 or 1 (false or true)"
    elif key in CALLS and not may_be_calls(value):
        must = "calls of tools"
    elif key in REASONING and not isinstance(value, str):
        must = "text"
    if must:
        # ignored, a text that says 0 would let the reply be trained
        masks = key in FLAGS and as_flag(value) == 0
        remedy = "write it as a number" if masks else f"set ignore: [{key}] if it means something else"
        raise RequestError(f"{place}: {key!r} must be {must}, not {repr(value)[:60]}; {remedy}")


def _is_rating(value: Any) -> bool:
    """Whether `number_in` finds a number in `value`, or refuses it."""
    try:
        return number_in(value, "") is not None
    except RequestError:
        return True


@lru_cache(maxsize=256)
def _near(key: str) -> str | None:
    """The key of `SAYS` that `key` is almost, if it is none itself."""
    return None if key in SAYS else almost(key, SAYS)
