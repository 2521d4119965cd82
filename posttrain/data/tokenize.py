"""One example to one row of tokens: ids, labels, segments, and the proof that the labels are right.

The text is rendered by the recipe's template and tokenised once, without special tokens, because the template
writes them. The last trained turn is tokenised apart from the prompt before it, as in generation. Every mask
is proved before the row is returned: the tokens decode to the rendered text, and the trained ones to what the
assistant says with its end of turn. Left out: several examples in one sequence (collate.py), slow tokenizers.
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np

from posttrain.data.encode import Asking, Encoded, alone, ids_of
from posttrain.data.fit import fitted
from posttrain.data.kept import refuse_unrendered
from posttrain.data.segments import segment_numbers
from posttrain.data.shapes.messages import reasoning
from posttrain.data.template import Template, load_template
from posttrain.data.texts import texts
from posttrain.data.tokenizers import decode, unicode_form
from posttrain.data.tokens import IGNORED, RowError, TokenRow
from posttrain.data.turns import Turn
from posttrain.errors import RequestError
from posttrain.recipe import schema
from posttrain.types import Example, Message


def tokenize_example(example: Example, tokenizer, data: schema.Data, loss: schema.Loss) -> TokenRow:
    """The tokens of `example`, at most `data.max_length`.

    The assistant turns that `data.train_on` selects are trained, each with its end of turn but nothing after
    it; of plain text everything is trained, the end token included. The last turn of a `partial` example ends
    with its text: no end of turn is added. The first token has no label, because nothing predicts it.

    Raises:
        RowError: overlong, no_answer_marker, no_assistant_turn, empty, unknown_text, mask_mismatch,
            template_error.
        RequestError: the example is too long and `data.overlong` is `error`; the tokenizer is slow; the
            template gives no usable mask.
    """
    return alone(tokenizing(example, tokenizer, data, loss), tokenizer)


def tokenizing(example: Example, tokenizer, data: schema.Data, loss: schema.Loss) -> Asking[TokenRow]:
    """`tokenize_example` as work that may be done together with that of others."""
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(
            "the tokenizer is a slow one; masks need the character offsets of a fast tokenizer"
        )
    text, turns, cut = _render(example, tokenizer, data)
    found = yield text, cut
    if found.decoded != text:
        _prove_text(text, found.starts, found.ends)
    _refuse_unknown(text, found, tokenizer)

    labels = np.full(len(found.ids), IGNORED, dtype=np.int32)
    segment_ids = np.zeros(len(found.ids), dtype=np.int32)
    segments = 0
    for turn, inside in zip(turns, _inside(turns, found), strict=True):
        _prove_turn(text, turn, inside, found, tokenizer)
        labels[inside] = found.ids[inside]
        numbers = segment_numbers(text, turn, found.starts[inside], found.ends[inside], loss)
        segment_ids[inside] = np.where(numbers > 0, numbers + segments, 0) if segments else numbers
        segments += int(numbers[-1] if found.rising and len(numbers) else numbers.max(initial=0))

    row = fitted(found.ids, labels, segment_ids, data, example.where, gaps=loss.segment == "step")
    row.p = example.p
    return row


def conversation(example: Example) -> list[Message]:
    """The messages of an example; a prompt is a user turn, its completion an assistant turn."""
    if example.messages is not None:
        return example.messages
    messages: list[Message] = []
    if example.prompt:
        messages.append({"role": "user", "content": example.prompt})
    if example.completion is not None:
        messages.append({"role": "assistant", "content": example.completion})
    return messages


def each_turn(example: Example) -> list[Example]:
    """One example for each assistant turn that is trained, which ends with it."""
    if example.messages is None:
        return [example]
    spoken = [
        k for k, m in enumerate(example.messages) if m["role"] == "assistant" and m.get("trained", True)
    ]
    return [replace(example, messages=example.messages[: k + 1]) for k in spoken]


def prompt_text(example: Example, template: Template) -> str:
    """The text that generation starts from. Raises `RowError`, and `RequestError` where the template leaves
    out something of the prompt."""
    messages = conversation(example)
    refuse_unrendered(example, template, messages)
    return template.asking(messages, example.tools, example.template_options)


def _template(data: schema.Data, tokenizer, plain_text: bool = False) -> Template:
    if plain_text:
        return load_template("plain", tokenizer)
    return load_template(data.template, tokenizer, data.template_options)


def normalised(value: Any, tokenizer) -> Any:
    """`value` with its texts in the Unicode form that the tokenizer normalises to, so that the offsets of its
    tokens are those of the text."""
    form = unicode_form(tokenizer)
    return value if form is None else _in_form(value, form)


def _in_form(value: Any, form: str) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize(form, value)
    if isinstance(value, dict):
        found = {_in_form(key, form): _in_form(each, form) for key, each in value.items()}
        if len(found) < len(value):
            raise RowError("bad_call", f"two keys are the same in {form}, to which the tokenizer normalises")
        return found
    return [_in_form(each, form) for each in value] if isinstance(value, list) else value


def _render(example: Example, tokenizer, data: schema.Data) -> tuple[str, list[Turn], int | None]:
    """The text, the spans to train on, and where the text may be split before it is tokenised."""
    plain_text = example.messages is None and not example.prompt
    template = _template(data, tokenizer, plain_text)
    messages, tools = conversation(example), example.tools
    if not all(map(str.isascii, texts(example))):  # ASCII is the same in every Unicode form
        messages, tools = normalised(messages, tokenizer), normalised(tools, tokenizer)
    refuse_unrendered(example, template, messages)
    try:
        text, turns = template.turns(messages, data.train_on != "assistant", tools, example.template_options)
        text, muted = (
            _muted(example, template, messages, tools, text) if data.train_on == "all" else (text, [])
        )
    except RequestError as error:
        raise RequestError(f"{example.where}: {error}") from error
    if example.partial:
        text, turns = _stopped_short(text, turns, messages[-1])
    if plain_text or data.train_on == "all":
        content_end = turns[-1].content_end if turns else len(text)
        return text, _around(muted, content_end, len(text)), None
    if not turns:
        raise RowError("empty", "the conversation has no assistant turn to train on")
    return text, turns, turns[-1].begin


def _muted(
    example: Example, template: Template, messages: list[Message], tools: Any, text: str
) -> tuple[str, list[Turn]]:
    """The text, and the replies in it that `train_on: all` leaves out, because they have weight 0."""
    if all(turn.get("trained", True) for turn in messages):
        return text, []
    others: list[Message] = [{**turn, "trained": not turn.get("trained", True)} for turn in messages]
    whole, turns = template.turns(others, False, tools, example.template_options)
    if not messages[-1].get("trained", True):
        return whole, turns
    if turns and not text.startswith(whole[: turns[-1].end]):
        raise RowError(
            "template_error", "the template changes a reply of weight 0, so that it cannot be masked"
        )
    return text, turns


def _around(muted: list[Turn], content_end: int, end: int) -> list[Turn]:
    """All of a text of `end` characters but `muted`."""
    begins, ends = [0, *(turn.end for turn in muted)], [*(turn.begin for turn in muted), end]
    found = [Turn(a, b, b) for a, b in zip(begins, ends, strict=True) if a < b]
    if found and found[-1].end == end:
        found[-1] = replace(found[-1], content_end=max(content_end, found[-1].begin))
    return found


def _stopped_short(text: str, turns: list[Turn], reply: Message) -> tuple[str, list[Turn]]:
    """Text and turns up to the end of what `reply` says: what would close its turn is cut off, and behind a
    thought without a reply what would close the thought."""
    if reply["role"] != "assistant":
        raise RowError("no_assistant_turn", "only an assistant turn can be a prefix")
    last = turns[-1]
    said = text[last.begin : last.content_end]
    whole = reply["content"] if reply["content"].strip() else reasoning(reply)
    if reply.get("tool_calls"):
        whole = said
    trimmed = whole.strip()
    kept = next((each for each in (whole, trimmed) if each in said), None)
    if kept is None and trimmed.endswith(said.strip()):
        kept = said.strip()  # the rest is in the prompt, which opens the thought
    if kept is None:
        raise RowError("template_error", "the template changes the text of the last message")
    end = last.begin + said.rindex(kept) + len(kept)
    return text[:end], [*turns[:-1], Turn(last.begin, end, end)]


def _round_trip(text: str, tokenizer) -> str:
    """`text` after the tokenizer's own normalisation."""
    return decode(ids_of(text, tokenizer), tokenizer)


def _refuse_unknown(text: str, found: Encoded, tokenizer) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:  # GPT-2 has one token for both
        return
    where = np.flatnonzero(found.ids == unknown)
    if len(where):
        piece = text[found.starts[where[0]] : found.ends[where[0]]]
        raise RowError("unknown_text", f"the tokenizer has no token for {piece!r}")


def _prove_text(text: str, starts: np.ndarray, ends: np.ndarray) -> None:
    """Proof for a tokenizer that normalises: no characters but spaces are without a token."""
    reached = np.concatenate([[0], np.maximum.accumulate(ends)])
    gaps = zip(reached, [*starts, len(text)], strict=True)
    lost = "".join(text[a:b] for a, b in gaps if a < b).strip()
    if lost:
        raise RowError("mask_mismatch", f"the tokens lose {lost[:40]!r}")


def _inside(turns: list[Turn], found: Encoded) -> list[slice]:
    """The tokens that begin in each turn: one that starts before it is part of the prompt, even if it reaches
    into the turn."""
    if found.rising:
        at = found.starts.searchsorted([edge for turn in turns for edge in (turn.begin, turn.end)])
        return [slice(a, b) for a, b in at.reshape(-1, 2).tolist()]
    inside = [np.flatnonzero((found.starts >= turn.begin) & (found.starts < turn.end)) for turn in turns]
    return [slice(each[0], each[-1] + 1) if len(each) else slice(0, 0) for each in inside]


def _prove_turn(text: str, turn: Turn, inside: slice, found: Encoded, tokenizer) -> None:
    """Proof that the trained tokens are the turn with its end, not a character more or less.

    White space at its beginning may be in a token of the prompt, which is not trained; other text may not.
    """
    ids, first = found.ids, inside.start
    before = 0
    if 0 < first < inside.stop:
        before = int(found.ends[first - 1] if found.rising else found.ends[:first].max())
    if before > turn.begin and (swallowed := text[turn.begin : before].strip()):
        token = tokenizer.convert_ids_to_tokens(int(ids[first - 1]))
        raise RowError(
            "mask_mismatch",
            f"the token {token!r} begins in the prompt and contains {swallowed[:40]!r} of the reply, so it "
            "cannot be trained",
        )
    expected = text[max(turn.begin, before) : turn.end]
    trained = ids[inside].tolist()
    got = decode(trained, tokenizer)
    if got == expected or got == _round_trip(expected, tokenizer):
        return
    # some decoders (Llama 2's) drop the space that their first token begins with
    ahead = ids[max(0, first - 1) : first].tolist()
    if decode(ahead + trained, tokenizer) != decode(ahead, tokenizer) + expected:
        raise RowError(
            "mask_mismatch", f"the trained tokens end with {got[-60:]!r}, not with {expected[-60:]!r}"
        )
