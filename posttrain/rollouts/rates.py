"""Success rates of prompts: of each, as counts over all, and which prompts to keep.

A completion whose check failed counts neither as right nor as wrong. Left out: intervals
(evaluate/intervals.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.recipe.sections import Keep


@dataclass(frozen=True, slots=True)
class Rate:
    """The success rate of one prompt: completions with a verdict, and how many of them are right."""

    right: int
    judged: int

    @property
    def p(self) -> float | None:
        """Share of right completions; None without any verdict."""
        return self.right / self.judged if self.judged else None

    def columns(self) -> dict[str, Any]:
        """Columns that are added to the row of the prompt."""
        return {"p": self.p, "n_right": self.right, "n_judged": self.judged}

    def within(self, keep: Keep) -> bool:
        """Whether the prompt is neither too easy nor too hard; False without any verdict."""
        return self.judged > 0 and keep.at_least <= self.right <= keep.at_most


def rate_of(rows: Iterable[dict[str, Any]]) -> Rate:
    """The rate of a group, from its rollouts."""
    known = [row["success"] for row in rows if row["success"] is not None]
    return Rate(sum(known), len(known))


def by_count(rates: Iterable[Rate], n: int) -> list[int]:
    """Numbers of prompts with 0, 1, ..., n right completions [n + 1]; those without verdicts are left out."""
    found = [0] * (n + 1)
    for rate in rates:
        if rate.judged:
            found[rate.right] += 1
    return found
