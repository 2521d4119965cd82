"""IFEval: keywords, letters and the language of a text (Zhou et al. 2023, arXiv 2311.07911).

In mode `compat` a keyword is a regular expression that may match anywhere, as in the official checkers. In
mode `fixed` it is a text that must not be part of a longer word. Left out: inflected forms.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from posttrain.rewards.instructions.table import Relation, compare, instruction, unless, whole_word

LANGUAGE_CHARACTERS = 100_000
"""Characters that are passed to the language detector, which uses the first 10,000 of those it keeps."""


@lru_cache(maxsize=256)
def _pattern(keyword: str, fixed: bool, bounds: bool = False) -> re.Pattern[str]:
    if fixed:
        return whole_word(keyword)
    try:
        return re.compile(rf"\b{keyword}\b" if bounds else keyword, re.IGNORECASE)
    except re.error as error:
        raise ValueError(
            f"the keyword {keyword!r} is not a regular expression ({error}); use mode = 'fixed'"
        ) from None


@instruction("keywords:existence")
def existence(text: str, keywords: list[str], fixed: bool) -> str:
    """Every keyword occurs."""
    missing = [one for one in keywords if not _pattern(one, fixed).search(text)]
    return unless(not missing, f"without the keywords {', '.join(missing)}")


@instruction("keywords:frequency")
def frequency(text: str, keyword: str, frequency: int, relation: Relation, fixed: bool) -> str:
    """The keyword occurs less than, or at least, `frequency` times."""
    count = sum(1 for _ in _pattern(keyword.strip(), fixed).finditer(text))
    return compare(count, relation, frequency, f"times {keyword.strip()!r}")


@instruction("keywords:forbidden_words")
def forbidden_words(text: str, forbidden_words: list[str], fixed: bool) -> str:
    """None of the words occurs."""
    found = [one for one in forbidden_words if _pattern(one, fixed, bounds=True).search(text)]
    return unless(not found, f"with the forbidden words {', '.join(found)}")


@instruction("keywords:letter_frequency")
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> str:
    """The letter occurs less than, or at least, `let_frequency` times, in either case.

    The official checker takes a random letter if `letter` is not one of a-z (`#`, `!`); here it is counted.
    """
    count = Counter(text.lower())[letter.strip().lower()]
    return compare(count, let_relation, let_frequency, f"times the letter {letter.strip()!r}")


@instruction("language:response_language")
def response_language(text: str, language: str, fixed: bool) -> str:
    """The text is in `language`, an ISO 639-1 code.

    `compat`: a text without letters passes, as in the official checker. `fixed`: it fails, and `zh` is any
    Chinese.
    """
    found = language_of(text)
    if found is None:
        return unless(not fixed, "without any words to tell the language by")
    if fixed and "-" not in language:
        found = found.partition("-")[0]
    return unless(found == language, f"in the language {found!r}, asked for {language!r}")


def language_of(text: str) -> str | None:
    """The language that langdetect finds, the same on every call; None if it finds no letters."""
    # listing the rewards and the other checks must not wait for this import
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return detect(text[:LANGUAGE_CHARACTERS])
    except LangDetectException:
        return None
