"""One example to one row of tokens: ids, labels, segments, and the proof that the labels are right.

The text is rendered by the recipe's template and tokenised once, without special tokens (the
template writes them). The last trained turn is tokenised apart from what it answers, as generation
meets it. Every mask is proved before a row leaves: the tokens decode to the rendered text, the
trained ones to what the assistant says with its end of turn. Left out: several rows in one sequence
(packing belongs to the collator), slow tokenizers.
"""

from __future__ import annotations

import numpy as np

from posttrain.data.template import Turn, load_template
from posttrain.data.tokens import RowError, TokenRow
from posttrain.errors import RequestError
from posttrain.recipe import schema
from posttrain.types import Example, Message

__all__ = ["RowError", "TokenRow", "conversation", "tokenize_example"]
IGNORED = -100


def tokenize_example(example: Example, tokenizer, data: schema.Data, loss: schema.Loss) -> TokenRow:
    """The row of `example`, at most `data.max_length` tokens.

    Trained are the assistant turns (`data.train_on`) with their end of turn, never what stands
    after it; of plain text everything and the end token. The last turn of a `partial` example ends
    with its words: no end of turn is put in. The first token of a row has no label: nothing
    predicts it.

    Raises:
        RowError: overlong, no_answer_marker, empty, unknown_text, mask_mismatch, template_error.
        RequestError: `overlong: error` and a row that is too long; a slow tokenizer; a template
            without a usable mask.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError("the tokenizer is a slow one, without character offsets; no mask")
    text, turns, cut = _render(example, tokenizer, data)
    ids, starts, ends, decoded = _encode(text, cut, tokenizer)
    if decoded != text:
        _prove_text(text, starts, ends)
    _refuse_unknown(text, ids, starts, ends, tokenizer)

    trained = np.zeros(len(ids), dtype=bool)
    segment_ids = np.zeros(len(ids), dtype=np.int32)
    for turn in turns:
        # a token that starts before the turn is part of the prompt, whatever it holds besides
        inside = np.flatnonzero((starts >= turn.begin) & (starts < turn.end))
        _prove_turn(text, turn, inside, ids, ends, tokenizer)
        trained[inside] = True
        numbers = number(text, turn, starts[inside], ends[inside], loss)
        segment_ids[inside] = np.where(numbers > 0, numbers + segment_ids.max(), 0)

    length = len(ids)
    if length > data.max_length and data.overlong == "error":
        raise RequestError(f"{example.where}: {length} tokens, more than data.max_length = {data.max_length}")
    if length > data.max_length and data.overlong == "drop":
        raise RowError("overlong", f"{length} tokens")
    trained[0] = False
    if not trained.any():
        raise RowError("empty", "no token of the row is trained")
    kept = slice(0, data.max_length)
    ids, trained, segment_ids = ids[kept], trained[kept], segment_ids[kept]
    if not trained.any():
        raise RowError("overlong", f"{length} tokens; cut, no trained one is left")
    return TokenRow(
        input_ids=ids,
        labels=np.where(trained, ids, np.int32(IGNORED)),
        segment_ids=_consecutive(np.where(trained, segment_ids, np.int32(0))),
        p=example.p,
        truncated=length > data.max_length,
    )


def conversation(example: Example) -> list[Message]:
    """The messages of an example; a prompt is a user's turn, its completion the assistant's."""
    if example.messages is not None:
        return example.messages
    messages: list[Message] = []
    if example.prompt:
        messages.append({"role": "user", "content": example.prompt})
    if example.completion is not None:
        messages.append({"role": "assistant", "content": example.completion})
    return messages


def _render(example: Example, tokenizer, data: schema.Data) -> tuple[str, list[Turn], int | None]:
    """The text, the spans to train on, and where the text may be cut before it is tokenised."""
    plain_text = example.messages is None and not example.prompt
    template = load_template("plain" if plain_text else data.template, tokenizer)
    messages = conversation(example)
    text, turns = template.turns(messages, last_only=data.train_on != "assistant")
    if example.partial:
        text, turns = _stopped_short(text, turns, messages[-1])
    if plain_text or data.train_on == "all":
        content_end = turns[-1].content_end if turns else len(text)
        return text, [Turn(0, content_end, len(text))], None
    if not turns:
        raise RowError("empty", "the conversation has no assistant turn")
    return text, turns, turns[-1].begin


def _stopped_short(text: str, turns: list[Turn], reply: Message) -> tuple[str, list[Turn]]:
    """Text and turns up to the last word of `reply`: what would close its turn is cut off."""
    if reply["role"] != "assistant":
        raise RowError("no_assistant_turn", "only a reply can stop short")
    last = turns[-1]
    said = text[last.begin : last.content_end]
    kept = reply["content"] if reply["content"] in said else reply["content"].strip()  # trimmed
    end = last.begin + said.rindex(kept) + len(kept)
    return text[:end], [*turns[:-1], Turn(last.begin, end, end)]


def _encode(text: str, cut: int | None, tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Token ids [L], the first and one-past-last character of each, and the text they decode to.

    The text is tokenised in two parts at `cut`; in one where a second part would gain a space
    (tokenizers of the Llama 2 kind).
    """
    parts = [text] if cut is None else [text[:cut], text[cut:]]
    ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for shift, part in zip((0, cut or 0), parts, strict=False):
        if part:
            encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids += encoded["input_ids"]
            for start, end in encoded["offset_mapping"]:
                # where offsets are trimmed, a token of spaces has no width; it stands before
                starts.append(start + shift - (start == end > 0))
                ends.append(end + shift)
    if not ids:
        raise RowError("empty", "the text has no token")
    decoded = _decode(ids, tokenizer)
    if cut is not None and decoded != text:
        whole = _encode(text, None, tokenizer)
        if whole[3] != decoded:
            return whole
    return np.array(ids, dtype=np.int32), np.array(starts), np.array(ends), decoded


def _decode(ids: list[int], tokenizer) -> str:
    """Without transformers' wrapper, which walks over every id in Python."""
    return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def _round_trip(text: str, tokenizer) -> str:
    """What is left of `text` after the tokenizer's own normalisation."""
    return _decode(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer)


def _refuse_unknown(text: str, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, tokenizer) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:  # GPT-2 has one token for both
        return
    where = np.flatnonzero(ids == unknown)
    if len(where):
        piece = text[starts[where[0]] : ends[where[0]]]
        raise RowError("unknown_text", f"the tokenizer has no token for {piece!r}")


def _prove_text(text: str, starts: np.ndarray, ends: np.ndarray) -> None:
    """A tokenizer that normalises: no character is without a token but, at most, spaces."""
    reached = np.concatenate([[0], np.maximum.accumulate(ends)])
    gaps = zip(reached, [*starts, len(text)], strict=True)
    lost = "".join(text[a:b] for a, b in gaps if a < b).strip()
    if lost:
        raise RowError("mask_mismatch", f"tokenising loses {lost[:40]!r}")


def _prove_turn(
    text: str, turn: Turn, inside: np.ndarray, ids: np.ndarray, ends: np.ndarray, tokenizer
) -> None:
    """The trained tokens are the turn with its end, no character more or less."""
    before = ends[: inside[0]].max(initial=0) if len(inside) else 0
    expected = text[max(turn.begin, before) : turn.end]
    got = _decode(ids[inside].tolist(), tokenizer)
    if got != expected and got != _round_trip(expected, tokenizer):
        raise RowError("mask_mismatch", f"trained {got[-60:]!r}, wanted {expected[-60:]!r}")


def _consecutive(segment_ids: np.ndarray) -> np.ndarray:
    """The same segments, numbered 1..S without gaps; 0 stays 0."""
    used = np.unique(segment_ids[segment_ids > 0])
    return np.where(segment_ids > 0, np.searchsorted(used, segment_ids) + 1, 0).astype(np.int32)


def number(text: str, turn: Turn, starts: np.ndarray, ends: np.ndarray, loss: schema.Loss) -> np.ndarray:
    """Segment numbers [T] of a turn's tokens, from their first and one-past-last characters [T].

    `token`: every token its own. `completion`: one. `step`: a new one after each delimiter, which
    belongs to the step it ends; the end of turn belongs to the last step. `answer`: 1 for the
    tokens that hold anything after the last marker, end of turn included, 0 before. Numbers start
    at 1 and rise, gaps possible (two delimiters in one token).

    Raises:
        RowError: no_answer_marker.
        RequestError: the kind needs a marker or a delimiter, and none is given.
    """
    if loss.segment == "token":
        return np.arange(1, len(starts) + 1)
    if loss.segment == "step":
        if not loss.step_delimiter:
            raise RequestError("loss.step_delimiter is empty, but loss.segment is 'step'")
        return np.searchsorted(_step_starts(text, turn, loss.step_delimiter), starts, "right") + 1
    if loss.segment == "answer":
        if not loss.answer_marker:
            raise RequestError("loss.segment 'answer' needs loss.answer_marker")
        at = text.rfind(loss.answer_marker, turn.begin, turn.content_end)
        if at < 0:
            raise RowError("no_answer_marker", f"no {loss.answer_marker!r} in a trained turn")
        # a token that straddles the marker's end already says part of the answer
        return (ends > at + len(loss.answer_marker)).astype(np.int64)
    return np.ones(len(starts), dtype=np.int64)


def _step_starts(text: str, turn: Turn, delimiter: str) -> list[int]:
    """Where the second and later steps begin; a delimiter that ends the content begins none."""
    found, at = [], text.find(delimiter, turn.begin, turn.content_end)
    while at >= 0:
        after = at + len(delimiter)
        if after < turn.content_end:
            found.append(after)
        at = text.find(delimiter, after, turn.content_end)
    return found
