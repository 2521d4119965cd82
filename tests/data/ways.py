"""What trains a row of a case under a template: as it is, or what to write instead, tried in a fixed order.

A way is proved by the same verdict as a cell, and by what is trained: every reply of the row, calls and
thoughts included, unless the way says that it leaves the thought out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from posttrain.recipe.schema import Source
from tests.data.families import CASES, ORDER, OWN, family, verdict

NOT_AS_IT_IS = re.compile("refused|each:|thinking off")
"""A cell of a case that needs a way."""


def _same(row: dict) -> dict:
    return row


def _joined(row: dict) -> dict | None:
    """The text of the system message at the beginning of the first user message."""
    system, *turns = row["messages"]
    if system["role"] != "system":
        return None
    said = f"{system['content']}\n\n{turns[0]['content']}"
    return {**row, "messages": [turns[0] | {"content": said}, *turns[1:]]}


def _in_text(begin: str, end: str) -> Callable[[dict], dict | None]:
    """The thought of the last reply in its text, between two marks."""

    def made(row: dict) -> dict | None:
        *turns, reply = row["messages"]
        if "reasoning_content" not in reply:
            return None
        said = f"{begin}{reply['reasoning_content']}{end}{reply['content']}"
        return {"messages": [*turns, {"role": "assistant", "content": said}]}

    return made


def _apart(row: dict) -> dict | None:
    """The thought in the text of the last reply as `reasoning_content`."""
    *turns, reply = row["messages"]
    found = re.fullmatch(r"<think>\n(.*)\n</think>\n\n(.*)", reply["content"], re.S)
    if not found:
        return None
    return {"messages": [*turns, reply | {"reasoning_content": found[1], "content": found[2]}]}


@dataclass(frozen=True)
class Way:
    """What to write, and what that changes: the row (None where it is not of that kind) or settings."""

    said: str
    row: Callable[[dict], dict | None] = _same
    train_on: str = "assistant"
    options: dict = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    template: str = ""
    mark: str = ""
    """What the template must write for the way to make sense under it."""


AS_IT_IS = Way("")
EACH = Way("`data.train_on: each`", train_on="each")
OFF = Way("`data.template_options: {enable_thinking: false}`", options={"enable_thinking": False})
BOTH = Way(f"{OFF.said} and {EACH.said}", train_on="each", options=OFF.options)
THINKING = "`data.template_options: {thinking: true}`"
OTHER = Way("none but another template, such as `data.template: chatml`", template=f"{OWN}chatml")
WAYS = (
    EACH,
    OFF,
    BOTH,
    Way("the system message's text before that of the first user message", _joined),
    Way("the thought in the text, as `[THINK]...[/THINK]`", _in_text("[THINK]", "[/THINK]"), mark="[THINK]"),
    Way("the thought in the text, as `<think>...</think>`", _in_text("<think>\n", "\n</think>\n\n")),
    Way("the thought as `reasoning_content`", _apart),
    Way(THINKING, options={"thinking": True}),
    Way(
        f"the thought in the text, as `<think>...</think>`, and {THINKING}",
        _in_text("<think>\n", "\n</think>\n\n"),
        options={"thinking": True},
    ),
    Way("`ignore: [reasoning_content]` on the source: without the thought", ignore=("reasoning_content",)),
    OTHER,
)
"""In the order in which they are tried."""
CELLS = {
    AS_IT_IS.said: "",
    EACH.said: "each: ",
    OFF.said: "thinking off: ",
    BOTH.said: "thinking off, each: ",
}


@cache
def judged(name: str, case: str, said: str) -> tuple[str, str]:
    """The verdict of a case by the way that is `said`, and what is trained or the refusal; a verdict of
    wrong, or a part of the row that is lost, is an `AssertionError`."""
    way = next(way for way in (AS_IT_IS, *WAYS) if way.said == said)
    row = way.row(CASES[case])
    replies = [turn for turn in CASES[case]["messages"] if turn["role"] == "assistant"]
    unfit = way.train_on == "each" and len(replies) == 1
    unfit = unfit or ("enable_thinking" in way.options and case in ("reasoning", "thought"))
    if row is None or unfit or (way.ignore and not set(way.ignore) & set(replies[-1])):
        return "refused", "not of that kind"
    if way.mark not in family(name).source:
        return "refused", "a mark that the template does not know"
    source = Source(name="s", path="x", ignore=list(way.ignore))
    found, trained = verdict(way.template or name, row, way.train_on, source, **way.options)
    if found != "refused":
        assert found in ORDER[: ORDER.index("wrong text")], (name, case, said, found)
        for text in _says(replies, way):
            assert text in trained, (name, case, said, text, trained)
    return found, trained


def _says(replies: list[dict], way: Way) -> list[str]:
    """What must be among the trained text: names of calls, replies, thoughts."""
    found = [call["function"]["name"] for turn in replies for call in turn.get("tool_calls", ())]
    for turn in replies:
        found += re.split("</?think>", turn["content"])
        found += [] if way.ignore else [turn.get("reasoning_content", "")]
    return [text.strip() for text in found]


def cell(name: str, case: str) -> tuple[str, str]:
    """As `verdict`, by the first setting that trains: as it is, `train_on: each`, thinking off, both."""
    for said, ahead in CELLS.items():
        found, trained = judged(name, case, said)
        if found != "refused":
            return f"{ahead}{found}", trained
    return judged(name, case, AS_IT_IS.said)


def way_round(name: str, case: str) -> str | None:
    """What to write that trains a case which does not train as it is; None where no way does."""
    return next((way.said for way in WAYS if judged(name, case, way.said)[0] != "refused"), None)
