"""Right and wrong replies, as a model would write them, to check that a task judges both as it should.

The wrong one has another number, letter or word in the place of the answer. Left out: rewards whose answers
are not texts (code, instructions), whose kinds know their own, and those of other packages.
"""

from __future__ import annotations

import re
from decimal import Decimal

from posttrain.rewards.registry import Bound

SENTENCES = {
    "math": "The answer is $\\boxed{{}}$.",
    "math strict": "Final Answer: The final answer is {}. I hope it is correct.",
    "math last_number": "The answer is {}.",
    "choice": "The answer is {}.",
    "exact": "{}",
    "f1": "{}",
    "contains": "{}",
    "exact stated": "So the answer is {}",
    "f1 stated": "So the answer is {}",
    "contains stated": "So the answer is {}",
}
"""Reward, and the option that decides where it looks -> the sentence with the answer."""
OPPOSITE = dict(
    pair
    for a, b in (("true", "false"), ("yes", "no"), ("valid", "invalid"))
    for this, other in ((a, b), (b, a))
    for pair in ((this, other), (this.capitalize(), other.capitalize()))
)
LETTER = re.compile(r"(\(?)([A-Za-z])(\)?)")
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)(?:[eE][-+]?\d+)?")
BESIDE = "977"
"""What a wrong list has besides."""


def saying(reward: Bound, answer: str) -> str | None:
    """`answer` in a sentence that `reward` reads; None where no such sentence is known."""
    options = reward.options
    ways = [f"{reward.name} {options.get(key)}" for key in ("mode", "extract", "take")]
    sentence = next((SENTENCES[key] for key in [*ways, reward.name] if key in SENTENCES), None)
    return (
        None
        if sentence is None
        else sentence.replace("{}", bare(answer) if reward.name == "math" else answer)
    )


def spoiled(answer: str, reward: str) -> str:
    """Another answer: 0 or a number twice as large, the neighbouring letter, the opposite word; else, for the
    reward `math`, the answer and another number, and of other texts the denial."""
    answer = bare(answer) if reward == "math" else answer
    if answer in OPPOSITE:
        return OPPOSITE[answer]
    if letter := LETTER.fullmatch(answer):
        near = chr(ord(letter[2]) + (-1 if letter[2] in "bzBZ" else 1))
        return letter[1] + near + letter[3]
    if NUMBER.fullmatch(answer):
        number = Decimal(answer.replace(",", ""))
        return str(number + max(Decimal(1), abs(number)))
    return f"{answer}, {BESIDE}" if reward == "math" else f"not {answer}"


def bare(answer: str) -> str:
    """An answer without the dollars around its formulas, which a box has not."""
    return re.sub(r"(?<!\\)\$", "", answer)
