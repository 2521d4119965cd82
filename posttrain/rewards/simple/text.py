"""Answers that are words: equal to the reference, overlapping with it, or containing it.

Normalisation and F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250). A row has `answer`, or
`answers`, a list of which the best match counts. Only the text after the thinking is read. Left out:
paraphrases (see `judge`), stemming, articles of languages other than English.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from typing import Literal

from posttrain.rewards.registry import limited, reward
from posttrain.rewards.simple.visible import stated, visible
from posttrain.types import Example, Verdict

Normalise = Literal["squad", "space", "none"]
Take = Literal["all", "stated"]
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
LONGEST = 200_000
"""Characters of a completion; a longer one is 0 with the reason `limit`."""


def normalised(text: str, how: Normalise) -> str:
    """A text in the form in which it is compared.

    `squad`: lower case, no ASCII punctuation, no English articles, single spaces. `space`: NFC, single
    spaces.
    """
    if how == "none":
        return text
    if how == "space":
        return " ".join(unicodedata.normalize("NFC", text).split())
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def references(example: Example) -> list[str]:
    """The right answers of a row. Raises ValueError if they are not texts."""
    given = example.extra.get("answers")
    found = [example.answer] if given is None else given
    if not isinstance(found, list) or not found or not all(isinstance(a, str) for a in found):
        raise ValueError("column 'answers' must be a list of texts")
    return found


def check_row(example: Example, normalise: Normalise) -> None:
    """Raises ValueError if a reference is empty after normalisation: it would equal every other such text."""
    for answer in references(example):
        if not normalised(answer, normalise).strip():
            hint = "; use normalise: space" if answer.strip() else ""
            raise ValueError(f"the reference {answer!r} is empty after normalisation{hint}")


@reward("exact", columns=("answer|answers",), check_row=check_row, runs="inline")
def exact(completion: str, example: Example, normalise: Normalise = "squad", take: Take = "all") -> Verdict:
    """Whether the text equals a reference answer after normalisation.

    `take`: `all` is the visible text, `stated` the last box or what follows `answer is`, `Answer:` or `####`.
    """
    text = _given(completion, take)
    if isinstance(text, Verdict):
        return text
    mine = normalised(text, normalise)
    right = any(normalised(answer, normalise) == mine for answer in references(example))
    return Verdict(float(right), reason="" if right else "the text differs")


@reward("f1", columns=("answer|answers",), check_row=check_row, runs="inline")
def f1(completion: str, example: Example, normalise: Normalise = "squad", take: Take = "all") -> Verdict:
    """Word overlap with the nearest reference answer: F1 of the multisets of words.

    2 PR / (P + R); the order of the words does not matter. `take` is that of `exact`.
    """
    text = _given(completion, take)
    if isinstance(text, Verdict):
        return text
    mine = Counter(normalised(text, normalise).split())
    best = max(_f1(mine, Counter(normalised(a, normalise).split())) for a in references(example))
    return Verdict(best, reason="" if best == 1 else "the words differ")


@reward("contains", columns=("answer|answers",), check_row=check_row, runs="inline")
def contains(
    completion: str,
    example: Example,
    normalise: Normalise = "squad",
    take: Take = "all",
    need: Literal["any", "all"] = "any",
    max_words: int | None = 100,
) -> Verdict:
    """Whether the text contains a reference answer as whole words.

    A text that lists everything contains every answer: one with more than `max_words` words is 0 (null: no
    limit). `need: all` requires every one of `answers`.
    """
    text = _given(completion, take)
    if isinstance(text, Verdict):
        return text
    words = normalised(text, normalise).split()
    if max_words is not None and len(words) > max_words:
        return Verdict(0.0, reason=f"{len(words)} words, at most {max_words} are read")
    mine = f" {' '.join(words)} "
    found = [f" {' '.join(normalised(a, normalise).split())} " in mine for a in references(example)]
    right = any(found) if need == "any" else all(found)
    return Verdict(float(right), reason="" if right else "the text does not contain it")


def _given(completion: str, take: Take) -> str | Verdict:
    """The text to compare, or the verdict if there is none."""
    if len(completion) > LONGEST:
        return limited(f"{LONGEST} characters")
    text = visible(completion)
    if text is not None and take == "stated":
        text = stated(text)
    if not text:
        return Verdict(0.0, "unparseable", "no answer in the completion")
    return text


def _f1(mine: Counter[str], theirs: Counter[str]) -> float:
    common = (mine & theirs).total()
    return 2 * common / (mine.total() + theirs.total()) if common else 0.0
