"""Edits of a made-up word, one more per level: reverse, rotate, swap, delete, replace, insert, double."""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family, word

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make(rng: Random, level: int) -> tuple[str, str]:
    """`Start with "bakolu". 1. Reverse it. ... Which word is left?`"""
    text = first = word(rng, 3)
    steps = []
    for number in range(1, level + 1):
        said, text = _edit(rng, text)
        steps.append(f"{number}. {said}")
    return f'Start with "{first}". {" ".join(steps)} Which word is left?', text


def _edit(rng: Random, text: str) -> tuple[str, str]:
    at, letter = rng.randrange(len(text)), rng.choice(LETTERS)
    kind = rng.randrange(7)
    if kind == 0:
        return "Reverse it.", text[::-1]
    if kind == 1:
        turn = rng.randint(1, 3)
        return f"Move its first {turn} letters to the end.", text[turn:] + text[:turn]
    if kind == 2:
        return "Swap its first and last letter.", text[-1] + text[1:-1] + text[0]
    if kind == 3 and len(text) > 4:
        return f"Delete letter {at + 1}.", text[:at] + text[at + 1 :]
    if kind == 4:
        return f'Replace every "{text[at]}" by "{letter}".', text.replace(text[at], letter)
    if kind == 5:
        return f"Write letter {at + 1} twice.", text[: at + 1] + text[at:]
    return f'Insert "{letter}" after letter {at + 1}.', text[: at + 1] + letter + text[at + 1 :]


FAMILY = Family("string_edit", make, "exact")
