"""The verdict: reference and answer go through the tiers, cheapest first.

Tiers: `exact` text, `normalised` text, `numeric` (two numbers), `structure` (collections, regions, relations,
notations), `words`, `symbolic` (expressions). The first that says yes is the tier of a right answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from posttrain.rewards.math.clean import clean, squeezed
from posttrain.rewards.math.compare import Policy, same
from posttrain.rewards.math.equality import number
from posttrain.rewards.math.extract import last_boxes
from posttrain.rewards.math.limits import LONGEST, TooCostly, Undefined, Unreadable
from posttrain.rewards.math.nodes import Items, Node, Scalar, Words
from posttrain.rewards.math.reading import read
from posttrain.rewards.math.scalar import PLAIN
from posttrain.rewards.math.split import listed
from posttrain.rewards.math.tree import Tree
from posttrain.rewards.math.words import IN_TEXT, normal

ZEROS = re.compile(r",0[0-9]")
"""1,000 is not a list of 1 and 0."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A text cleaned and read.

    `nodes` has one node, two if `1,234` may be a number or a list, and none if the text is unreadable.
    """

    text: str
    short: str
    nodes: tuple[Node, ...]
    why: str = ""


def understand(text: str) -> Reading:
    """Reads one answer.

    Raises:
        TooCostly: the answer is refused.
    """
    try:
        cleaned = tidy(text)
    except Unreadable as error:
        return Reading(text, text, (), str(error))
    return _read(cleaned)


def tidy(text: str) -> str:
    """The answer in one spelling, as `clean` gives it; a plain number needs no cleaning."""
    text = text.strip()
    return text if len(text) < LONGEST and PLAIN.fullmatch(text) else clean(text)


def _read(cleaned: str) -> Reading:
    nodes, why = [], ""
    for thousands in (True, False):
        if not thousands and (
            "," not in cleaned
            or ZEROS.search(cleaned)
            or len(_parts(cleaned, True)) == len(_parts(cleaned, False))
        ):
            break
        try:
            nodes.append(read(cleaned, thousands))
        except Unreadable as error:
            why = str(error)
    return Reading(cleaned, squeezed(cleaned), tuple(nodes), why)


def _parts(text: str, thousands: bool) -> list[str]:
    try:
        return listed(text, thousands)[0]
    except Unreadable:
        return []


@lru_cache(maxsize=4096)
def understand_gold(text: str) -> Reading:
    """Reads a reference: what follows `####` or is in the last box, if it has one.

    Raises:
        ValueError: the reference is empty, too long, unbalanced or too costly.
    """
    shown = repr(text[:60])
    if "####" in text:
        text = text.rpartition("####")[2]
    try:
        if r"\boxed" in text or r"\fbox" in text:
            text = ", ".join(last_boxes(text)) or text
        if not text.strip():
            raise ValueError(f"the answer {shown} is empty")
        if len(text.strip()) > LONGEST:
            raise ValueError(f"the answer {shown}... has more than {LONGEST:,} characters")
        cleaned = clean(text)
        if not cleaned:
            raise ValueError(f"the answer {shown} is empty")
        return _read(cleaned)
    except TooCostly as error:
        raise ValueError(f"the answer {shown} is too costly to compare: {error}") from None
    except Unreadable as error:
        raise ValueError(f"the answer {shown} has {error}") from None


def decide(gold: Reading, raw_gold: str, answer: str, policy: Policy) -> tuple[str, str]:
    """(the tier that decides, why the answer is wrong), with an empty reason for a right answer.

    Raises:
        TooCostly: the answer is refused.
    """
    if answer.strip() == raw_gold.strip():
        return "exact", ""
    words = bool(gold.nodes) and isinstance(gold.nodes[0], Words)
    try:
        cleaned = tidy(answer)
    except Unreadable as error:
        return "unreadable", f"the answer is not readable: {error}"
    if cleaned and not words and squeezed(cleaned) == gold.short:
        return "normalised", ""
    given = _read(cleaned)
    if any(isinstance(n, Words) and n.text == normal(IN_TEXT.sub(r" \1 ", given.text)) for n in gold.nodes):
        return "normalised", ""
    if not given.nodes:
        return "unreadable", f"the answer is not readable: {given.why}"
    tier = "words" if _wordy(given.nodes[0]) else _tier(gold, given)
    for node in gold.nodes:
        for other in given.nodes:
            if same(node, other, policy):
                return _tier_of(node, other), ""
    return tier, "another answer" if gold.nodes else "another text than the reference"


def _wordy(node: Node) -> bool:
    """Whether a node is words, or a list that contains some."""
    if isinstance(node, Items):
        return any(_wordy(item) for item in node.items)
    return isinstance(node, Words)


def _tier(gold: Reading, given: Reading) -> str:
    return _tier_of(gold.nodes[0], given.nodes[0]) if gold.nodes else "normalised"


def _tier_of(gold: Node, answer: Node) -> str:
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return "numeric" if _number(gold.tree) and _number(answer.tree) else "symbolic"
    return "structure"


def _number(tree: Tree) -> bool:
    """Whether a tree is a decimal or a fraction of decimals."""
    if tree[0] == "num":
        return True
    return tree[0] == "mul" and all(
        part[0] == "num" or (part[0] == "pow" and part[1][0] == "num" == part[2][0]) for part in tree[1]
    )


def plain_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number; None for anything else."""
    try:
        nodes = understand(text).nodes
        if not nodes or not isinstance(nodes[0], Scalar):
            return None
        value = number(nodes[0].tree)
    except (TooCostly, Unreadable, Undefined):
        return None
    return value if isinstance(value, Fraction) else None
