"""Sorting: whole numbers up or down, then words by the alphabet, from their last letter, by length."""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family, word


def make(rng: Random, level: int) -> tuple[str, str]:
    """`Sort these numbers from small to large: 7, 3, 5`"""
    if level <= 2:
        items = [str(n) for n in rng.sample(range(1, 1000), 2 + 3 * level)]
        down = rng.random() < 0.5
        order = "large to small" if down else "small to large"
        rule = f"Sort these numbers from {order}"
        answer = sorted(items, key=int, reverse=down)
    else:
        words: dict[str, str] = {}
        while len(words) < 2 * level:
            new = word(rng, rng.randint(2, 3))
            words.setdefault(new, new)
        items = list(words)
        if level == 3:
            rule, answer = "Sort these words by the alphabet", sorted(items)
        elif level == 4:
            rule = "Sort these words by the alphabet, each read from its last letter to its first"
            answer = sorted(items, key=lambda one: one[::-1])
        else:
            rule = "Sort these words by length, shortest first, equal lengths by the alphabet"
            answer = sorted(items, key=lambda one: (len(one), one))
    prompt = f"{rule}: {', '.join(items)}\nAnswer with the list, with a comma and a space between two."
    return prompt, ", ".join(answer)


FAMILY = Family("sorting", make, "exact")
