"""A template: what its slots may be, its conditions, and the questions with answers that it gives.

Instance i of a seed is always the same. Left out: expressions (`language.py`), drawing (`drawing.py`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from random import Random
from typing import Any

from posttrain.errors import RequestError
from posttrain.evaluate.tasks.symbolic.drawing import Condition, Drawn, drawn, joined
from posttrain.evaluate.tasks.symbolic.functions import Worded, number, short, truth
from posttrain.evaluate.tasks.symbolic.language import Code, compiled, parsed

REPEATS = 200
"""Draws without a new question, after which a template counts as exhausted."""
DRAWS = 50
SECTION = re.compile(r"^#(init|conditions|answer)\b[ \t]*[:=]?", re.MULTILINE)
INIT = re.compile(r"-\s*\$?\s*(\w+(?:\s*,\s*\w+)*)\s*=(?!=)\s*(.+)", re.DOTALL)
SLOT = re.compile(r"\{([^{}]*)\}")
FINAL = re.compile(r"####\s*\{([^{}]*)\}\s*\Z")


@dataclass(frozen=True, slots=True)
class Instance:
    """A question, and its worked solution, which ends in `#### answer`."""

    question: str
    solution: str
    answer: int | Fraction
    computed: int | Fraction
    """What `#answer` gives; in four of the 250 templates it is never `answer`."""
    values: dict[str, Any]


class Template:
    """`question` and `solution` are `question_annotated` and `answer_annotated` of a row at `where`.

    Raises:
        RequestError: they are no template: `where`, the part, and what is wrong with it.
    """

    def __init__(self, question: str, solution: str, where: str) -> None:
        self.where = where
        text, *parts = SECTION.split(question)
        sections = dict(zip(parts[::2], parts[1::2], strict=True))
        for key in ("init", "answer"):
            if key not in sections:
                raise RequestError(f"{where}: the template has no #{key}")
        lines = [self._init(line) for line in _once(sections["init"])]
        names = [name for line in lines for name in line.names]
        self.names = frozenset(names)
        if len(self.names) < len(names):
            raise RequestError(f"{where}: #init defines {max(names, key=names.count)!r} in two ways")
        conditions = [self._condition(line) for line in _lines(sections.get("conditions", ""))]
        self._parts = joined(lines, conditions)
        if (final := FINAL.search(solution)) is None:
            raise RequestError(f"{where}: the solution does not end in '#### {{...}}'")
        self._answer = self._compile(_bare(sections["answer"]), "#answer")
        self._final = self._compile(final[1], "the solution")
        self._question = self._slots(text.strip(), lambda slot: slot.partition(",")[0], "the question")
        self._solution = self._slots(solution.strip(), str, "the solution")

    def instances(self, count: int, seed: int = 0) -> list[Instance]:
        """The first `count` different questions of `seed`, of those whose answer is not negative, and is what
        `#answer` gives. Raises RequestError where there are fewer, or no values fulfil the conditions."""
        found: dict[str, Instance] = {}
        missed = index = 0
        while len(found) < count:
            made = self.instance(seed, index)
            index += 1
            missed += 1
            if made.question not in found and self._sensible(made):
                found[made.question], missed = made, 0
            if missed > REPEATS:
                raise RequestError(
                    f"{self.where}: the template gives only {len(found)} different questions, not {count}"
                )
        return list(found.values())

    def _sensible(self, made: Instance) -> bool:
        return made.answer >= 0 and (made.computed == made.answer or not self.agrees)

    @cached_property
    def agrees(self) -> bool:
        """Whether `#answer` and the solution ever give the same; else the solution counts, as it does in the
        released rows."""
        first = (self.instance(0, index) for index in range(DRAWS))
        return any(made.computed == made.answer for made in first)

    def instance(self, seed: int, index: int) -> Instance:
        """Draw `index` of `seed`. Raises RequestError."""
        rng = Random(f"{seed} {index}")
        values: dict[str, Any] = {}
        for part in self._parts:
            try:
                found = part.draw(rng)
            except ValueError as error:
                raise RequestError(f"{self.where}: #conditions: {error}") from None
            if found is None:
                raise RequestError(
                    f"{self.where}: no values of {', '.join(part.names)} fulfil the #conditions"
                )
            values |= found
        return self.of(values)

    def of(self, values: Mapping[str, Any]) -> Instance:
        """The question with these values. Raises RequestError where its answer cannot be computed."""
        try:
            answer, other = number(self._final(values)), number(self._answer(values))
            question, solution = self._question(values), self._solution(values)
        except ValueError as error:
            raise RequestError(f"{self.where}: {error} ({_told(values)})") from None
        return Instance(question, solution, answer, other, dict(values))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether these values fulfil the conditions. Raises ValueError where one cannot be computed."""
        return all(truth(each.code(values)) for part in self._parts for each in part.conditions)

    def _condition(self, line: str) -> Condition:
        text = line.removeprefix("-").strip()
        code = self._compile(text, "#conditions")
        names = self.names & {n.id for n in ast.walk(parsed(text)) if isinstance(n, ast.Name)}
        if not names:
            raise RequestError(f"{self.where}: #conditions: {short(text)!r} is about no slot")
        return Condition(names, code)

    def _compile(self, text: str, section: str) -> Code:
        try:
            return compiled(text, self.names)
        except ValueError as error:
            raise RequestError(f"{self.where}: {section}: {error}") from None

    def _init(self, line: str) -> Drawn:
        if (found := INIT.fullmatch(line)) is None:
            raise RequestError(f"{self.where}: #init: {short(line)!r} is not `- name = values`")
        names = tuple(re.split(r"\s*,\s*", found[1]))
        try:
            return drawn(names, found[2])
        except ValueError as error:
            raise RequestError(f"{self.where}: #init: {names[0]}: {error}") from None

    def _slots(self, text: str, expression: Callable[[str], str], section: str) -> Code:
        """A text with slots as a function of values."""
        pieces: list[str | tuple[Code, bool]] = []
        for i, piece in enumerate(SLOT.split(text)):
            source = expression(piece)
            pieces.append((self._compile(source, section), "Fraction(" in source) if i % 2 else piece)
        return lambda values: "".join(
            piece if isinstance(piece, str) else shown(piece[0](values), piece[1]) for piece in pieces
        )


def shown(value: Any, ratio: bool = False) -> str:
    """A value as a question or solution has it: fractions as decimals, of at most four places where they do
    not end, or as `1/2` (`ratio`)."""
    if isinstance(value, Worded):
        return value.text
    if isinstance(value, str):
        return value
    value = Fraction(number(value))
    if ratio or value.denominator == 1:
        return str(value)
    for places in range(1, 13):
        if (scaled := value * 10**places).denominator == 1:
            break
    else:
        places, scaled = 4, Fraction(round(value * 10**4))
    digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"


def _told(values: Mapping[str, Any]) -> str:
    return short(", ".join(f"{name} = {shown(value)}" for name, value in values.items()), 200)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _once(text: str) -> list[str]:
    """Lines without those that say the same again, as one of the released templates has it."""
    return [*{re.sub(r"\s", "", line): line for line in _lines(text)}.values()]


def _bare(answer: str) -> str:
    """`#answer: $ans`, `#answer: {a + b}`: the expression alone."""
    text = answer.strip().removeprefix("$")
    return text[1:-1] if text.startswith("{") and text.endswith("}") else text
