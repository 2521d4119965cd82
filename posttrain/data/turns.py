"""Which spans of a rendered conversation are assistant turns.

The spans come from prefix differences, never from searching for role markers: the prompt that generation
would start from, the conversation before the turn with a generation prompt, must be a prefix of the full
text, and the turn is what follows it, up to and including what closes it. Where the prompt opens a thought
that the template then leaves out of the conversation, or has earlier thoughts that it leaves out, the last
turn is put behind the prompt as it is sampled. A template for which neither holds is refused. Left out:
rendering (rendering.py), what it must say (kept.py), tokens (tokenize.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from posttrain.data.kept import (
    THOUGHT,
    Render,
    refuse_changed,
    refuse_left_out,
    refuse_lost,
    refuse_twice,
    says_all,
)
from posttrain.data.rendering import PROBE
from posttrain.data.shapes.messages import reasoning
from posttrain.data.shapes.thoughts import OPEN
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.types import Message

BRACKETS = ("<", "[")
"""What a mark begins with: one that opens a thought shares it with the one that closes it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn in a text: content in [begin, content_end), what closes it in [content_end, end)."""

    begin: int
    content_end: int
    end: int


def find_turns(
    name: str,
    render: Render,
    ends: tuple[str, ...],
    messages: list[Message],
    last_only: bool,
    switch: str | None = None,
) -> tuple[str, list[Turn]]:
    """The full text, and the assistant turns in it that are trained, or only the last one.

    `ends` are the texts that may close a turn. For messages: `name` is that of the template, `switch` that of
    its variable that turns thinking off where it is false.

    Raises:
        RequestError: an earlier rendering is not a prefix of a later one, which data.train_on can mend.
        RowError: template_error, no_thought.
    """
    text = plain = render(messages, False)
    told = says_all(messages, plain)
    if not told:
        refuse_lost(render, messages)
    spoken = [k for k, turn in enumerate(messages) if turn["role"] == "assistant"]
    spoken = spoken[-1:] if last_only else spoken
    turns = []
    for k in spoken:
        if not messages[k].get("trained", True):
            continue
        prompt = render(messages[:k], True)
        _refuse_unthought(name, prompt, messages, k, switch)
        last = k + 1 == len(messages)
        upto = text if last else render(messages[: k + 1], False)
        if last and not upto.startswith(prompt):
            text = upto = _thought_before(render, messages, prompt, upto) or _behind(
                name, render, ends, messages, prompt, upto, switch
            )
        _prefix(name, prompt, upto, k, "the prompt that generation would start from", last, switch)
        _prefix(name, upto, text, k, "the conversation up to this turn", last, switch)
        turn = _turn(name, ends, len(prompt), upto, k)
        refuse_twice(prompt, upto[turn.begin : turn.content_end], k)
        refuse_changed(messages[k], upto[turn.begin : turn.content_end], k)
        turns.append(turn)
    if not told or text is not plain:
        refuse_left_out(messages, text)
    return text, turns


def _remedy(switch: str | None) -> str:
    off = f"set data.template_options: {{{switch}: false}}, " if switch else ""
    return f"Write the thought into the reply, {off}or choose another data.template"


def _refuse_unthought(name: str, prompt: str, messages: list[Message], k: int, switch: str | None) -> None:
    """Raises `RowError` where the template opens a thought in `prompt`, and reply `k` has none: whether the
    template then leaves it open, out, or writes an empty one, the model would learn not to think."""
    if not _opens_thought(prompt, messages[:k]):
        return
    if not reasoning(messages[k]) and not THOUGHT.search(messages[k]["content"]):
        raise _no_thought(name, OPEN, switch)


def _no_thought(name: str, mark: str, switch: str | None) -> RowError:
    return RowError(
        "no_thought",
        f"a prompt of template {name!r} opens {mark!r}, and the reply does not begin with it: the model "
        f"would be trained on what it never sees. {_remedy(switch)}",
    )


def _thought_before(render: Render, messages: list[Message], prompt: str, text: str) -> str | None:
    """The last turn put behind a `prompt` with thoughts of earlier turns that `text` leaves out, as it is
    sampled (gpt-oss thinks before a call until its final answer is there); None where no turn changes."""
    told = render(messages[:-1], False)
    bare = render([*messages[:-1], {"role": "assistant", "content": PROBE}], False).rpartition(PROBE)[0]
    if not prompt.startswith(told) or bare.startswith(told):
        return None
    opening = prompt[len(told) :]
    at = os.path.commonprefix([text, bare]).rfind(opening)
    return prompt + text[at + len(opening) :] if opening and at >= 0 else text


def _behind(
    name: str,
    render: Render,
    ends: tuple[str, ...],
    messages: list[Message],
    prompt: str,
    text: str,
    switch: str | None,
) -> str:
    """The last turn put behind a `prompt` that opens a thought, as it is sampled; `text` as it is where the
    prompt does not."""
    reply = messages[-1]
    opened = opened_by(render, messages[:-1], prompt)
    header, mark = prompt.removesuffix(opened), opened.strip()
    if not mark or not text.startswith(header):
        return text
    if not reply["content"].lstrip().startswith(mark):
        raise _no_thought(name, mark, switch)
    said = reply["content"].lstrip().removeprefix(mark)
    if opened.endswith("\n"):
        said = said.removeprefix("\n")
    return prompt + said + text[_turn(name, ends, len(header), text, len(messages) - 1).content_end :]


def opened_by(render: Render, asked: list[Message], prompt: str) -> str:
    """What `prompt`, the rendering of `asked` that generation starts from, has behind the header of a reply
    and a conversation has not: an opened thought, or nothing."""
    if _opens_thought(prompt, asked):
        return prompt[prompt.rindex(OPEN) :]
    bare = render([*asked, {"role": "assistant", "content": PROBE}], False).rpartition(PROBE)[0]
    same = os.path.commonprefix([prompt, bare])
    if same != prompt and same.endswith(BRACKETS):
        same = same[:-1]
    return prompt[len(same) :]


def _opens_thought(prompt: str, asked: list[Message]) -> bool:
    """Whether the template opens a thought at the end of `prompt`, and no message of `asked` does."""
    return prompt.rstrip().endswith(OPEN) and not (asked and asked[-1]["content"].rstrip().endswith(OPEN))


def _prefix(name: str, start: str, text: str, k: int, what: str, last: bool, switch: str | None) -> None:
    if text.startswith(start):
        return
    same = next((i for i, (a, b) in enumerate(zip(start, text, strict=False)) if a != b), None)
    at = min(len(start), len(text)) if same is None else same
    found = (
        f"At message {k} (assistant), {what} is not a prefix of the text that follows. "
        f"It continues with {start[at : at + 60]!r}, the text with {text[at : at + 60]!r}"
    )
    if last:
        raise RowError(
            "template_error",
            f"template {name!r} writes a reply otherwise than it asks for one, so the trained tokens cannot "
            f"be found. {found}. {_remedy(switch)}",
        )
    raise RequestError(
        f"template {name!r} drops or changes earlier turns (many drop earlier thoughts), so the trained "
        f"tokens cannot be found: set data.train_on: each or last, or choose another data.template. {found}"
    )


def _turn(name: str, ends: tuple[str, ...], begin: int, text: str, k: int) -> Turn:
    found = [(at, at + len(end)) for end in ends if (at := text.rfind(end, begin)) >= 0]
    closed = [each for each in found if not text[each[1] :].strip()]
    if not closed:
        raise RowError(
            "template_error",
            f"template {name!r} does not end message {k} (assistant) as it ends others: it must end with "
            f"{ends[0]!r}, but ends with {text[max(begin, len(text) - 60) :]!r}",
        )
    return Turn(begin, *min(closed))


def closing(text: str, tokens: list[str]) -> str:
    """Which of the added `tokens` of a tokenizer closes `text`; empty where none does."""
    tail = text.rstrip()
    return max((token for token in tokens if token.strip() and tail.endswith(token)), key=len, default="")
