"""The reward of a recipe: a weighted sum of rewards for each completion, with every component kept.

value = sum of weight * component. If the check of a component failed, the value is None and training leaves
the completion out: a failed check is not counted as 0. A row may name its verifiers in a column `rewards`;
shaping terms apply to every row. Left out: the share of failed checks at which a run stops; see
`too_many_failed` in `rollouts/groups.py`.
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
"""Column with the verifiers of a row: one label, or a list of labels."""


@dataclass(slots=True)
class Graded:
    """The scores of one completion by all rewards of a recipe."""

    value: float | None
    """The scalar reward; None if a check failed."""
    success: bool | None
    """Whether the problem is solved, for pass@k and success rates; None if the deciding check failed."""
    components: dict[str, Verdict] = field(default_factory=dict)
    """Label -> verdict, for the components that apply to the row."""

    @property
    def failed(self) -> bool:
        """Whether a check failed that the value or the success depends on."""
        return self.value is None or self.success is None


@dataclass(frozen=True)
class Component:
    """One entry of the section `rewards:` of a recipe."""

    label: str
    weight: float
    bound: Bound

    @property
    def verifies(self) -> bool:
        return not self.bound.spec.shaping


class Composite:
    """The rewards of a recipe, ready to grade completions.

    Raises:
        RequestError: unknown rewards or options, duplicate labels, no verifier, an unknown `success`; one
            line for each problem.
    """

    def __init__(self, rewards: Sequence[Reward], success: Success | None = None) -> None:
        wrong, self.components = [], []
        for i, each in enumerate(rewards):
            at, label = f"rewards[{i}]", each.label or each.name
            if label in {c.label for c in self.components}:
                wrong.append(f"{at}: {label!r} is listed twice; give one of them a label")
            try:
                self.components.append(Component(label, each.weight, bind(each.name, each.options, at)))
            except RequestError as error:
                wrong.append(str(error))
        verifiers = [c.label for c in self.components if c.verifies]
        if not wrong and not verifiers:
            wrong.append("rewards: name at least one verifier; shaping terms do not decide success")
        self.success = success or Success(reward=verifiers[0] if verifiers else "")
        if not wrong and self.success.reward not in verifiers:
            near = did_you_mean(self.success.reward, verifiers)
            wrong.append(f"success.reward = {self.success.reward!r} is not a verifier of this recipe{near}")
        if wrong:
            raise RequestError("\n".join(wrong))

    def missing(self) -> list[str]:
        """What this machine lacks to run the rewards: one sentence for each reward concerned."""
        specs = [c.bound.spec for c in self.components]
        found = [(s.name, s.lacks) for s in specs]
        return [f"reward {name!r}: {sentence}" for name, sentence in found if sentence]

    def check_rows(self, examples: Sequence[Any]) -> None:
        """Raises `RequestError` for the first row that lacks a column or cannot be scored."""
        for item in examples:
            example = as_example(item)
            for component in self.applying(example):
                component.bound.check_row(example)

    def applying(self, example: Example) -> list[Component]:
        """The components that score a row: all, or the verifiers that it names and the shaping terms.

        Raises:
            RequestError: the row names a label that is not a verifier; with file and line.
        """
        named = example.extra.get(COLUMN)
        if not named:
            return self.components
        labels = [named] if isinstance(named, str) else named
        known = [c.label for c in self.components if c.verifies]
        for label in labels:
            if label not in known:
                where = f"{example.where}: " if example.where else ""
                near = did_you_mean(label, known)
                sentence = f"column {COLUMN!r} names {label!r}, which is not a verifier of this recipe"
                raise RequestError(f"{where}{sentence}{near}")
        return [c for c in self.components if not c.verifies or c.label in labels]

    def grade(
        self,
        completions: Sequence[str],
        examples: Sequence[Any],
        deadline_s: float | None = None,
        workers: int | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> list[Graded]:
        """One `Graded` for each completion, in order. The other arguments are those of `score_batch`."""
        rows = [as_example(example) for example in examples]
        graded = [Graded(None, None) for _ in rows]
        applying = [{c.label for c in self.applying(row)} for row in rows]
        for component in self.components:
            at = [i for i, labels in enumerate(applying) if component.label in labels]
            texts, its = [completions[i] for i in at], [rows[i] for i in at]
            verdicts = score_batch(component.bound, texts, its, deadline_s, workers, done)
            for i, verdict in zip(at, verdicts, strict=True):
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
    """The metrics of a batch.

    `reward` and `success` (means over the known values), `reward/<label>` (mean), `reward/<label>/ms` (mean
    time in milliseconds), and the shares of verdicts that were not plainly scored: `reward/<label>/timeout`,
    `/error`, `/unparseable` and `/limit`.
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
