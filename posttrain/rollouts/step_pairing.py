"""Pairs that need further sampling: a value for every step of a completion, by Monte-Carlo.

A completion is split into steps at a delimiter. The value of a prefix is the share of solved ones among K completions
that go on from it, Q(y_1..y_i); the first pit is the first step of lowest Q, the whole wrong completion counting 0.

    first_pit    a solved completion against the wrong one up to and including its first pit    arXiv 2406.14532
    cross_model  the student's prefix before the pit with a solved continuation of the teacher against the student's
                 own wrong completion                                                           SuperCorrect, 2410.09008

The paper of `first_pit` values the best of K continuations, 1 - (1 - Q)^K, which has its lowest value at the same step.
For `cross_model` the values are the teacher's, where the paper has the teacher point at the step in words; and replies are
whole, so the common prefix stands on both sides. Sampling is a callable handed in. Left out: search over steps by
bisection, process reward models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posttrain.recipe.sections import Pairing
from posttrain.rollouts.pairing import NoPair, Pair, Row, Side, gap, side, solved_and_not, text_of, unsolved


@dataclass(frozen=True, slots=True)
class Continuation:
    """What follows a prefix, and what the rewards say of prefix and continuation together (None: the check failed).

    `ended`: it stopped by itself.
    """

    text: str
    ended: bool
    success: bool | None
    reward: float | None


ContinueFrom = Callable[[Row, list[str], int], list[list[Continuation]]]
"""(completion, its prefixes as text, k) -> k continuations of each prefix; the prefix "" is the bare prompt."""


def prefixes(text: str, delimiter: str) -> list[str]:
    """`text` up to the end of each step; the last is the whole text.

    A delimiter belongs to the step that it ends, and so does white space without anything else before the next one.
    """
    cuts: list[int] = []
    at = text.find(delimiter)
    while at >= 0:
        end = at + len(delimiter)
        if text[cuts[-1] if cuts else 0 : end].strip():
            cuts.append(end)
        elif cuts:
            cuts[-1] = end
        at = text.find(delimiter, end)
    if cuts and not text[cuts[-1] :].strip():
        cuts.pop()
    return [text[:cut] for cut in cuts] + [text]


def value(continuations: list[Continuation]) -> float | None:
    """Share of solved ones among those that were judged; None where none was."""
    known = [each.success for each in continuations if each.success is not None]
    return sum(known) / len(known) if known else None


def pit(values: list[float | None]) -> int:
    """Index of the first lowest value; an unknown one is never the lowest. At least one must be known."""
    known = [(each, i) for i, each in enumerate(values) if each is not None]
    return min(known)[1]


def first_pit(
    rows: list[Row], options: Pairing, seed: int, continue_from: ContinueFrom, count: Callable[[str], int]
) -> list[Pair]:
    """One pair, or `NoPair`. `count` gives the tokens of a text.

    The solved side does not begin with the rejected prefix: that would push the same tokens up and down.
    """
    right, wrong = solved_and_not(rows, seed)
    bad = wrong[0]
    steps = prefixes(bad["completion"], options.step_delimiter)
    after = continue_from(bad, steps[:-1], options.continuations) if len(steps) > 1 else []
    lowest = pit([*map(value, after), 0.0])
    rejected = side(bad)
    if lowest < len(steps) - 1:
        text = steps[lowest]
        rejected = Side(text, count(text), bad["reward"], bad["sample"], is_prefix=True)
    apart = [row for row in right if not text_of(row).startswith(rejected.text.strip())]
    possible = [row for row in apart if gap(row["reward"], bad["reward"], options)]
    if not possible:
        raise NoPair("gap_too_small" if apart else "same_text")
    return [Pair(side(possible[0]), rejected)]


def cross_model(
    rows: list[Row], options: Pairing, seed: int, continue_from: ContinueFrom, count: Callable[[str], int]
) -> list[Pair]:
    """One pair, or `NoPair` (also `no_correction`: the teacher solves it neither from there).

    `continue_from` is the teacher's; `count` gives the student's tokens of a text, to which an end token comes.
    """
    bad = unsolved(rows, seed)[0]
    steps = prefixes(bad["completion"], options.step_delimiter)
    after = continue_from(bad, ["", *steps[:-1]], options.continuations)
    before = pit([*map(value, after[1:]), 0.0])
    start = ["", *steps][before]
    sides = [
        Side(start + each.text, count(start + each.text) + 1, each.reward, None)
        for each in after[before]
        if each.success is True and each.reward is not None and each.ended
    ]
    solved = [each for each in sides if each.text.strip() not in ("", text_of(bad))]
    possible = [each for each in solved if gap(each.reward, bad["reward"], options)]
    if not possible:
        raise NoPair("gap_too_small" if solved else "no_correction")
    if options.prefer_length == "closest":
        possible.sort(key=lambda each: abs(each.tokens - bad["tokens"]))
    return [Pair(possible[0], side(bad))]


SAMPLED = {"first_pit": first_pit, "cross_model": cross_model}
