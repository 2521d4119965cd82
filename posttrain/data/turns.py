"""Which spans of a rendered conversation are assistant turns.

The spans come from prefix differences, never from searching for role markers: the prompt that generation
would start from, the conversation before the turn with a generation prompt, must be a prefix of the full
text, and the turn is what follows it, up to and including what closes it. Where the prompt opens a thought
that the template then leaves out of the conversation, or has earlier thoughts that it leaves out, the last
turn is put behind the prompt as it is sampled. A template for which neither holds is refused. Left out:
rendering (rendering.py), tokens (tokenize.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from posttrain.data.rendering import PROBE
from posttrain.data.shapes.messages import reasoning
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.types import Message

REMEDY = (
    "Write the thought into the reply, set data.template_options (often enable_thinking: false), or choose "
    "another data.template"
)
OPENED = "<think>"
THOUGHT = re.compile(r"</?think>")
Render = Callable[[list[Message], bool], str]
"""(messages, add_generation_prompt) -> text, by one template with its tools and options."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn in a text: content in [begin, content_end), what closes it in [content_end, end)."""

    begin: int
    content_end: int
    end: int


def find_turns(
    name: str, render: Render, ends: tuple[str, ...], messages: list[Message], last_only: bool
) -> tuple[str, list[Turn]]:
    """The full text, and the assistant turns in it that are trained, or only the last one.

    `ends` are the texts that may close a turn; `name` is that of the template, for messages.

    Raises:
        RequestError: an earlier rendering is not a prefix of a later one, or a turn has no end.
        RowError: template_error, no_thought.
    """
    text = render(messages, False)
    spoken = [k for k, turn in enumerate(messages) if turn["role"] == "assistant"]
    spoken = spoken[-1:] if last_only else spoken
    turns = []
    for k in spoken:
        if not messages[k].get("trained", True):
            continue
        prompt = render(messages[:k], True)
        last = k + 1 == len(messages)
        upto = text if last else render(messages[: k + 1], False)
        if last and not upto.startswith(prompt):
            text = upto = _thought_before(render, messages, prompt, upto) or _behind(
                name, render, ends, messages, prompt, upto
            )
        _prefix(name, prompt, upto, k, "the prompt that generation would start from", last)
        _prefix(name, upto, text, k, "the conversation up to this turn", last)
        turn = _turn(name, ends, len(prompt), upto, k)
        _refuse_twice(prompt, upto[turn.begin : turn.content_end], k)
        _refuse_changed(messages[k], upto[turn.begin : turn.content_end], k)
        turns.append(turn)
    _refuse_swallowed(messages, text)
    return text, turns


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
    name: str, render: Render, ends: tuple[str, ...], messages: list[Message], prompt: str, text: str
) -> str:
    """The last turn put behind a `prompt` that opens a thought, as it is sampled; `text` as it is where the
    prompt does not."""
    reply = messages[-1]
    opened = opened_by(render, messages[:-1], prompt)
    header, mark = prompt.removesuffix(opened), opened.strip()
    if not mark or not text.startswith(header):
        return text
    if not reply["content"].lstrip().startswith(mark):
        raise RowError(
            "no_thought",
            f"a prompt of template {name!r} opens {mark!r}, and the reply does not begin with it: the model "
            f"would be trained on what it never sees. {REMEDY}",
        )
    said = reply["content"].lstrip().removeprefix(mark)
    if opened.endswith("\n"):
        said = said.removeprefix("\n")
    return prompt + said + text[_turn(name, ends, len(header), text, len(messages) - 1).content_end :]


def opened_by(render: Render, asked: list[Message], prompt: str) -> str:
    """What `prompt`, the rendering of `asked` that generation starts from, has behind the header of a reply
    and a conversation has not: an opened thought, or nothing."""
    bare = render([*asked, {"role": "assistant", "content": PROBE}], False).rpartition(PROBE)[0]
    return prompt[len(os.path.commonprefix([prompt, bare])) :]


def _prefix(name: str, start: str, text: str, k: int, what: str, last: bool) -> None:
    if text.startswith(start):
        return
    same = next((i for i, (a, b) in enumerate(zip(start, text, strict=False)) if a != b), None)
    at = min(len(start), len(text)) if same is None else same
    remedy = REMEDY if last else "Set data.train_on: each or last, or choose another data.template"
    raise RequestError(
        f"template {name!r}: at message {k} (assistant), {what} is not a prefix of the text that "
        f"follows, so the trained tokens cannot be found. It continues with {start[at : at + 60]!r}, "
        f"the text with {text[at : at + 60]!r}. {remedy}"
    )


def _turn(name: str, ends: tuple[str, ...], begin: int, text: str, k: int) -> Turn:
    found = [(at, at + len(end)) for end in ends if (at := text.rfind(end, begin)) >= 0]
    closed = [each for each in found if not text[each[1] :].strip()]
    if not closed:
        raise RequestError(
            f"template {name!r}: message {k} (assistant) must end with {ends[0]!r}, "
            f"but ends with {text[max(begin, len(text) - 60) :]!r}"
        )
    return Turn(begin, *min(closed))


def _refuse_changed(turn: Message, said: str, k: int) -> None:
    """Raises `RowError` where the text of a turn lacks what its message says; white space may differ."""
    got = ""
    wanted = [*THOUGHT.split(turn["content"]), reasoning(turn)]
    wanted += [call["function"]["name"] for call in turn.get("tool_calls", ())]
    for each in wanted:
        if each.strip() in said:
            continue
        got = got or _squeezed(said)
        if _squeezed(each) not in got:
            raise RowError("template_error", f"the template changes the text of message {k}")


def _refuse_twice(prompt: str, said: str, k: int) -> None:
    """Raises `RowError` where `prompt` opens a thought and the turn opens it once more."""
    if prompt.rstrip().endswith(OPENED) and OPENED in said:
        raise RowError(
            "template_error",
            f"the template opens the thought of message {k} twice; write it under 'reasoning_content', "
            f"without {OPENED}",
        )


def _refuse_swallowed(messages: list[Message], text: str) -> None:
    """Raises `RowError` where a message that is not the assistant's is not in the text."""
    got = None
    for k, turn in enumerate(messages):
        content = turn["content"].strip()
        if turn["role"] == "assistant" or content in text:
            continue
        got = _squeezed(text) if got is None else got
        spellings = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
        if not any(_squeezed(each) in got for each in spellings):
            raise RowError("template_error", f"the template leaves out message {k} ({turn['role']})")


def _squeezed(text: str) -> str:
    return "".join(text.split())


def closing(text: str, tokens: list[str]) -> str:
    """Which of the added `tokens` of a tokenizer closes `text`; empty where none does."""
    tail = text.rstrip()
    return max((token for token in tokens if token.strip() and tail.endswith(token)), key=len, default="")
