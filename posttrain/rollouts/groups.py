"""Groups of completions: prompts in mixture order, sampled by a `Generator`, scored by a recipe's rewards.

The position of a prompt in the mixture is its random stream, so its completions do not depend on the other
prompts of a call, on the number of ranks, or on restarts. Left out: what groups are used for (advantages,
pairs, rates).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from posttrain.data.prepare import Prepared
from posttrain.data.shapes.prompts import Asked
from posttrain.generation.base import Completion, Generator, Sampling
from posttrain.recipe.sections import Rollout
from posttrain.rewards.compose import Composite, Graded
from posttrain.rewards.simple.shaping import TOKENS


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a run."""

    position: int
    """Index in the mixture; also the random stream."""
    source: str
    row: int
    """Index of its row in the source, dropped rows included."""
    ids: list[int]
    asked: Asked


class Prompts:
    """`prompts[i]` is the prompt at position i of the mixture; i may be in a later epoch."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def __len__(self) -> int:
        """Number of prompts in one epoch."""
        return len(self.prepared.mixture)

    def __getitem__(self, i: int) -> Prompt:
        source, row = self.prepared.mixture[i]
        table = self.prepared.tables[source]
        ids = table[row].input_ids.tolist()
        return Prompt(i, self.prepared.names[source], table.origin(row), ids, table.asked(row))


@dataclass(slots=True)
class Group:
    """The completions of one prompt and their scores, ordered by sample."""

    prompt: Prompt
    completions: list[Completion]
    graded: list[Graded] = field(default_factory=list)
    round: int = 0
    """0, or the number of the refill round (dynamic sampling)."""

    @property
    def successes(self) -> list[bool]:
        """Solved or not, of the completions whose success is known."""
        return [g.success for g in self.graded if g.success is not None]


def sampling_of(rollout: Rollout) -> Sampling:
    """How a recipe's `rollout` section samples."""
    return Sampling(rollout.temperature, rollout.top_p, rollout.max_new_tokens, rollout.batch_size)


def sample(generator: Generator, prompts: Sequence[Prompt], rollout: Rollout, seed: int) -> list[Group]:
    """A group of `rollout.num_generations` completions for each prompt, not scored yet."""
    groups = [Group(prompt, []) for prompt in prompts]
    for one in generator.generate(
        [p.ids for p in prompts],
        rollout.num_generations,
        sampling_of(rollout),
        seed,
        streams=[p.position for p in prompts],
    ):
        groups[one.prompt_index].completions.append(one)
    return groups


def score(
    groups: Sequence[Group], rewards: Composite, rollout: Rollout, done: Callable[[], None] = lambda: None
) -> None:
    """Fills in `graded` of all groups with one call of the rewards, which calls `done` between verdicts."""
    texts = [c.text for group in groups for c in group.completions]
    rows = []
    for group in groups:
        row = group.prompt.asked.example()
        for one in group.completions:
            counted = {TOKENS: len(one.token_ids)}  # for shaping terms that depend on the length
            rows.append(replace(row, extra=row.extra | counted))
    graded = iter(rewards.grade(texts, rows, rollout.deadline, done=done))
    for group in groups:
        group.graded = [next(graded) for _ in group.completions]


def too_many_failed(failed: int, total: int, most: float, what: str) -> str | None:
    """Why a run stops, where more than a share `most` of `total` checks failed; `what` follows "checks"."""
    if failed <= most * total:
        return None
    return f"{failed} of {total} checks {what}, more than rollout.max_failed = {most:g}"
