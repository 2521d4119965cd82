"""Preference pairs from the completions of one prompt, as pure functions of their rewards and verdicts.

    best_worst         the highest reward against the lowest
    best_random        the highest against a random lower one (UltraFeedback as binarised in arXiv 2310.16944; Tulu 3, 2411.15124)
    correct_incorrect  a random solved one against a random unsolved one, up to `per_prompt` pairs without a common text

A completion whose check failed (reward or success null) never takes part, nor does a blank one. A completion that was cut
off is never chosen, since a pair would teach it an end it did not have; rejected, it is marked as a prefix. Every choice
is a lot drawn from (seed, position of the prompt, sample): the order of the rows does not matter. Left out: pairs that
need further sampling (steps.py), reading and writing of files (posttrain/pairs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.data.order import key_of
from posttrain.data.shapes.rows import TRANSCRIPT
from posttrain.recipe.sections import Pairing
from posttrain.types import Message

Row = dict[str, Any]
"""A completion as the rollout files have it."""
TOLERANCE = 1e-9
"""Rewards nearer than this are equal: a weighted sum is rounded, and a rounding is no preference."""


class NoPair(Exception):
    """A group gives no pair; `reason` is the slug it is counted under.

    too_few (fewer than two completions), unjudged (fewer than two judged), all_equal, all_right, all_wrong, blank,
    cut_off (nothing to choose ended by itself), gap_too_small, same_text.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Side:
    """One reply of a pair. `tokens` counts its end token where it has one; `is_prefix`: the reply goes on after it."""

    text: str
    tokens: int
    reward: float | None
    sample: int | None
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    chosen: Side
    rejected: Side


def best_worst(rows: list[Row], options: Pairing, seed: int) -> list[Pair]:
    """One pair, or `NoPair`."""
    chosen, lower = _best(rows, options, seed)
    worst = min(row["reward"] for row in lower) + TOLERANCE
    return [_pair(chosen, [row for row in lower if row["reward"] <= worst], options, seed)]


def best_random(rows: list[Row], options: Pairing, seed: int) -> list[Pair]:
    """One pair, or `NoPair`."""
    return [_pair(*_best(rows, options, seed), options, seed)]


def correct_incorrect(rows: list[Row], options: Pairing, seed: int) -> list[Pair]:
    """Up to `options.per_prompt` pairs, or `NoPair`. A text stands in one pair only, however often it was sampled."""
    right, wrong = solved_and_not(rows, seed)
    pairs: list[Pair] = []
    reason = "same_text"
    while right and wrong and len(pairs) < options.per_prompt:
        first = right.pop(0)
        apart = [row for row in wrong if text_of(row) != text_of(first)]
        possible = [row for row in apart if gap(first["reward"], row["reward"], options)]
        if possible:
            pairs.append(_pair(first, possible, options, seed))
            used = pairs[-1].rejected.sample
            wrong = [row for row in wrong if row["sample"] != used]
        elif apart:
            reason = "gap_too_small"
    if not pairs:
        raise NoPair(reason)
    return pairs


STRATEGIES: dict[str, Callable[[list[Row], Pairing, int], list[Pair]]] = {
    "best_worst": best_worst,
    "best_random": best_random,
    "correct_incorrect": correct_incorrect,
}


def solved_and_not(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Solved completions that ended, and unsolved ones: each text once, in the order of their lots; or `NoPair`.

    The first of either list is a fair draw among the completions, so a frequent text is as likely as it is frequent.
    """
    wrong = unsolved(rows, seed)
    right = _some(_judged(rows), lambda row: row["success"] is True, "all_wrong")
    ended = _some(_some(right, text_of, "blank"), _ended, "cut_off")
    return _distinct(ended, seed), wrong


def unsolved(rows: list[Row], seed: int) -> list[Row]:
    """The second half of `solved_and_not`."""
    wrong = _some(_judged(rows), lambda row: row["success"] is False, "all_right")
    return _distinct(_some(wrong, text_of, "blank"), seed)


def lot(row: Row, seed: int) -> int:
    """The number that decides between equals: the least wins."""
    return key_of("pairs", seed, row["position"], row["sample"])


def side(row: Row) -> Side:
    """A whole completion as one side of a pair."""
    cut = not _ended(row)
    return Side(row["completion"], row["tokens"], row["reward"], row["sample"], is_prefix=cut)


def gap(chosen: float, rejected: float, options: Pairing) -> bool:
    """Whether two rewards differ by `min_gap`. Without one, a right answer may have the lower reward (shaping)."""
    return options.min_gap == 0 or chosen - rejected >= options.min_gap - TOLERANCE


def text_of(row: Row) -> str:
    """What the data layer compares: replies that differ in outer white space only are one text."""
    return row["completion"].strip()


def written(
    pair: Pair, prompt: str | list[Message], about: Row, strategy: str, checkpoint: str
) -> dict[str, Any]:
    """The row of pairs.jsonl. `about` is any row of the group; `prompt` is text, or the messages it was asked with.

    Replies are text where the prompt is, messages where it is a list. A reply that opens like a transcript
    (`Human:`) would be read back as a conversation of its own, so such a pair is written as messages too.
    """
    replies: list[Any] = [pair.chosen.text, pair.rejected.text]
    if isinstance(prompt, str) and any(TRANSCRIPT.match(text) for text in replies):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, str):
        replies = [[{"role": "assistant", "content": text}] for text in replies]
    row = {
        "prompt": prompt,
        "chosen": replies[0],
        "rejected": replies[1],
        "chosen_reward": pair.chosen.reward,
        "rejected_reward": pair.rejected.reward,
        "chosen_tokens": pair.chosen.tokens,
        "rejected_tokens": pair.rejected.tokens,
        "strategy": strategy,
        "source": about["source"],
        "row": about["row"],
        "where": about["where"],
        "checkpoint": checkpoint,
        "chosen_sample": pair.chosen.sample,
        "rejected_sample": pair.rejected.sample,
    }
    return row | ({"rejected_is_prefix": True} if pair.rejected.is_prefix else {})


def _best(rows: list[Row], options: Pairing, seed: int) -> tuple[Row, list[Row]]:
    """The highest reward among those that ended, and all that are lower by enough."""
    known = _judged(rows)
    rewards = [row["reward"] for row in known]
    if max(rewards) - min(rewards) <= TOLERANCE:
        raise NoPair("all_equal")
    known = _some(known, text_of, "blank")
    ended = _some(known, _ended, "cut_off")
    top = max(row["reward"] for row in ended) - TOLERANCE
    chosen = min((row for row in ended if row["reward"] >= top), key=lambda row: lot(row, seed))
    higher = any(row["reward"] > top + 2 * TOLERANCE for row in known)
    lower = _some(known, lambda row: row["reward"] < top, "cut_off" if higher else "blank")
    lower = _some(lower, lambda row: text_of(row) != text_of(chosen), "same_text")
    return chosen, _some(lower, lambda row: gap(chosen["reward"], row["reward"], options), "gap_too_small")


def _pair(chosen: Row, possible: list[Row], options: Pairing, seed: int) -> Pair:
    """`chosen` with one of `possible`: the nearest in length if that is asked for, else by lot."""

    def order(row: Row) -> tuple[int, int]:
        apart = abs(row["tokens"] - chosen["tokens"]) if options.prefer_length == "closest" else 0
        return apart, lot(row, seed)

    return Pair(side(chosen), side(min(possible, key=order)))


def _judged(rows: list[Row]) -> list[Row]:
    if len(rows) < 2:
        raise NoPair("too_few")
    known = [row for row in rows if row["reward"] is not None and row["success"] is not None]
    if len(known) < 2:
        raise NoPair("unjudged")
    return known


def _ended(row: Row) -> bool:
    return row["finish"] == "stop"


def _some(rows: list[Row], test: Callable[[Row], Any], reason: str) -> list[Row]:
    kept = [row for row in rows if test(row)]
    if not kept:
        raise NoPair(reason)
    return kept


def _distinct(rows: list[Row], seed: int) -> list[Row]:
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: lot(row, seed)):
        first.setdefault(text_of(row), row)
    return list(first.values())
