"""The language of a completion, by langdetect with a fixed seed, so that equal texts get equal verdicts.

Code blocks, formulas and links are removed first. Left out: dialects, transliterated text, and texts of a few
words, where a detector guesses: fewer than `at_least_letters` letters are `unparseable`.
"""

from __future__ import annotations

import functools
import re
from importlib import util
from typing import Any

from posttrain.errors import RequestError, did_you_mean
from posttrain.rewards.registry import reward
from posttrain.rewards.simple.visible import visible
from posttrain.types import Example, Verdict

NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|https?://\S+", re.DOTALL)
COLUMN = "language"
PIECE = 1000
"""Characters that are read together; a longer text is cut into at most `PIECES` pieces, evenly spread."""
PIECES = 200


def missing() -> str | None:
    """What this machine lacks to run the reward; None if nothing."""
    if util.find_spec("langdetect") is None:
        return "needs the package langdetect (pip install langdetect)"
    return None


def prepare() -> None:
    """Loads the language profiles, which takes longer than most checks."""
    _factory()


def check_row(example: Example, language: str) -> None:
    """Raises RequestError if the option cannot be detected, ValueError if the language of the row cannot."""
    if missing():
        return
    row = example.extra.get(COLUMN)
    if language not in _codes():
        sentence = f"language = {language!r} cannot be detected{did_you_mean(language, _codes())}"
        raise RequestError(f"reward 'language': {sentence}")
    if row is not None and row not in _codes():
        raise ValueError(f"column {COLUMN!r}: {row!r} cannot be detected{did_you_mean(row, _codes())}")


@reward("language", check_row=check_row, runs="worker", limit_s=10.0, missing=missing, prepare=prepare)
def language(
    completion: str, example: Example, language: str = "en", share: float = 1.0, at_least_letters: int = 20
) -> Verdict:
    """Whether every paragraph of the visible text is in a language.

    `language`: ISO 639-1 code (`zh` is any Chinese); the column `language` of a row takes precedence.
    `share`: the fraction of letters that must be in that language, among paragraphs of at least
    `at_least_letters` letters. Shorter paragraphs are joined with the next.
    """
    wanted = example.extra.get(COLUMN) or language
    text = visible(completion)
    prose = NO_PROSE.sub(" ", text or "")
    found: dict[str, int] = {}
    for piece in _pieces(prose, at_least_letters):
        code = _detect(piece)
        found[code] = found.get(code, 0) + _letters(piece)
    if not found:
        return Verdict(0.0, "unparseable", "too few letters to detect the language")
    right = sum(n for code, n in found.items() if wanted in (code, code.partition("-")[0]))
    got = right / sum(found.values())
    best = max(found, key=found.__getitem__)
    reason = "" if got >= share else f"{got:.0%} in {wanted!r}, most in {best!r}"
    return Verdict(float(got >= share), reason=reason, details={"letters": found})


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _pieces(prose: str, at_least: int) -> list[str]:
    """Paragraphs of `at_least` letters or more and at most `PIECE` characters; a sample if there are many."""
    found, waiting = [], ""
    for line in prose.splitlines():
        for start in range(0, len(line), PIECE):
            waiting = f"{waiting} {line[start : start + PIECE]}".strip()
            if _letters(waiting) >= at_least:
                found.append(waiting)
                waiting = ""
    if found and waiting:
        found[-1] += f" {waiting}"
    step = max(1.0, len(found) / PIECES)
    return [found[int(i * step)] for i in range(min(len(found), PIECES))]


def _detect(text: str) -> str:
    from langdetect import LangDetectException

    detector: Any = _factory().create()
    detector.seed = 0
    detector.append(text)
    try:
        return detector.detect()
    except LangDetectException:  # letters of a script without a profile
        return "unknown"


@functools.cache
def _factory() -> Any:
    from langdetect import detector_factory

    detector_factory.init_factory()
    return detector_factory._factory


def _codes() -> set[str]:
    codes = set(_factory().get_lang_list())
    return codes | {code.partition("-")[0] for code in codes}
