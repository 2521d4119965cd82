"""Groups of completions: prompts in the order of a mixture, sampled by a `Generator`, judged by a recipe's rewards.

A prompt's place in the mixture names its random stream, so its completions are the same whatever else is sampled with
it, on however many ranks, before or after a restart. Left out: what is done with groups (advantages, pairs, rates).
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
    """A prompt of a run."""

    position: int
    """Its place in the mixture, and its random stream."""
    source: str
    row: int
    """Its number in the source as it was read."""
    ids: list[int]
    asked: Asked


class Prompts:
    """`prompts[i]`: the prompt at position i of the mixture; i may lie in a later epoch."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def __len__(self) -> int:
        """Prompts of one epoch."""
        return len(self.prepared.mixture)

    def __getitem__(self, i: int) -> Prompt:
        source, row = self.prepared.mixture[i]
        table = self.prepared.tables[source]
        ids = table[row].input_ids.tolist()
        return Prompt(i, self.prepared.names[source], table.origin(row), ids, table.asked(row))


@dataclass(slots=True)
class Group:
    """The completions of one prompt and what the rewards say of them, in order of the samples."""

    prompt: Prompt
    completions: list[Completion]
    graded: list[Graded] = field(default_factory=list)
    round: int = 0
    """Above 0: sampled to refill a batch."""

    @property
    def successes(self) -> list[bool]:
        """Solved or not, of those that could be judged."""
        return [g.success for g in self.graded if g.success is not None]


def sample(generator: Generator, prompts: Sequence[Prompt], rollout: Rollout, seed: int) -> list[Group]:
    """`rollout.num_generations` completions of each prompt, not judged yet."""
    sampling = Sampling(rollout.temperature, rollout.top_p, rollout.max_new_tokens, rollout.batch_size)
    groups = [Group(prompt, []) for prompt in prompts]
    for one in generator.generate(
        [p.ids for p in prompts],
        rollout.num_generations,
        sampling,
        seed,
        streams=[p.position for p in prompts],
    ):
        groups[one.prompt_index].completions.append(one)
    return groups


def judge(
    groups: Sequence[Group], rewards: Composite, rollout: Rollout, done: Callable[[], None] = lambda: None
) -> None:
    """Fills in `graded` of all groups, in one call of the rewards."""
    texts = [c.text for group in groups for c in group.completions]
    rows = []
    for group in groups:
        row = group.prompt.asked.example()
        for one in group.completions:
            counted = {TOKENS: len(one.token_ids)}  # what shaping by length counts
            rows.append(replace(row, extra=row.extra | counted))
    graded = iter(rewards.grade(texts, rows, rollout.deadline, done=done))
    for group in groups:
        group.graded = [next(graded) for _ in group.completions]
