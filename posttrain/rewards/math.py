r"""Numbers: finds the final answer in a completion and compares it exactly with the reference.

Numbers are compared as fractions, so 0.1 is 1/10 and nothing is rounded: `18`, `18.0`, `$18`, `1,234`, `1{,}234`,
`1\,234`, `.5`, `1.2e3`, `3/4`, `-\frac{3}{4}`. Policy: a final full stop, currency and percent signs are dropped
(`25%` is 25, not 0.25, as GSM8K writes its answers); of a box, a unit in `\text{}` is dropped as well.
No text is evaluated. Left out: mixed numbers, roots, powers, lists, symbolic answers.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from typing import Any

from posttrain.errors import RequestError, did_you_mean
from posttrain.rewards.registry import reward
from posttrain.types import Verdict

EXTRACT = ("any", "last_number", "boxed")
LONGEST = 1000
"""Characters of an answer; longer ones are refused, not compared."""
LARGEST_EXPONENT = 300
"""Of scientific notation, either sign: beyond it a number is refused before it is built."""

DECIMAL = (
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]+(?![0-9A-Za-z]))?"
)
NUMBER = re.compile(
    rf"(?P<sign>[+-]?\$?|\$[+-])(?:(?P<top>{DECIMAL})(?:/(?P<bottom>{DECIMAL}))?"
    rf"|\\[dt]?frac\{{(?P<over>[+-]?{DECIMAL})\}}\{{(?P<under>[+-]?{DECIMAL})\}})"
)
IN_PROSE = re.compile(rf"(?<![\w^.)])(?<!\^\{{){NUMBER.pattern}(?![0-9]|\.[0-9]| ?\^)")
"""A number in a sentence: not inside a word (`H2O`), a power (`2^10`) or a version (`1.2.3`); the minus of
`5-3` is no sign."""
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
UNIT = re.compile(r"(?:\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[,;!% ]|\^\\circ|[\s%.])+$")

SPELLINGS = {"\\$": "$", "\\%": "%", "\\!": "", "{,}": ",", "\u2212": "-"}
THIN_SPACE = re.compile(r"(?<=[0-9])(?:\\,|\u202f|\u00a0)(?=[0-9]{3}(?![0-9]))")


class TooCostly(ValueError):
    """An answer that is refused before it is computed."""


@reward("gsm8k")
def gsm8k(completion: str, example: Any, extract: str = "any") -> Verdict:
    r"""1.0 if the final number equals the reference's (Cobbe et al. 2021, arXiv 2110.14168).

    `extract`: `boxed` reads the last balanced `\boxed{}`; `last_number` the last number of the text; `any` the
    box, else the first number after the last `####`, else the last number. Text up to `</think>` does not
    count. No number is status `unparseable`, value 0. `details["answer"]` is the number that was read.

    Raises:
        RequestError: unknown `extract`.
    """
    if extract not in EXTRACT:
        raise RequestError(
            f"reward 'gsm8k': extract = {extract!r} is unknown{did_you_mean(extract, EXTRACT)}"
        )
    return _judge(completion, example.answer, extract)


@reward("boxed")
def boxed(completion: str, example: Any) -> Verdict:
    r"""1.0 if the number in the last balanced `\boxed{}` (or `\fbox{}`) equals the reference."""
    return _judge(completion, example.answer, "boxed")


def _judge(completion: str, reference: str, extract: str) -> Verdict:
    gold = parse(reference.rpartition("####")[2])
    if gold is None:
        raise ValueError(f"the reference answer {reference!r} is no number")
    try:
        found = final_number(completion, extract)
    except TooCostly as error:
        return Verdict(0.0, "scored", "limit", details={"limit": str(error)})
    if found is None:
        return Verdict(0.0, "unparseable", "no final number")
    right = found == gold
    return Verdict(
        float(right), "scored", "" if right else "another number", 0.0, {"answer": str(found)}
    )


def final_number(completion: str, extract: str = "any") -> Fraction | None:
    """The number a completion ends on, see `gsm8k`; None if there is none.

    Raises:
        TooCostly: the answer is too long or its exponent too large.
    """
    text = completion.rpartition("</think>")[2]
    if "<think>" in text:  # thinking that never ended is no answer
        return None
    box = last_box(text) if extract != "last_number" else None
    if box is not None or extract == "boxed":
        return None if box is None else parse(box)
    _, marker, after = text.rpartition("####")
    if marker and extract == "any":
        match = IN_PROSE.search(_plain(after))
    else:
        match = deque(IN_PROSE.finditer(_plain(text)), maxlen=1)
        match = match[0] if match else None
    return None if match is None else _value(match)


def parse(text: str) -> Fraction | None:
    r"""The number that is the whole of `text`, signs of currency and percent aside; None if it is no number.

    Raises:
        TooCostly: see `final_number`.
    """
    if len(text) > LONGEST:
        raise TooCostly(f"an answer of {len(text):,} characters")
    text = text.strip()
    while box := re.fullmatch(
        r"\\(?:boxed|fbox)\s*\{(.*)\}|\$(.*)\$|\\\((.*)\\\)", text, re.DOTALL
    ):
        text = next(part for part in box.groups() if part is not None).strip()
    match = NUMBER.fullmatch(UNIT.sub("", _plain(text)).strip())
    return None if match is None else _value(match)


def last_box(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` or `\fbox{}` whose braces close, nested ones being part of it."""
    opened: list[tuple[bool, int]] = []  # is it a box, where its content begins
    last: tuple[int, int] | None = None
    for token in BOX.finditer(text):
        if token[0] == "}":
            if opened:
                box, begin = opened.pop()
                last = (begin, token.start()) if box else last
        elif token[0][-1] == "{" and token[0] != r"\{":
            opened.append((token[0] != "{", token.end()))
    return None if last is None else text[slice(*last)]


def _plain(text: str) -> str:
    """Currency signs, separators and the minus of LaTeX and typography as plain characters."""
    for mark, meant in SPELLINGS.items():
        text = text.replace(mark, meant)
    return THIN_SPACE.sub("", text)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number of a match of `NUMBER`; None where its denominator is 0."""
    above = _decimal(match["top"] or match["over"])
    below = _decimal(match["bottom"] or match["under"] or "1")
    sign = -1 if "-" in match["sign"] else 1
    return None if below == 0 else sign * above / below


def _decimal(text: str) -> Fraction:
    if len(text) > LONGEST:
        raise TooCostly(f"a number of {len(text):,} characters")
    exponent = re.search(r"[eE]([+-]?[0-9]+)$", text)
    if exponent and (len(exponent[1]) > 5 or abs(int(exponent[1])) > LARGEST_EXPONENT):
        raise TooCostly(f"the exponent {exponent[1][:12]}")
    return Fraction(text.replace(",", ""))
