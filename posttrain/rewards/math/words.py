"""Answers in words: which text is words, numbers as words, and phrases with a mathematical meaning."""

from __future__ import annotations

import re

from posttrain.rewards.math.tokens import FUNCTIONS, PLAIN_GREEK

SMALL = str.split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = str.split("twenty thirty forty fifty sixty seventy eighty ninety")
NUMBERS = {word: n for n, word in enumerate(SMALL)} | {w: 20 + 10 * n for n, w in enumerate(TENS)}
NUMBERS |= {f"{t}-{s}": NUMBERS[t] + NUMBERS[s] for t in TENS for s in SMALL[1:10]}
NUMBERS |= {key.replace("-", " "): value for key, value in NUMBERS.items() if "-" in key}
EMPTY = frozenset(
    {
        "no solution",
        "no solutions",
        "none",
        "no real solution",
        "no real solutions",
        "empty set",
        "the empty set",
        "no real roots",
        "no such number",
        "empty",
    }
)
REALS = frozenset({"all real numbers", "all reals", "real numbers", "all real x"})
SYNONYMS = {
    "dne": "does not exist",
    "undefined": "does not exist",
    "t": "true",
    "infinite": "infinitely many",
}
IN_TEXT = re.compile(r"\\text\{([^{}]*)\}")
ALLOWED = re.compile(r"[A-Za-z0-9 .,'&:/()?!-]*")
LETTERS = re.compile(r"[A-Za-z]+")
SHORT = frozenset(
    str.split(
        "yes no odd all any nor one two six ten red sun mon tue wed thu fri sat jan feb mar apr jun jul "
        "aug sep oct nov dec"
    )
)
"""Words that would otherwise be read as products of variables."""
MATHEMATICS = FUNCTIONS | PLAIN_GREEK | {"pi", "infinity"}


def as_words(text: str) -> str | None:
    r"""`text` as words in lower case with single spaces; None if it is mathematics.

    Up to three lower-case letters (`xy`) are variables unless they are in `\text{}`.
    """
    plain = IN_TEXT.sub(r" \1 ", text)
    if not ALLOWED.fullmatch(plain):
        return None
    runs = LETTERS.findall(plain)
    if len(runs) == 1 and plain.strip() == runs[0]:
        word = runs[0]
        short = len(word) < 4 and word.islower() and plain == text and word not in SHORT
        if len(word) < 2 or short or word in MATHEMATICS:
            return None
    elif not any(len(run) > 2 and run not in MATHEMATICS for run in runs):
        return None
    return normal(plain)


def normal(text: str) -> str:
    """One spelling of words, without differences in case, spaces, hyphens and punctuation at the ends."""
    text = re.sub(r"\s*-\s*", "-", " ".join(text.lower().split())).strip(" .,;:!?'")
    for article in ("the ", "a ", "an "):
        text = text.removeprefix(article)
    return SYNONYMS.get(text, text)
