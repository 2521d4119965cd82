"""Counting letters: in one word, in several, a pair of letters, vowels, words that contain a letter."""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family, word


def make(rng: Random, level: int) -> tuple[str, str]:
    """`How many times does the letter "a" occur in "bakalu"?`"""
    words = [word(rng, rng.randint(3, 4)) for _ in range((0, 1, 3, 4, 6, 9)[level])]
    text = " ".join(words)
    one, two = rng.sample(sorted(set(text) - {" "}), 2)
    if level <= 2:
        asked = f'How many times does the letter "{one}" occur in "{text}"?'
        count = sum(char == one for char in text)
    elif level == 3:
        asked = f'How many times do the letters "{one}" and "{two}" occur in "{text}" in all?'
        count = sum(char in (one, two) for char in text)
    elif level == 4:
        asked = f'How many vowels (a, e, i, o, u) are there in "{text}"?'
        count = sum(char in "aeiou" for char in text)
    else:
        asked = f'How many words of "{text}" hold the letter "{one}" but not the letter "{two}"?'
        count = sum(one in each and two not in each for each in words)
    return asked, str(count)


FAMILY = Family("count_letters", make, "math")
