r"""The letter of a multiple-choice answer: `(B)`, `B.`, `the answer is B`, `\boxed{\text{B}}`.

The text of the option may follow. Two letters, or a letter in the middle of prose, are not an answer.
"""

from __future__ import annotations

import re

from posttrain.rewards.math.extract import TAIL, last_boxes
from posttrain.rewards.math.prose import last_match
from posttrain.rewards.simple.visible import after_thinking

TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
ALONE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*(?:is)?\s*:?\s*)?(?:\(\s*([A-Ja-j])\s*\)|([A-J])|([a-j])(?=[.)]?$))"
    r"(?:\s*[.):]+(?=\s|$)|(?=\s*$)|(?<=\))(?=\s))(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
IN_SENTENCE = re.compile(r"\W*(?:(?:option|choice)\s+)?(?:\(([A-Ja-j])\)|([A-J])(?![\w'])(?!\s+[a-z]+\s))")
ANSWER = re.compile(r"\b(?:answer|option|choice)\**\s*(?:is|:)\s*\**:?\s*", re.IGNORECASE)
ANOTHER = re.compile(r"^\W*(?:or|and|,|/|&)\s*\W*[A-J](?![\w'])|\([A-J]\)|\b(?:or|and)\s+\(?[A-J]\b")


def letter_of(text: str) -> str | None:
    """The letter from A to J that `text` is, apart from the text of the option; None if it is not one."""
    text = TEXT.sub(r"\1", text).replace("$", "").replace("*", "").replace(r"\ ", " ").strip()
    match = ALONE.fullmatch(text)
    if match is None or ANOTHER.search(match["rest"]):
        return None
    return next(group for group in match.groups()[:3] if group).upper()


def find_letter(completion: str, boxed: bool = False) -> str | None:
    """The letter in the last box, otherwise after the last `answer is`, otherwise in the last line.

    Raises:
        TooCostly: the last box is too long.
    """
    text = after_thinking(completion)
    if text is None:
        return None
    boxes = last_boxes(text)
    if boxes or boxed:
        return letter_of(boxes[0]) if len(boxes) == 1 else None
    tail = text[-TAIL:]
    last = last_match(ANSWER, tail)
    if last is not None:
        after = TEXT.sub(r"\1", tail[last.end() :][:300]).replace("$", "").replace("*", "")
        match = IN_SENTENCE.match(after)
        if match and not ANOTHER.search(after[match.end() :].partition("\n")[0]):
            return (match[1] or match[2]).upper()
        return None
    return letter_of(tail.rstrip().rpartition("\n")[2][:300])
