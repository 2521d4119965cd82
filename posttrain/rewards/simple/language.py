"""Is the reply in the language asked for? By langdetect, seeded, so that equal texts get equal verdicts.

Code blocks, formulas and links are taken out first. Left out: dialects, transliterated text, texts of a few words (a
detector guesses there: fewer than `at_least_letters` letters have no verdict but `unparseable`).
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
"""Characters that are looked at together; a longer text is cut into pieces, at most `PIECES` of them, evenly spread."""
PIECES = 200


def missing() -> str | None:
    """What this machine lacks."""
    if util.find_spec("langdetect") is None:
        return "needs the package langdetect (pip install langdetect)"
    return None


def prepare() -> None:
    _factory()


def check_row(example: Example, language: str = "en", share: float = 1.0, at_least_letters: int = 20) -> None:
    """Raises where the language is none that can be told."""
    if missing():
        return
    row = example.extra.get(COLUMN)
    for code, error in ((language, RequestError), (row, ValueError)):
        if code is not None and code not in _codes():
            raise error(f"language {code!r} cannot be told{did_you_mean(code, _codes())}")


@reward("language", check_row=check_row, runs="worker", limit_s=10.0, missing=missing, prepare=prepare)
def language(
    completion: str, example: Example, language: str = "en", share: float = 1.0, at_least_letters: int = 20
) -> Verdict:
    """Whether the visible text is in a language, every paragraph of it.

    `language`: ISO 639-1 code (`zh` is any Chinese); a row's column `language` goes before it. `share`: of the letters
    in paragraphs of at least `at_least_letters` letters, how many must be in that language. Shorter paragraphs are
    joined with the next.
    """
    wanted = example.extra.get(COLUMN) or language
    text = visible(completion)
    prose = NO_PROSE.sub(" ", text or "")
    found: dict[str, int] = {}
    for piece in _pieces(prose, at_least_letters):
        code = _detect(piece)
        found[code] = found.get(code, 0) + _letters(piece)
    if not found:
        return Verdict(0.0, "unparseable", "too few letters to tell the language")
    right = sum(n for code, n in found.items() if wanted in (code, code.partition("-")[0]))
    got = right / sum(found.values())
    best = max(found, key=found.__getitem__)
    reason = "" if got >= share else f"{got:.0%} in {wanted!r}, most in {best!r}"
    return Verdict(float(got >= share), reason=reason, details={"letters": found})


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _pieces(prose: str, at_least: int) -> list[str]:
    """Paragraphs of at least `at_least` letters and at most `PIECE` characters, a sample where there are many."""
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
    except LangDetectException:  # letters of a script it has no profile for
        return "unknown"


@functools.cache
def _factory() -> Any:
    from langdetect import detector_factory

    detector_factory.init_factory()
    return detector_factory._factory


def _codes() -> set[str]:
    codes = set(_factory().get_lang_list())
    return codes | {code.partition("-")[0] for code in codes}
