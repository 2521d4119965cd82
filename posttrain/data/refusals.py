"""Every row for which a run would refuse, of all its sources, where the run itself stops at the first.

For `posttrain prepare`: who mends a file wants to know all its mistakes. Tables of sources without any are
made meanwhile; of a source with one, nothing is kept. Rows that would be dropped are counted by reason. Left
out: where these are, which the table says once it can be made.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from posttrain.data.cache import Progress, TooManyDropped, prepare_sources
from posttrain.data.make_table import Choice, refused_rows
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.sources import open_rows
from posttrain.data.tokens import RefusedRow
from posttrain.errors import RequestError
from posttrain.recipe import schema

SHOWN = 20
"""Sentences of a source."""
MOST = 1000
"""Refused rows of a source after which no further chunk is looked at."""
log = logging.getLogger(__name__)


class Unprepared(RequestError):
    """What a run refuses with. `everything()` reads on and says all that it would refuse with later."""

    def __init__(self, first: RequestError, look: Callable[[RequestError], list[str]]) -> None:
        super().__init__(str(first))
        self._first, self._look = first, look

    def everything(self) -> str:
        """Raises WorkError as `prepare_sources`."""
        return "\n".join(self._look(self._first))


def refusals(
    sources: Sequence[schema.Source],
    data: schema.Data,
    loss: schema.Loss,
    tokenizer: Any,
    progress: Progress | None,
    shape: str,
    choices: Sequence[Choice | None],
    first: RequestError,
) -> list[str]:
    """What the sources of a run are refused for. `first` is the error that `prepare_sources` raised; it had
    the other arguments, too."""
    found: list[str] = []
    for source, choice in zip_longest(sources, choices):
        problem = first
        if not isinstance(first, RefusedRow) or first.source != source.name:
            try:
                prepare_sources([source], data, loss, tokenizer, True, progress, shape, [choice])
                continue
            except TooManyDropped as error:  # its table is made: no row of it is refused
                found.append(str(error))
                continue
            except RequestError as error:
                problem = error
        log.info("source %r is refused; its other rows are looked at", source.name)
        found += _of_source(source, (data, loss, tokenizer, SHAPES[shape], choice), problem)
    return list(dict.fromkeys(found))


def _of_source(source: schema.Source, given: tuple, problem: RequestError) -> list[str]:
    """The sentences for a source that was refused with `problem`; `given`: the last arguments of
    `refused_rows`."""
    begin = problem.number if isinstance(problem, RefusedRow) else 0
    found: list[str] = []
    lost: Counter[str] = Counter()
    try:
        rows = open_rows(replace(source, on_error="skip"))  # broken lines are rows
        for made in refused_rows(rows, begin, source, *given):
            found += [sentence for _, sentence in made.refused]
            lost.update(reason for reason, _, _ in made.lost)
            if len(found) >= MOST:
                break
    except RequestError as error:  # a file that cannot be read on
        found.append(str(error))
    said = list(dict.fromkeys(found)) or [str(problem)]  # what names no row is the same of all
    if len(said) == 1 and not (found and lost):
        return said
    *_, choice = given
    whole = choice is not None or begin == 0  # else the rows before the first were not looked at again
    others = "others" if whole else "rows behind the first of them" if len(found) > 1 else "rows behind it"
    return [*said[:SHOWN], _summary(source.name, len(found), _drops(lost, others))]


def _drops(lost: Counter[str], others: str) -> str:
    """How many of the `others` would be dropped or cut, as a part of a sentence; empty for none."""
    reasons = sorted(lost.items(), key=lambda each: (-each[1], each[0]))
    dropped = [f"{reason} {count:,}" for reason, count in reasons if reason != "truncated"]
    said = []
    if dropped:
        said.append(f"{lost.total() - lost['truncated']:,} would be dropped ({', '.join(dropped)})")
    if lost["truncated"]:
        said.append(f"{lost['truncated']:,} would be cut (truncated)")
    return f"; of the {others} {' and '.join(said)}" if said else ""


def _summary(name: str, count: int, drops: str) -> str:
    rows, repair = (f"{count:,} rows are", "them") if count > 1 else ("a row is", "it")
    said = f"source {name!r}: {rows} refused"
    if count > SHOWN:
        said += f", of which the first {SHOWN} are named"
    if count >= MOST:
        said += "; the rows behind them were not looked at"
    return f"{said}{drops}; repair {repair}, or set on_error: skip on the source, which drops such rows"
