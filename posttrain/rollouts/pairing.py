"""Preference pairs from the rollouts of one prompt, as pure functions of their rewards and successes.

    best_worst         the highest reward against the lowest
    best_random        the highest reward against a random lower one (UltraFeedback as binarised in arXiv
                       2310.16944; Tulu 3, arXiv 2411.15124)
    correct_incorrect  a random solved completion against a random unsolved one, up to `per_prompt` pairs; no
                       text is used twice

A completion whose check failed (reward or success null) is never used, nor is a blank one. A truncated
completion is never chosen, because the pair would teach an end that it did not have; if rejected, it is
marked as a prefix. Random choices depend only on (seed, position of the prompt, sample), so the order of the
rows does not matter. Left out: pairs that need further sampling (step_pairing.py), reading and writing files
(posttrain/pairs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.data.order import key_of
from posttrain.data.shapes.rows import TRANSCRIPT
from posttrain.recipe.sections import Pairing
from posttrain.rollouts.records import Row
from posttrain.types import Example

TOLERANCE = 1e-9
"""Rewards that differ by less are equal: a weighted sum is rounded, and rounding is not a preference."""


class NoPair(Exception):
    """A group without a pair; `reason` is the key under which it is counted.

    too_few (fewer than two completions), unjudged (fewer than two with a verdict), all_equal, all_right,
    all_wrong, blank, cut_off (no candidate for the chosen side ended by itself), gap_too_small, same_text;
    no_correction (cross_model).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Side:
    """One reply of a pair. `tokens` counts an end token too; `is_prefix`: no end of turn follows the text."""

    text: str
    tokens: int
    reward: float | None
    sample: int | None
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """The two replies of a pair."""

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
    """Up to `options.per_prompt` pairs, or `NoPair`. A text is in one pair only, however often sampled."""
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
"""`pairing.strategy` -> function of the rows of a group; those that sample further are in step_pairing.py."""


def solved_and_not(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Solved completions that ended, and unsolved ones: each text once, in random order; or `NoPair`.

    The first of either list is a uniform draw among the completions, so the probability of a text is its
    frequency.
    """
    wrong = unsolved(rows, seed)
    right = _require(_with_verdicts(rows), lambda row: row["success"] is True, "all_wrong")
    ended = _require(_require(right, text_of, "blank"), _ended, "cut_off")
    return _distinct(ended, seed), wrong


def unsolved(rows: list[Row], seed: int) -> list[Row]:
    """Unsolved completions: each text once, in random order; or `NoPair`."""
    wrong = _require(_with_verdicts(rows), lambda row: row["success"] is False, "all_right")
    return _distinct(_require(wrong, text_of, "blank"), seed)


def tie_break(row: Row, seed: int) -> int:
    """A random number of a row that decides between equal ones: the smallest wins."""
    return key_of("pairs", seed, row["position"], row["sample"])


def side(row: Row) -> Side:
    """A complete rollout as one side of a pair."""
    # a call keeps the token that ends it where that is not the end of turn, which a dpo stage would add
    call = row.get("end_of_call", "")
    cut = bool(call) or not _ended(row)
    return Side(row["completion"] + call, row["tokens"], row["reward"], row["sample"], is_prefix=cut)


def gap(chosen: float, rejected: float, options: Pairing) -> bool:
    """Whether two rewards differ by `min_gap`; at 0 a right answer may have the lower reward (shaping)."""
    return options.min_gap == 0 or chosen - rejected >= options.min_gap - TOLERANCE


def text_of(row: Row) -> str:
    """The text by which replies are compared, as in the data layer: without outer white space."""
    return row["completion"].strip()


def pair_row(
    pair: Pair, asked: Example, about: Row, strategy: str, checkpoint: str, opened: str = ""
) -> dict[str, Any]:
    """The row of pairs.jsonl. `asked` is the prompt, with its tools and template options; `about` is any row
    of the group; `opened` is what the prompt opens of a reply (`Template.opened`).

    Replies are text if the prompt is, else messages. A prompt or a reply that begins like a transcript
    (`Human:`) would be read back as a conversation, so such a pair is written as messages, too.
    """
    prompt: Any = asked.prompt if asked.messages is None else asked.messages
    replies: list[Any] = [opened + pair.chosen.text, opened + pair.rejected.text]
    if isinstance(prompt, str) and any(TRANSCRIPT.match(text) for text in (prompt, *replies)):
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
    row |= {"tools": asked.tools} if asked.tools else {}
    row |= {"chat_template_kwargs": asked.template_options} if asked.template_options else {}
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return row | {f"{name}_is_prefix": True for name, side in sides.items() if side.is_prefix}


def _best(rows: list[Row], options: Pairing, seed: int) -> tuple[Row, list[Row]]:
    """The highest reward among completions that ended, and all completions with a reward enough below it."""
    known = _with_verdicts(rows)
    rewards = [row["reward"] for row in known]
    if max(rewards) - min(rewards) <= TOLERANCE:
        raise NoPair("all_equal")
    known = _require(known, text_of, "blank")
    ended = _require(known, _ended, "cut_off")
    top = max(row["reward"] for row in ended) - TOLERANCE
    chosen = min((row for row in ended if row["reward"] >= top), key=lambda row: tie_break(row, seed))
    higher = any(row["reward"] > top + 2 * TOLERANCE for row in known)
    lower = _require(known, lambda row: row["reward"] < top, "cut_off" if higher else "blank")
    lower = _require(lower, lambda row: text_of(row) != text_of(chosen), "same_text")
    return chosen, _require(lower, lambda row: gap(chosen["reward"], row["reward"], options), "gap_too_small")


def _pair(chosen: Row, possible: list[Row], options: Pairing, seed: int) -> Pair:
    """`chosen` with one of `possible`: the nearest in length (`prefer_length: closest`) or a random one."""

    def order(row: Row) -> tuple[int, int]:
        apart = abs(row["tokens"] - chosen["tokens"]) if options.prefer_length == "closest" else 0
        return apart, tie_break(row, seed)

    return Pair(side(chosen), side(min(possible, key=order)))


def _with_verdicts(rows: list[Row]) -> list[Row]:
    if len(rows) < 2:
        raise NoPair("too_few")
    known = [row for row in rows if row["reward"] is not None and row["success"] is not None]
    if len(known) < 2:
        raise NoPair("unjudged")
    return known


def _ended(row: Row) -> bool:
    return row["finish"] == "stop"


def _require(rows: list[Row], test: Callable[[Row], Any], reason: str) -> list[Row]:
    kept = [row for row in rows if test(row)]
    if not kept:
        raise NoPair(reason)
    return kept


def _distinct(rows: list[Row], seed: int) -> list[Row]:
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: tie_break(row, seed)):
        first.setdefault(text_of(row), row)
    return list(first.values())
