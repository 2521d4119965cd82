"""Pairs that need further sampling: Monte-Carlo values for the solution steps of a completion.

A completion is split into solution steps at a delimiter. The value Q(y_1..y_i) of a prefix is the share of
solved ones among K continuations of it; the first pit is the first solution step with the lowest Q, where Q
of the complete wrong completion is 0.

    first_pit    a solved completion against the wrong one up to and including its first pit; arXiv 2406.14532
    cross_model  the student's prefix before the pit with a solved continuation of the teacher against the
                 student's own wrong completion; SuperCorrect, arXiv 2410.09008

The paper of `first_pit` takes the value of the best of K continuations, 1 - (1 - Q)^K, whose minimum is at
the same solution step. In `cross_model` the values are the teacher's, while the paper lets the teacher point
out the solution step in words; and both replies are complete, so they share the common prefix. The function
that samples is an argument. Left out: bisection over solution steps, process reward models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posttrain.recipe.sections import Pairing
from posttrain.rollouts.pairing import NoPair, Pair, Side, gap, side, solved_and_not, text_of, unsolved
from posttrain.rollouts.records import Row


@dataclass(frozen=True, slots=True)
class Continuation:
    """What follows a prefix; success and reward are those of both together (None: the check failed).

    `ended`: at an end of turn, not truncated nor at the end of a call.
    """

    text: str
    ended: bool
    success: bool | None
    reward: float | None


ContinueFrom = Callable[[Row, list[str], int], list[list[Continuation]]]
"""(row, prefixes of its completion, k) -> k continuations of each; the prefix "" is the prompt alone."""


def prefixes(text: str, delimiter: str) -> list[str]:
    """`text` up to the end of each solution step; the last prefix is the full text.

    A delimiter belongs to the solution step that it ends, and so does white space alone after it.
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
    """Share of solved continuations among those with a verdict; None without any."""
    known = [each.success for each in continuations if each.success is not None]
    return sum(known) / len(known) if known else None


def pit(values: list[float | None]) -> int:
    """Index of the first minimum; unknown values are skipped. At least one must be known."""
    known = [(each, i) for i, each in enumerate(values) if each is not None]
    return min(known)[1]


def first_pit(
    rows: list[Row], options: Pairing, seed: int, continue_from: ContinueFrom, count: Callable[[str], int]
) -> list[Pair]:
    """One pair, or `NoPair`. `count` returns the number of tokens of a text.

    The chosen side must not begin with the rejected prefix: the loss would push the same tokens up and down.
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
    """One pair, or `NoPair` (`no_correction`: no continuation of the teacher is solved).

    `continue_from` samples from the teacher; `count` returns the number of the student's tokens, without an
    end token.
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


STEP_STRATEGIES = {"first_pit": first_pit, "cross_model": cross_model}
"""`pairing.strategy` -> function that also takes how to continue a prefix and how to count tokens."""
