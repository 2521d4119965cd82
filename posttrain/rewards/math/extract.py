r"""Where a completion gives its final answer.

Text before the last `</think>` does not count, and an unclosed `<think>` gives no answer. Then, in this
order: the last balanced `\boxed{}` or `\fbox{}` (boxes joined by a comma, `and` or `or` are one list), `final
answer is`, `answer is` or `Answer:`, `####`, and for `math` a completion that is a single line. Only the text
around the last box and the end of the completion are searched, so that ten megabytes take milliseconds. Left
out: comparing the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain.rewards.math.limits import LONGEST, TooCostly
from posttrain.rewards.math.prose import last_match, last_number, number_after
from posttrain.rewards.simple.visible import after_thinking

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?P<bare>[0-9A-Za-z.,/+-]+))|\\.|[{}]", re.DOTALL)
BEFORE, AFTER = 20_000, 50_000
"""Characters around the last box that are searched."""
TAIL = 100_000
"""Characters at the end in which phrases are looked for."""
JOINED = re.compile(
    r"[\s$(),;\\]*(?:\\text\s*\{)?\s*(?:(?:and|or|,|;|\\quad|\\qquad|&)[\s$}]*)+(?:\\?[A-Za-z]\w{0,3}\s*=\s*)?[\s$(\\]*"
)
FINAL = re.compile(r"final answer\**\s*(?:is|:)\s*\**:?\s*", re.IGNORECASE)
ANSWER = re.compile(r"\banswer\**\s*(?:is|:)\s*\**:?\s*", re.IGNORECASE)
SENTENCE = re.compile(r"\.\s+(?=[A-Z]|$)|\n|\.?\*\*|\.$")
MINERVA = ("Final Answer: The final answer is", "I hope it is correct")
SHORT = 300
"""Characters of a completion that may be an answer in its entirety."""


@dataclass(frozen=True, slots=True)
class Found:
    """The text of an answer and where it was found."""

    text: str
    place: str
    boxes: tuple[str, ...] = ()
    """The contents of each box, where several are joined."""


def find_answer(completion: str, mode: str = "math", extract: str = "any") -> Found | None:
    """The final answer of `completion`; None if it gives none. See the module for the places.

    Raises:
        TooCostly: the answer has more than 1,000 characters.
    """
    text = after_thinking(completion)
    if text is None or not text or text.isspace():
        return None
    if mode == "strict":
        return _minerva(text)
    if extract == "last_number":
        return _number(text)
    boxes = last_boxes(text)
    if boxes or extract == "boxed":
        return Found(", ".join(boxes), "box", tuple(boxes)) if boxes else None
    if mode == "gsm8k":
        if "####" in text:
            after = number_after(text.rpartition("####")[2][:TAIL])
            return None if after is None else Found(after, "####")
        return _number(text)
    return _phrase(text) or _whole(text)


def last_boxes(text: str) -> list[str]:
    """The contents of the last balanced box, preceded by those of the boxes that are joined to it.

    Raises:
        TooCostly: the last box is too long.
    """
    last = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if last < 0:
        return []
    start, end = max(0, last - BEFORE), min(len(text), last + AFTER)
    boxes = _closed(text, start, end)
    if end < len(text) and (not boxes or boxes[-1][0] < last):
        raise TooCostly("a box that does not close within 50,000 characters")
    if not boxes:
        return []
    run = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[2] : run[0][0]]
        if len(between) > 60 or not JOINED.fullmatch(between):
            break
        run.insert(0, box)
    contents: list[str] = []
    for _, begin, end in run:
        inner = text[begin : end - (text[end - 1 : end] == "}")]
        if len(inner) > LONGEST:
            raise TooCostly(f"an answer of {len(inner):,} characters")
        inner = re.sub(r"\\(?:boxed|fbox)\s*\{", "{", inner).strip()
        if inner not in contents:
            contents.append(inner)
    return contents


def _closed(text: str, start: int, end: int) -> list[tuple[int, int, int]]:
    """(start, start of content, end) of the outermost boxes that close, in order."""
    opened: list[tuple[int, int] | None] = []
    boxes: list[tuple[int, int, int]] = []
    for token in BOX.finditer(text, start, end):
        if token["brace"]:
            opened.append((token.start(), token.end()))
        elif token["bare"]:
            boxes.append((token.start(), token.start("bare"), token.end()))
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            box = opened.pop()
            if box is not None:
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()
                boxes.append((*box, token.end()))
    return boxes


def _phrase(text: str) -> Found | None:
    tail = text[-TAIL:]
    for pattern in (FINAL, ANSWER):
        last = last_match(pattern, tail)
        if last is not None:
            return _sentence(tail[last.end() :], "phrase")
    _, marker, after = tail.rpartition("####")
    return _sentence(after.lstrip(), "####") if marker else None


def _sentence(text: str, place: str) -> Found | None:
    """The text up to the end of its sentence or line."""
    cut = SENTENCE.search(text, 1, LONGEST + 2)
    if cut is None and len(text) > LONGEST:
        raise TooCostly(f"an answer of more than {LONGEST:,} characters")
    text = (text[: cut.start()] if cut else text).strip(" *\n")
    return Found(text, place) if text else None


def _whole(text: str) -> Found | None:
    text = text.strip()
    return Found(text, "whole") if len(text) <= SHORT and "\n" not in text else None


def _minerva(text: str) -> Found | None:
    """The format of Lewkowycz et al. 2022 (arXiv 2206.14858), and nothing else."""
    at = text.rfind(MINERVA[0])
    end = text.find(MINERVA[1], at) if at >= 0 else -1
    if end < 0:
        return None
    inner = text[at + len(MINERVA[0]) : end].strip()
    if len(inner) > LONGEST:
        raise TooCostly(f"an answer of {len(inner):,} characters")
    if not inner.endswith(".") and not inner.endswith(".$"):
        return None
    return Found(inner.removesuffix("."), "Minerva format") if inner != "." else None


def _number(text: str) -> Found | None:
    found = last_number(text)
    return None if found is None else Found(found, "last number")
