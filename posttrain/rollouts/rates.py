"""How often prompts are solved: the rate of each, how many have which count, which are worth training on.

Completions whose check failed count neither as right nor as wrong. Left out: intervals (evaluate/intervals.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.recipe.sections import Keep


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one prompt: completions that could be judged, and those of them that were right."""

    right: int
    judged: int

    @property
    def p(self) -> float | None:
        """Share right; None where no completion could be judged."""
        return self.right / self.judged if self.judged else None

    def columns(self) -> dict[str, Any]:
        """What is added to the prompt's row."""
        return {"p": self.p, "n_right": self.right, "n_judged": self.judged}

    def within(self, keep: Keep) -> bool:
        """Whether the prompt is neither too easy nor too hard. One of which nothing is known is not kept."""
        return self.judged > 0 and keep.at_least <= self.right <= keep.at_most


def rate_of(rows: Iterable[dict[str, Any]]) -> Rate:
    """The rate of a group, from its rows in the rollout files."""
    known = [row["success"] for row in rows if row["success"] is not None]
    return Rate(sum(known), len(known))


def by_count(rates: Iterable[Rate], n: int) -> list[int]:
    """[n + 1]: prompts of which 0, 1, ... n completions were right; those of which nothing is known are left out."""
    found = [0] * (n + 1)
    for rate in rates:
        if rate.judged:
            found[rate.right] += 1
    return found
