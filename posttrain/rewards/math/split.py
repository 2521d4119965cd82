r"""Where cleaned text divides outside all brackets: at commas, `and`, `or`, relations and unions."""

from __future__ import annotations

import re

from posttrain.rewards.math.limits import DEEPEST, TooCostly, Unreadable

SCAN = re.compile(
    r"\\[{}]|\\(?P<env>begin|end)\s*\{[a-zA-Z*]+\}|\\[A-Za-z]+|\\."
    r"|(?P<word>(?<![A-Za-z])(?:and|or)(?![A-Za-z]))|(?P<thousands>(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,]))"
    r"|[()\[\]{},;=<>≤≥≠≈∈≡∪∩∖±∓|:&↵]",
    re.DOTALL,
)
OPEN = frozenset({"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"})
CLOSE = frozenset({")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"})
RELATIONS = "=<>≤≥≠≈∈≡"


def outermost(text: str, marks: str, thousands: bool = True) -> list[tuple[int, int, str]]:
    """Start, end and text of each mark outside all brackets; `and` and `or` count if `marks` has a comma.

    With `thousands`, the commas of 1,234,567 are not marks.

    Raises:
        TooCostly: deeper than 100 levels. Unreadable: brackets that do not balance.
    """
    found, depth = [], 0
    for match in SCAN.finditer(text):
        mark = match[0]
        if mark in OPEN or match["env"] == "begin":
            depth += 1
            if depth > DEEPEST:
                raise TooCostly(f"more than {DEEPEST} levels of nesting")
        elif mark in CLOSE or match["env"] == "end":
            depth -= 1
            if depth < 0:
                raise Unreadable("brackets that do not balance")
        elif depth:
            continue
        elif match["thousands"]:
            if not thousands and "," in marks:
                at = match.start()
                found.extend((at + i, at + i + 1, ",") for i, c in enumerate(mark) if c == ",")
        elif (mark in marks and len(mark) == 1) or (match["word"] and "," in marks):
            found.append((match.start(), match.end(), mark))
    if depth:
        raise Unreadable("brackets that do not balance")
    return found


def divide(text: str, marks: str, thousands: bool = True) -> tuple[list[str], list[str]]:
    """The parts of `text` between the outermost `marks`, and the marks."""
    parts, found, at = [], [], 0
    for start, end, mark in outermost(text, marks, thousands):
        parts.append(text[at:start].strip())
        found.append(mark)
        at = end
    parts.append(text[at:].strip())
    return parts, found


def listed(text: str, thousands: bool = True) -> tuple[list[str], list[str]]:
    """The members of a list; `1, 2, and 3` has three."""
    parts, marks = divide(text, ",;", thousands)
    return [part for part in parts if part], marks


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening bracket, content, closing bracket) if one pair encloses all of `text`, otherwise None."""
    depth, first = 0, None
    for match in SCAN.finditer(text):
        mark = match[0]
        if mark in OPEN:
            if depth == 0 and match.start() != 0:
                return None
            first = first or match
            depth += 1
            if depth > DEEPEST:
                raise TooCostly(f"more than {DEEPEST} levels of nesting")
        elif mark in CLOSE:
            depth -= 1
            if depth == 0:
                if first is None or match.end() != len(text):
                    return None
                return first[0], text[first.end() : match.start()].strip(), mark
        elif depth == 0:
            return None
    return None
