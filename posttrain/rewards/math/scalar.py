r"""One number or expression with its percent sign, currency or unit. Left out: lists, relations, words."""

from __future__ import annotations

import re

from posttrain.rewards.math.equality import infinite
from posttrain.rewards.math.limits import Unreadable
from posttrain.rewards.math.nodes import Scalar
from posttrain.rewards.math.parser import parse
from posttrain.rewards.math.tokens import number
from posttrain.rewards.math.tree import Tree, children, mul, num
from posttrain.rewards.math.units import AMBIGUOUS, SCALES, UNITS, Unit, parse_unit

PLAIN = re.compile(r"([-+]?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")
"""Numbers that need no parser."""
TEMPERATURE = re.compile(r"(.*?)\s*°\s*(?:\\text\{\s*([CF])\s*\}|([CF]))", re.DOTALL)
IN_TEXT = re.compile(r"(.*[^\s*/+^-])\s*\\text\{([^{}]*)\}\s*(\^\s*\{?[0-9]\}?)?", re.DOTALL)
IN_PLAIN = re.compile(
    r"(.*?[0-9)}\]!°%])(\s*)([A-Za-z€£¥¢][A-Za-z€£¥¢ .]*(?:/[A-Za-z. ]+)?(?:\^\{?[0-9]\}?)?)", re.DOTALL
)
ANGLE = re.compile(r"sin|cos|tan|cot|sec|csc")
"""A degree sign at the end of a function's argument is not the unit of its value."""
MONEY = "¤€£¥₹"


def read_scalar(text: str) -> Scalar:
    """The scalar that `text` is.

    Raises:
        Unreadable: it is not a scalar. TooCostly: it is refused.
    """
    text, unit, percent, scale = text.strip(), None, False, 1
    if PLAIN.fullmatch(text):
        return Scalar(_tree(text))
    if text and text[0] in MONEY:
        unit, text = UNITS[text[0]], text[1:].strip()
    elif text and text[-1] in MONEY:
        unit, text = UNITS[text[-1]], text[:-1].strip()
    if match := TEMPERATURE.fullmatch(text):
        return Scalar(_tree(match[1]), False, UNITS["°" + (match[2] or match[3]).lower()])
    if match := IN_TEXT.fullmatch(text):
        text, scale, percent, named = _words(match[1], match[2], match[3] or "", True)
        if scale == 1 and named is None and not percent:
            raise Unreadable("words in the answer")
        unit = unit if named is None else named
    elif (match := IN_PLAIN.fullmatch(text)) and _may_be_unit(*match.groups()):
        head, factor, is_percent, named = _words(match[1], match[3], "", False)
        if factor != 1 or is_percent or named is not None:
            text, scale, percent, unit = head, factor, is_percent, named if named else unit
    if text.endswith("%"):
        text, percent = text[:-1].rstrip(), True
    elif text.endswith("°") and unit is None and not ANGLE.search(text):
        text, unit = text[:-1].rstrip(), UNITS["°"]
    tree = _tree(text)
    return Scalar(tree if scale == 1 else mul([tree, num(scale)]), percent, unit)


def _may_be_unit(head: str, space: str, tail: str) -> bool:
    """Whether `tail` is more likely a unit than variables; one letter is only after a number and a space."""
    tail = tail.strip()
    if "/" not in tail and len(tail.partition("^")[0].partition("/")[0].strip(" .")) == 1:
        return bool(space) and tail[0] in AMBIGUOUS and PLAIN.fullmatch(head.strip()) is not None
    return True


def _words(head: str, tail: str, power: str, in_text: bool) -> tuple[str, int, bool, Unit | None]:
    """(the text before the words, their factor, whether they mean percent, the unit)."""
    words, scale = tail.split(), 1
    while words and words[0].lower() in SCALES:
        scale *= SCALES[words.pop(0).lower()]
    if words and words[0].lower().rstrip(".") in ("percent", "%"):
        return head, scale, len(words) == 1, None
    unit = parse_unit(" ".join(words) + power, in_text=in_text) if words else None
    if words and unit is None:
        return head, 1, False, None
    return head, scale, False, unit


def _tree(text: str) -> Tree:
    if match := PLAIN.fullmatch(text):
        value = number(match[2])
        return ("num", -value if match[1] == "-" else value)
    tree = parse(text)
    if not infinite(tree) and _holds_infinity(tree):
        raise Unreadable("infinity inside an expression")
    return tree


def _holds_infinity(tree: Tree) -> bool:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if node[0] == "inf":
            return True
        waiting.extend(children(node))
    return False
