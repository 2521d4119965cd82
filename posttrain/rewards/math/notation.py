r"""Numbers in a special notation: bases (`1011_2`), ratios (`3:5`), times of day (`3:30 p.m.`)."""

from __future__ import annotations

import re
from fractions import Fraction

from posttrain.rewards.math.nodes import InBase, Node, Ratio, Scalar, Time
from posttrain.rewards.math.tree import num

BASE = re.compile(
    r"(-?)(?:\(|\\text\{\s*)?([0-9A-Z]+(?:\.[0-9A-Z]+)?)(?:\)|\s*\})?\s*_\s*(?:\{\s*(?:\\text\{)?\s*([0-9]{1,2}|[a-z]+)\s*\}?\s*\}|([0-9]))"
)
RATIO = re.compile(
    r"(-?[0-9]+(?:\.[0-9]+)?)\s*(?::|to|\\text\{\s*to\s*\})\s*([0-9]+(?:\.[0-9]+)?)(?:\s*:\s*([0-9]+(?:\.[0-9]+)?))?"
)
CLOCK = re.compile(
    r"([0-9]{1,2})(?:\s*:\s*([0-5][0-9]))?(?:\s*:\s*([0-5][0-9]))?\s*(?:\\text\{\s*)?([ap])\.?\s*m\.?(?:\s*\})?",
    re.I,
)
TIME_LIKE = re.compile(r"[0-9]{1,2}\s*:\s*[0-9]{2}(?:\s*:\s*[0-9]{2})?")
BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "thirteen": 13,
    "sixteen": 16,
}


def read_notation(text: str) -> Node | None:
    """The number in its notation; None for anything else."""
    if text.startswith("\\text{") and text.endswith("}") and text.count("{") == 1:
        text = text[6:-1].strip()
    if "_" in text and (match := BASE.fullmatch(text)):
        return _in_base(match)
    if match := CLOCK.fullmatch(text):
        hour, minute, second = (int(match[i] or 0) for i in (1, 2, 3))
        half = match[4].lower()
        return Time(hour, minute, second, half) if hour <= 24 else None
    if (":" in text or "to" in text) and (match := RATIO.fullmatch(text)):
        parts = tuple(Fraction(p) for p in match.groups() if p)
        return Ratio(parts, TIME_LIKE.fullmatch(text) is not None)
    return None


def _in_base(match: re.Match[str]) -> InBase | None:
    digits = match[2]
    name = match[3] or match[4]
    base = BASES.get(name, 0) if name.isalpha() else int(name)
    if not 2 <= base <= 36 or (digits.isalpha() and len(digits) < 2):
        return None
    whole, _, part = digits.partition(".")
    if any(int(c, 36) >= base for c in whole + part):
        return None
    value = Fraction(int(whole + part, base), base ** len(part))
    return InBase(-value if match[1] else value, base)


def as_scalar(node: Node, is_gold: bool) -> Scalar | None:
    """The plain number that a notation may be compared with, or None.

    It exists for base 10, for a ratio that is not a time, and for a full hour of the reference.
    """
    if isinstance(node, InBase) and node.base == 10:
        return Scalar(num(node.value))
    if isinstance(node, Ratio) and len(node.parts) == 2 and node.parts[1] and not node.clock:
        return Scalar(num(node.parts[0] / node.parts[1]))
    if isinstance(node, Time) and is_gold and node.minute == node.second == 0:
        return Scalar(num(node.hour))
    return None


def same_notation(gold: Node, answer: Node) -> bool:
    """Whether ratios are in proportion, or times equal; one of two times may lack its a.m. or p.m."""
    if isinstance(gold, Ratio) and isinstance(answer, Ratio) and not (gold.clock or answer.clock):
        first, second = gold.parts, answer.parts
        return len(first) == len(second) and all(
            a * second[0] == b * first[0] for a, b in zip(first, second, strict=True)
        )
    times = [_time(node) for node in (gold, answer)]
    return None not in times and _same_time(*times)


def _time(node: Node) -> Time | None:
    if isinstance(node, Ratio) and node.clock:
        hour, minute, *second = (int(p) for p in node.parts)
        return Time(hour, minute, second[0] if second else 0)
    return node if isinstance(node, Time) else None


def _same_time(gold: Time, answer: Time) -> bool:
    if gold.half and answer.half and gold.half != answer.half:
        return False
    hours = [t.hour % 12 + 12 if t.half == "p" else t.hour for t in (gold, answer)]
    alike = hours[0] == hours[1] or (gold.half != answer.half and gold.hour == answer.hour)
    return alike and (gold.minute, gold.second) == (answer.minute, answer.second)
