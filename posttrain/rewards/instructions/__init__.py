"""The reward `instructions`: whether a text follows instructions that a program can check.

It covers IFEval's 25 instructions (Zhou et al. 2023, arXiv 2311.07911; ids such as `keywords:existence`) and
the constraints of IFBench (Pyatkin et al. 2025, arXiv 2507.02833; ids such as `count:word_count_range`). A
row names its instructions and their arguments; `table` has one function for each id. A row without ids may
have one instruction as its answer, as in Tulu 3's RLVR data (`tulu`). Nothing is downloaded. Left out:
`words:start_verb`, which needs a part-of-speech tagger, and `words:odd_even_syllables`, which needs a
dictionary of syllables. Imports `posttrain.types`, `posttrain.errors` and from `rewards` only `registry`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from posttrain.rewards.instructions import (  # noqa: F401  (importing fills the table)
    counts,
    custom,
    keywords,
    layout,
    length,
    marks,
    order,
    shape,
    tulu,
)
from posttrain.rewards.instructions.table import TABLE, Instruction, bind
from posttrain.rewards.registry import reward
from posttrain.types import Example, Verdict

__all__ = ["TABLE", "instructions"]
LONGEST = 200_000
"""Characters of a completion. A longer one is refused: no instruction requires it."""
Mode = Literal["compat", "fixed"]
Entries = list[tuple[Instruction, dict[str, object]]]


def check_row(example: Example, mode: Mode) -> None:
    """Raises ValueError if an instruction of the row is unknown or does not take the row's arguments."""
    for entry, kwargs in _entries(example):
        entry.follow("a", kwargs, mode == "fixed")  # fails on a keyword that is not a pattern


def prepare() -> None:
    """Loads the language profiles, which takes longer than most checks."""
    with contextlib.suppress(ImportError):
        keywords.language_of("a few words")


@reward(
    "instructions",
    columns=("instruction_id_list|answer", "kwargs|answer"),
    check_row=check_row,
    runs="worker",
    limit_s=2.0,
    prepare=prepare,
)
def instructions(
    completion: str,
    example: Example,
    mode: Mode = "compat",
    strictness: Literal["strict", "loose", "both"] = "strict",
    grade: Literal["all", "fraction"] = "all",
) -> Verdict:
    """Whether the completion follows the instructions of its row (IFEval, IFBench).

    `mode`: `compat` agrees with the published checkers, including their known defects; `fixed` checks what
    the instruction says. `strictness`: `loose` also tries the text without its first line, its last line,
    both, and each of these without asterisks; `both` is strict, with `loosely` beside it in the details.
    `grade`: `all` gives 1.0 when every instruction is followed, `fraction` the share that is.
    `details["instructions"]` has, for each, whether it was followed and if not, why.

    An empty completion is `unparseable`; one of more than 200,000 characters is `limit`. The language is
    detected by langdetect with a fixed seed, so that equal texts get equal verdicts.
    """
    if not completion.strip():
        return Verdict(0.0, "unparseable", "the completion is empty")
    if len(completion) > LONGEST:
        what = f"a completion of {len(completion):,} characters, at most {LONGEST:,} are read"
        return Verdict(0.0, "scored", "limit", details={"limit": what})
    entries = _entries(example)
    variants = [completion] if strictness == "strict" else list(dict.fromkeys(loose(completion)))
    found = []
    for entry, kwargs in entries:
        reasons = (entry.follow(text, kwargs, mode == "fixed") for text in variants)
        first = next(reasons)
        loosely = not first or any(not reason for reason in reasons)
        followed = not first if strictness == "both" else loosely
        found.append({"id": entry.id, "followed": followed, "reason": "" if followed else first})
        if strictness == "both":
            found[-1]["loosely"] = loosely
    share = sum(one["followed"] for one in found) / len(found)
    value = share if grade == "fraction" else float(share == 1)
    reason = "; ".join(f"{one['id']}: {one['reason']}" for one in found if not one["followed"])
    return Verdict(value, "scored", reason, details={"instructions": found})


def loose(text: str) -> Iterator[str]:
    """The variants of a text that the official checkers try, without empty ones, the text itself first."""
    lines = text.split("\n")
    parts = (lines[1:], lines[:-1], lines[1:-1])
    for each in (text, *("\n".join(part).strip() for part in parts)):
        for variant in (each, each.replace("*", "")):
            if variant.strip():
                yield variant


def _entries(example: Example) -> Entries:
    """The instructions of a row with their arguments; raises ValueError as `check_row` does."""
    ids, kwargs = (example.extra.get(name) for name in ("instruction_id_list", "kwargs"))
    if ids is None and example.answer is not None:
        return [tulu.decode(example.answer, example.prompt)]
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"instruction_id_list must be a list of ids, not {ids!r}")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids):
        size = f"{len(kwargs)} entries" if isinstance(kwargs, list) else repr(kwargs)
        raise ValueError(f"kwargs must be a list of {len(ids)}, one for each id, not {size}")
    return [bind(id, given, example.prompt) for id, given in zip(ids, kwargs, strict=True)]
