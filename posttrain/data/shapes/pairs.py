"""The shape `pairs`: a row is two examples that differ in the last reply, chosen and rejected.

`prompt`/`chosen`/`rejected` as text (an alpaca `input` is joined as in rows.py) or as message lists,
conversations under `chosen` and `rejected`, HH-RLHF transcripts, and lists of rated replies, of which the
best and a lower one are taken. With `rejected_is_prefix: true` (or `chosen_is_prefix`) that side is a prefix
of a solution, for example up to its first wrong step (arXiv 2406.14532), and gets no end of turn. A pair
without a difference, with an empty side or with two different prompts is dropped and counted. Left out:
which of the rated replies (rated.py), unpaired rows with a label (labelled.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from posttrain.data.cells import refuse_garbled, with_messages
from posttrain.data.json_rows import type_name
from posttrain.data.shapes.columns import USUAL, column, find_columns, refuse_shared, usual_names
from posttrain.data.shapes.labelled import ending_in_reply, truth
from posttrain.data.shapes.messages import (
    ROLES,
    TRANSCRIPT,
    listed,
    message,
    read_messages,
    read_prompt,
    speaker,
)
from posttrain.data.shapes.names import says
from posttrain.data.shapes.rated import SIDES, ignored_in_entries, of_ratings
from posttrain.data.shapes.reply import refuse_untrained
from posttrain.data.shapes.rows import to_example
from posttrain.data.shapes.same import meaning
from posttrain.data.shapes.turn_order import OPENING
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema
from posttrain.types import Example, Message

ASKED = ("prompt", "messages")
"""What the column with the prompt beside the replies may mean: a text, or a conversation without its last
reply."""


def to_pair(row: dict[str, Any], source: schema.Source, where: str) -> tuple[Example, Example]:
    """(chosen, rejected) of `row`, with the same prompt.

    Raises:
        RequestError: a column does not exist, or contains neither text nor messages.
        RowError: no_chosen, no_rejected, equal_pair, prompt_mismatch, no_rating, rating_tie, empty, and those
            of `to_example`.
    """
    ignored = ignored_in_entries(row, source)
    if source.columns.reasoning is not None:
        raise RequestError(
            f"{where}: source {source.name!r} names columns.reasoning, but of a pair it is not known which "
            "reply was thought about so; write it into the message of the reply, and leave the key out"
        )
    flags = refuse_untrained(row, source, where)
    row, unused = of_ratings(row, source, where)
    names = [column(row, source, side) or side for side in SIDES]
    for side, name in zip(SIDES, names, strict=True):
        if name not in row:
            advice = f"name the column under columns.{side}"
            if column(row, source, "label") in row:
                advice += "; single replies with a label need preference.loss: kto"
            raise RequestError(
                f"{where}: source {source.name!r} has no column {name!r}{did_you_mean(name, row)}; {advice}"
            )
    asked = {what: column(row, source, what) for what in ASKED}
    refuse_shared({**asked, **dict(zip(SIDES, names, strict=True))}, source, where)
    row = with_messages(row, (*names, *asked.values()))
    chosen, rejected = (
        _side(row, name, side, source, where) for side, name in zip(SIDES, names, strict=True)
    )
    if (chosen.messages is None) != (rejected.messages is None):  # a thought or a flag on one side
        for side in (chosen, rejected):
            _as_conversation(side)
    one, other = (_turns(side) for side in (chosen, rejected))
    if meaning(one[:-1]) != meaning(other[:-1]):
        raise RowError("prompt_mismatch", "chosen and rejected answer different prompts")
    chosen.partial, rejected.partial = (_is_prefix(row, side, where) for side in SIDES)
    if meaning(one[-1:]) == meaning(other[-1:]) and chosen.partial == rejected.partial:
        raise RowError("equal_pair", "chosen and rejected are the same")
    if rejected.messages is not None:  # one prompt, where both mean the same
        rejected.messages = [*one[:-1], other[-1]]
    chosen.ignored = tuple(sorted(ignored | {*chosen.ignored}))
    # each side was read without the column of the other
    read = {*names, *flags, *(f"{side}_is_prefix" for side in SIDES)}
    chosen.unused = rejected.unused = unused + tuple(
        key for key in chosen.unused if key in rejected.unused and key not in read
    )
    return chosen, rejected


def _is_prefix(row: dict[str, Any], side: str, where: str) -> bool:
    value = row.get(f"{side}_is_prefix")
    found = truth(value) if says(value) else False
    if found is None:
        raise RequestError(f"{where}: {side}_is_prefix must be true or false, not {value!r}")
    return found


def _side(row: dict[str, Any], name: str, side: str, source: schema.Source, where: str) -> Example:
    value = listed(row[name]) if isinstance(row[name], dict) else row[name]
    if not says(value):
        raise RowError(f"no_{side}", f"column {name!r} is empty")
    refuse_garbled(value, where, name)
    if isinstance(value, str) and TRANSCRIPT.match(value):
        value = read_messages(value, f"{where}: column {name!r}")
    if not isinstance(value, str | list):
        raise RequestError(f"{where}: {name!r} must be text or messages, not {type_name(value)}")
    find_columns(row, source, where, ASKED)
    prompt = column(row, source, *ASKED)
    opening = _opening(row, prompt, where)
    taken = usual_names("completion", "messages", "text") - {prompt}
    kept = {k: v for k, v in row.items() if k not in taken}
    if isinstance(value, str) and isinstance(row.get(prompt), str) and TRANSCRIPT.match(row[prompt]):
        value = value.strip()  # as of a whole transcript
    columns = replace(source.columns, completion=None, messages=None, text=None)
    # the side is written under these, which the row itself may have and the source ignore
    source = replace(source, ignore=[key for key in source.ignore if key not in ("completion", "messages")])
    if isinstance(value, list) and not _is_reply(value):
        # a whole conversation: a prompt beside it is the same, or it is not known which is meant
        value = _with_system(value, opening, where, {*source.ignore})
        if value is None:
            raise RowError("prompt_mismatch", f"{name!r} does not begin with what is in {prompt!r}")
        kept = {k: v for k, v in kept.items() if k != prompt} | {"messages": value}
        mapped = replace(source, format="messages", columns=replace(columns, prompt=None))
        return ending_in_reply(to_example(kept, mapped, where, trained=False))
    if prompt is None:
        raise RequestError(
            f"{where}: {name!r} is a reply, and no column with the prompt was found; the row has "
            f"{', '.join(map(str, row))}. Name the column under columns.prompt of source {source.name!r}"
        )
    named = replace(columns, prompt=prompt)
    mapped = replace(source, format="prompt_completion", columns=named)
    if source.columns.prompt is None and prompt in USUAL["prompt"]:
        mapped = replace(mapped, columns=columns)  # found by its usual name, which has a meaning of its own
    return ending_in_reply(
        to_example(kept | {prompt: opening, "completion": value}, mapped, where, trained=False)
    )


def _opening(row: dict[str, Any], prompt: str | None, where: str) -> Any:
    """The value of the prompt's column, a transcript as messages."""
    value = None if prompt is None else row.get(prompt)
    refuse_garbled(value, where, str(prompt))
    value = listed(value) if isinstance(value, dict) else value
    turns = read_prompt(value, f"{where}: column {prompt!r}") if isinstance(value, str) else None
    return value if turns is None else turns


def _is_reply(messages: list[Any]) -> bool:
    """Whether a list of messages opens with the assistant: it is what follows the prompt."""
    first = messages[0] if messages else None
    return isinstance(first, dict) and ROLES.get(str(speaker(first))) == "assistant"


def _with_system(messages: list[Any], opening: Any, where: str, ignore: set[str]) -> list[Any] | None:
    """A conversation that begins with the prompt `opening`, text or messages, and the system messages of that
    prompt where it has none itself; None where it begins otherwise."""
    turns = read_messages(messages, where, ignore)
    spoken = [turn for turn in turns if turn["role"] not in OPENING]
    if not isinstance(opening, list):
        asked = {turn["content"].strip() for turn in spoken if turn["role"] == "user"}
        return messages if opening in (None, "") or str(opening).strip() in asked else None
    given = read_messages(opening, where, ignore)
    asked = [turn for turn in given if turn["role"] not in OPENING]
    first = [turn for turn in given if turn["role"] in OPENING]
    own = [turn for turn in turns if turn["role"] in OPENING]
    if meaning(spoken[: len(asked)]) != meaning(asked):
        return None
    if not first or meaning(own[: len(first)]) == meaning(first):
        return messages
    return [*opening[: len(first)], *messages] if not own and given[: len(first)] == first else None


def _as_conversation(example: Example) -> None:
    """Makes messages of `prompt` and `completion`, so that it compares with those of the other side."""
    if example.messages is None:
        example.messages = [message("user", example.prompt), message("assistant", example.completion)]
        example.prompt = example.completion = None


def _turns(example: Example) -> list[Message]:
    if example.messages is not None:
        return example.messages
    return [message("user", example.prompt or ""), message("assistant", example.completion or "")]
