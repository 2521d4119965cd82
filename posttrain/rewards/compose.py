"""The reward of a recipe: several rewards with weights become one number a completion, and every part is kept.

value = sum of weight * component. A component whose checker failed makes the value None, which training masks
out: an unknown part is not a zero. A row may name its verifiers in a column `rewards`; shaping terms apply to every
row. Left out: how often checkers may fail before a run stops; the trainer has that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.sections import Reward, Success
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.registry import Bound, as_example, bind
from posttrain.types import Example, Verdict

COLUMN = "rewards"
"""A row's own list of verifiers, by label: one name, or a list of them."""


@dataclass(slots=True)
class Graded:
    """What all rewards of a recipe say of one completion."""

    value: float | None
    """The scalar reward; None where a checker failed."""
    success: bool | None
    """Solved or not, for pass@k and success rates; None where the deciding checker failed."""
    components: dict[str, Verdict] = field(default_factory=dict)
    """By label; only those that apply to the row."""

    @property
    def failed(self) -> bool:
        """Whether a check failed that the reward or the success hangs on."""
        return self.value is None or self.success is None


@dataclass(frozen=True)
class Component:
    """One line of a recipe's `rewards:`."""

    label: str
    weight: float
    bound: Bound

    @property
    def verifies(self) -> bool:
        return not self.bound.spec.shaping


class Composite:
    """The rewards of a recipe, ready to grade.

    Raises:
        RequestError: unknown rewards or options, labels that stand twice, no verifier, an unknown `success`.
    """

    def __init__(self, rewards: Sequence[Reward], success: Success | None = None) -> None:
        wrong, self.components = [], []
        for i, each in enumerate(rewards):
            at, label = f"rewards[{i}]", each.label or each.name
            if label in {c.label for c in self.components}:
                wrong.append(f"{at}: {label!r} stands twice; give one of them a label")
            try:
                self.components.append(Component(label, each.weight, bind(each.name, each.options, at)))
            except RequestError as error:
                wrong.append(str(error))
        verifiers = [c.label for c in self.components if c.verifies]
        if not wrong and not verifiers:
            wrong.append("rewards: name at least one verifier; shaping terms alone say nothing of success")
        self.success = success or Success(reward=verifiers[0] if verifiers else "")
        if not wrong and self.success.reward not in verifiers:
            near = did_you_mean(self.success.reward, verifiers)
            wrong.append(f"success.reward = {self.success.reward!r} is no verifier of this recipe{near}")
        if wrong:
            raise RequestError("\n".join(wrong))

    def missing(self) -> list[str]:
        """What this machine lacks to run the rewards, a sentence each."""
        specs = [c.bound.spec for c in self.components]
        found = [(s.name, s.lacks) for s in specs]
        return [f"reward {name!r}: {sentence}" for name, sentence in found if sentence]

    def check_rows(self, examples: Sequence[Any]) -> None:
        """Raises `RequestError` at the first row that lacks a column or cannot be judged."""
        for item in examples:
            example = as_example(item)
            for component in self.applying(example):
                component.bound.check_row(example)

    def applying(self, example: Example) -> list[Component]:
        """The components that judge a row: all, or the verifiers it names and the shaping terms."""
        named = example.extra.get(COLUMN)
        if not named:
            return self.components
        labels = [named] if isinstance(named, str) else named
        known = [c.label for c in self.components if c.verifies]
        for label in labels:
            if label not in known:
                where = f"{example.where}: " if example.where else ""
                near = did_you_mean(label, known)
                raise RequestError(
                    f"{where}column {COLUMN!r} names {label!r}, no verifier of this recipe{near}"
                )
        return [c for c in self.components if not c.verifies or c.label in labels]

    def grade(
        self,
        completions: Sequence[str],
        examples: Sequence[Any],
        deadline_s: float | None = None,
        workers: int | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> list[Graded]:
        """One `Graded` a completion, in order; see `score_batch` for the deadline and the workers."""
        rows = [as_example(example) for example in examples]
        graded = [Graded(None, None) for _ in rows]
        applying = [{c.label for c in self.applying(row)} for row in rows]
        for component in self.components:
            at = [i for i, labels in enumerate(applying) if component.label in labels]
            texts, its = [completions[i] for i in at], [rows[i] for i in at]
            for i, verdict in zip(
                at, score_batch(component.bound, texts, its, deadline_s, workers, done), strict=True
            ):
                graded[i].components[component.label] = verdict
        for each in graded:
            self._settle(each)
        return graded

    def _settle(self, graded: Graded) -> None:
        parts = [(c, graded.components[c.label]) for c in self.components if c.label in graded.components]
        if all(verdict.value is not None for c, verdict in parts if c.weight):
            graded.value = sum(c.weight * verdict.value for c, verdict in parts if c.weight)
        deciding = [v for c, v in parts if c.label == self.success.reward]
        deciding = deciding or [v for c, v in parts if c.verifies]
        if deciding and deciding[0].value is not None:
            graded.success = deciding[0].value >= self.success.at_least


def summary(graded: Sequence[Graded]) -> dict[str, float]:
    """What to log of a batch.

    `reward` and `success` (means where known), `reward/<label>` (mean), `reward/<label>/ms`, and the share of each
    status and reason that is not plain scoring: `.../timeout`, `/error`, `/unparseable`, `/limit`.
    """
    found: dict[str, float] = {}
    values = [g.value for g in graded if g.value is not None]
    solved = [g.success for g in graded if g.success is not None]
    if values:
        found["reward"] = float(np.mean(values))
    if solved:
        found["success"] = float(np.mean(solved))
    for label in dict.fromkeys(label for g in graded for label in g.components):
        verdicts = [g.components[label] for g in graded if label in g.components]
        known = [v.value for v in verdicts if v.value is not None]
        if known:
            found[f"reward/{label}"] = float(np.mean(known))
        found[f"reward/{label}/ms"] = float(np.mean([v.ms for v in verdicts]))
        kinds = Counter("limit" if v.reason == "limit" else v.status for v in verdicts)
        for kind in ("timeout", "error", "unparseable", "limit"):
            found[f"reward/{label}/{kind}"] = kinds[kind] / len(verdicts)
    return found
