"""Sets of whole numbers: union, intersection, difference; several operations in brackets from level 3."""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family

SIGNS = {
    "\u222a": set.union,
    "\u2229": set.intersection,
    "\\": set.difference,
    "\u25b3": set.symmetric_difference,
}
SIZE = (0, 4, 6, 5, 7, 8)


def make(rng: Random, level: int) -> tuple[str, str]:
    r"""`A = {1, 4}, B = {4, 9}. List the elements of A \ B ...`"""
    names = "AB" if level <= 2 else "ABC" if level <= 4 else "ABCD"
    known = {name: set(rng.sample(range(1, 21), SIZE[level])) for name in names}
    text, found = names[0], known[names[0]]
    for name in names[1:]:
        sign = rng.choice(sorted(SIGNS)[: 3 if level <= 3 else 4])
        text = f"({text}) {sign} {name}" if len(text) > 1 else f"{text} {sign} {name}"
        found = SIGNS[sign](found, known[name])
    given = ", ".join(f"{n} = {{{', '.join(map(str, sorted(s)))}}}" for n, s in known.items())
    asked = f"{given}. List the elements of {text} from small to large, with a comma and a space between two"
    notes = r" (\ is the difference, " + "\u25b3 the symmetric difference)"
    asked += f"{notes if level > 1 else ''}, or answer none."
    return asked, ", ".join(map(str, sorted(found))) or "none"


FAMILY = Family("set_operations", make, "exact")
