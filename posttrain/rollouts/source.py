"""Where an RLVR run gets its batches of groups: sampled and judged on all ranks, refilled where a group teaches nothing.

The state is one integer, the position in the mixture of the next prompt. Dynamic sampling (DAPO, arXiv 2503.14476,
eq. 11): groups all right or all wrong are set aside and as many new prompts sampled, in a bounded number of rounds; what
is still missing then is filled with groups set aside, so that a batch always has its size. Left out: advantages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import WorkError
from posttrain.recipe.sections import TrainRollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.collect import Group, Prompts, judge, sample

Gather = Callable[[Any], list[Any]]
"""This rank's value -> those of all ranks, in rank order."""


class Interrupted(WorkError):
    """The run was asked to stop while a batch was sampled; nothing of the batch counts."""


@dataclass(slots=True)
class Drawn:
    """A batch of groups, the same on all ranks."""

    groups: list[Group]
    """To be trained on."""
    aside: list[Group]
    """Sampled, and not trained on."""
    unfilled: int = 0
    """Of `groups` those that teach nothing, because the rounds ran out."""
    seconds: dict[str, float] = field(default_factory=dict)


class RolloutSource:
    """Draws batches.

    rank, ranks  prompts are dealt to the ranks in turn
    gather       collective; called as often on all ranks
    asked        whether this process has been asked to stop
    """

    def __init__(
        self, prompts: Prompts, rollout: TrainRollout, rewards: Composite, seed: int, rank: int = 0, ranks: int = 1,
        gather: Gather = lambda value: [value], asked: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.prompts, self.rollout, self.rewards, self.seed = prompts, rollout, rewards, seed
        self.rank, self.ranks, self.gather, self.asked = rank, ranks, gather, asked
        self.position = 0
        """Of the next prompt: the state of this source."""

    def draw(self, generating: Callable[[], Any], size: int) -> Drawn:
        """`size` groups. `generating()` is a context manager that gives the generator (collective).

        Raises:
            Interrupted: a rank was asked to stop; `position` is as before.
        """
        before = self.position
        drawn = Drawn([], [], seconds={"generate": 0.0, "score": 0.0})
        for number in range(self.rollout.refill + 1):
            try:
                found = self._round(generating, size - len(drawn.groups), number, drawn.seconds)
            except BaseException:
                self.position = before
                raise
            for group in found:
                kept = not self.rollout.refill or group.mixed
                (drawn.groups if kept else drawn.aside).append(group)
            if len(drawn.groups) == size:
                break
        drawn.unfilled = size - len(drawn.groups)
        if drawn.unfilled:
            drawn.groups += drawn.aside[-drawn.unfilled :]
            del drawn.aside[-drawn.unfilled :]
        return drawn

    def _round(self, generating, count: int, number: int, seconds: dict[str, float]) -> list[Group]:
        prompts = [self.prompts[self.position + i] for i in range(count)]
        self.position += count
        mine: list[Group] = []
        begun = time.perf_counter()
        with generating() as generator:
            share = prompts[self.rank :: self.ranks]
            if self.rollout.backend == "transformers":
                # a call a batch of sequences, so that a request to stop is heard between them
                size = max(1, self.rollout.batch_size // self.rollout.num_generations)
            else:  # vLLM makes its own batches, and its calls are collective: one on each rank
                size = max(1, count)
            for start in range(0, max(1, len(share)), size):
                if self.asked() and self.rollout.backend == "transformers":
                    break
                mine += sample(generator, share[start : start + size], self.rollout, self.seed)
        sampled = time.perf_counter()
        if not self.asked():
            judge(mine, self.rewards, self.rollout)
        judged = time.perf_counter()
        # A prompt's columns stay where they are: every rank has read them.
        told = [(g.prompt.position, g.completions, g.graded) for g in mine]
        parts = self.gather((self.asked(), told))
        if any(asked for asked, _ in parts):
            raise Interrupted("asked to stop while completions were sampled")
        seconds["generate"] += sampled - begun
        seconds["score"] += judged - sampled
        by_position = {at: (completions, graded) for _, part in parts for at, completions, graded in part}  # fmt: skip
        return [Group(p, *by_position[p.position], round=number) for p in prompts]
