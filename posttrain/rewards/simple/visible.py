"""What a reader sees of a completion: the text after the thinking, and the answer that it marks.

All rewards share the rule for thinking; the simple ones share the rest. Everything is linear in the text.
Left out: mathematical notation; the reward `math` reads it in its own way.
"""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s?\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
OPEN, CLOSE = "<think>", "</think>"
STATED = re.compile(r"(?:\banswer\s*(?:is\b|:)|####)[\s:*_]*", re.IGNORECASE)
"""What announces an answer: `the final answer is`, `Answer:`, `####`."""
ANNOUNCED = 400
"""Characters after an announcement that are read as the answer."""


def after_thinking(completion: str) -> str | None:
    """The text after the last `</think>`; None if a think block is not closed, as there is no answer then."""
    rest = completion.rpartition(CLOSE)[2]
    return None if OPEN in rest else rest


def visible(completion: str) -> str | None:
    """`after_thinking` without the white space around it."""
    rest = after_thinking(completion)
    return None if rest is None else rest.strip()


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` or `\fbox{}` whose braces close; None if there is none."""
    until = len(text)
    for start in reversed([m.end() for m in BOX.finditer(text)]):
        depth = 1
        for brace in BRACE.finditer(text, start, until):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[start : brace.start()].strip()
        until = start  # each character is read once, however many boxes are not closed
    return None


def stated(text: str) -> str | None:
    """The marked answer of a visible text: the last box, else the line after the last announcement.

    None if neither occurs.
    """
    found = boxed(text)
    if found is not None:
        return found
    announced = [m.end() for m in STATED.finditer(text)]
    if not announced:
        return None
    return text[announced[-1] :][:ANNOUNCED].strip().partition("\n")[0].strip()
