"""Multiple choice: the option that a completion names, compared with the right one.

The answer must be marked (a box, `answer is`, `Answer:`, `####`) or be the entire visible text. Nothing is
picked out of prose, where a single letter may be a word. Left out: log-likelihood scoring, questions with
several right options.
"""

from __future__ import annotations

import re

from posttrain.rewards.registry import reward
from posttrain.rewards.simple.visible import stated, visible
from posttrain.types import Example, Verdict

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}]*)\}|[$*`{}]|\\[(),;!\[\]]")
"""Markup around an answer: LaTeX text commands, dollars, asterisks, braces."""
_LETTER = re.compile(r"[(\[]?(?:option |choice )?[(\[]?([A-Za-z])(?![\w'])[)\]]*", re.IGNORECASE)
"""A letter as an answer: `B`, `(B)`, `option B`."""
_MORE = re.compile(r"\s*(?:,|/|\bor\b|\band\b|&|-|\u2013)?\s*[(\[]?([A-Z])(?![\w'])[)\]]*")
"""A second letter after the first: `, C`, `or C`."""
_REST = re.compile(r"\s*(?:$|[.,:;)\]]|\b(?:because|since|as|which)\b)")
"""What may follow the letter of an answer."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _options(example: Example, column: str) -> dict[str, str]:
    """Letter -> text. Raises ValueError if the column is neither a list nor a mapping from letters."""
    given = example.extra.get(column)
    if given is None:
        return {}
    if isinstance(given, list) and len(given) <= len(LETTERS):
        given = dict(zip(LETTERS, given, strict=False))
    if not isinstance(given, dict) or not all(isinstance(t, str) for t in given.values()):
        raise ValueError(f"column {column!r} must be a list of texts, or a mapping from letters to texts")
    found = {str(letter).upper(): text for letter, text in given.items()}
    if not set(found) <= set(LETTERS):
        raise ValueError(f"column {column!r} has keys that are not letters")
    return found


def _key(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(". ")


def right_letter(example: Example, column: str) -> str:
    """The letter of the right option. Raises ValueError if `answer` is neither a letter nor a text of one."""
    options, answer = _options(example, column), (example.answer or "").strip()
    same = [letter for letter, text in options.items() if _key(text) == _key(answer)]
    if len(same) == 1:
        return same[0]
    letter = answer.strip("()[]. ").upper()
    if len(letter) == 1 and letter in (options or LETTERS):
        return letter
    raise ValueError(f"the answer {answer!r} is not an option" + (f" of column {column!r}" * bool(options)))


def check_row(example: Example, column: str) -> None:
    """Raises ValueError if the answer is not one of the options."""
    right_letter(example, column)


@reward("choice", columns=("answer",), check_row=check_row, runs="inline")
def choice(completion: str, example: Example, column: str = "choices") -> Verdict:
    """Whether the completion names the right option, by its letter or its text.

    `column`: the options of the row, a list of texts (A, B, ...) or a mapping from letters to texts; without
    it, only letters are read. Naming two options is wrong, and so is a letter next to the text of another
    option.
    """
    text = visible(completion)
    marked = None if text is None else stated(text)
    if marked is None and text is not None and len(text) <= 1000:
        marked = text
    if not marked:
        return Verdict(0.0, "unparseable", "no answer is marked")
    options, right = _options(example, column), right_letter(example, column)
    named = _named(marked[:1000], options)
    if named is None:
        return Verdict(0.0, "unparseable", "the marked answer does not name an option")
    if len(named) != 1:
        return Verdict(0.0, reason="more than one option is named")
    letter = min(named)
    reason = "" if letter == right else f"option {letter}"
    return Verdict(float(letter == right), reason=reason, details={"letter": letter})


def _named(marked: str, options: dict[str, str]) -> set[str] | None:
    """The options that a marked answer names; None if it names none."""
    texts = {letter: _key(text) for letter, text in options.items()}
    whole = {letter for letter, text in texts.items() if text == _key(marked)}
    if whole:
        return whole
    bare = marked
    while (shorter := _WRAPPED.sub(lambda m: m[1] or "", bare)) != bare:
        bare = shorter
    bare = bare.strip()
    whole = {letter for letter, text in texts.items() if text == _key(bare)}
    found = _LETTER.match(bare)
    if whole or not found or found[1].upper() not in (options or LETTERS):
        return whole or None
    letter, rest = found[1].upper(), bare[found.end() :]
    told = _key(rest.strip(" .,:;)]-"))
    by_text = {other for other, text in texts.items() if text and text == told}
    if by_text:
        return by_text | {letter}
    more = _MORE.match(rest)
    if more and more[1] in (options or LETTERS):
        return {letter, more[1]}
    enclosed = found[0].rstrip() != found[1]
    return {letter} if enclosed or _REST.match(rest) else None
