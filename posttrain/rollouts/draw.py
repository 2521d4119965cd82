"""The batches of groups of an RLVR run: sampled and scored on all ranks, with dynamic sampling.

The state is one integer, the position of the next prompt in the mixture. Dynamic sampling (DAPO, arXiv
2503.14476, eq. 11): groups that are all right or all wrong are set aside and replaced by as many new prompts,
in at most `rollout.refill` further rounds. If groups are still missing then, the last ones set aside fill the
batch, so that its size is constant. An easy or hard source loses more groups than the others, so refilling
moves the shares of the sources that are trained away from the mixture's (stats.py logs both). Left out:
advantages.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.base.stop import Stopped
from posttrain.errors import WorkError
from posttrain.generation.base import Generator
from posttrain.recipe.sections import TrainRollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.groups import Group, Prompt, Prompts, sample, score

Gather = Callable[[Any], list[Any]]
"""The value of this rank -> the values of all ranks, in rank order."""


class Interrupted(WorkError):
    """A stop was requested while a batch was sampled; the batch is discarded."""


class _StopRequested(Exception):
    """Leaves the rewards when a stop is requested during scoring; generator and rewards raise `Stopped`."""


@dataclass(slots=True)
class Drawn:
    """A batch of groups, the same on all ranks."""

    groups: list[Group]
    """Trained on."""
    aside: list[Group]
    """Sampled and scored, but not trained on."""
    unfilled: int = 0
    """Number of `groups` that are all right or all wrong, because the rounds ran out."""
    seconds: dict[str, float] = field(default_factory=dict)

    def cost(self) -> dict[str, int]:
        """What was sampled (training/spent.py), groups set aside included."""
        lengths = [len(c.token_ids) for g in (*self.groups, *self.aside) for c in g.completions]
        return {"num_rollouts": len(lengths), "num_sampled_tokens": sum(lengths)}


class RolloutSource:
    """Draws batches of groups.

    rank, ranks     prompts are dealt to the ranks round-robin
    gather          collective; called equally often on all ranks
    stop_requested  whether this process was asked to stop
    """

    def __init__(
        self,
        prompts: Prompts,
        rollout: TrainRollout,
        rewards: Composite,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        gather: Gather = lambda value: [value],
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.prompts, self.rollout, self.rewards, self.seed = prompts, rollout, rewards, seed
        self.rank, self.ranks, self.gather, self.stop_requested = rank, ranks, gather, stop_requested
        self.position = 0
        """Of the next prompt in the mixture; all the state there is."""

    def draw(self, generating: Callable[[], Any], size: int) -> Drawn:
        """A batch of `size` groups. `generating()` is a collective context manager returning the generator.

        Raises:
            Interrupted: a stop was requested on some rank; `position` is unchanged.
            WorkError: another rank failed; the failed rank raises its own error.
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
                kept = not self.rollout.refill or self._mixed(group)
                (drawn.groups if kept else drawn.aside).append(group)
            if len(drawn.groups) == size:
                break
        drawn.unfilled = size - len(drawn.groups)
        if drawn.unfilled:
            drawn.groups += drawn.aside[-drawn.unfilled :]
            del drawn.aside[-drawn.unfilled :]
        return drawn

    def _round(
        self, generating: Callable[[], Any], count: int, number: int, seconds: dict[str, float]
    ) -> list[Group]:
        """Samples and scores the next `count` prompts, each on one rank; returns all groups on every rank."""
        prompts = [self.prompts[self.position + i] for i in range(count)]
        self.position += count
        mine: list[Group] = []
        error: Exception | None = None
        begun = sampled = time.perf_counter()
        try:
            with contextlib.suppress(_StopRequested, Stopped):
                with generating() as generator:
                    self._sample(generator, prompts[self.rank :: self.ranks], mine)
                sampled = time.perf_counter()
                self._poll()
                score(mine, self.rewards, self.rollout, done=self._poll)
        except Exception as caught:  # raised after the gather, for which the other ranks wait
            error = caught
        scored = time.perf_counter()
        # without the prompts, which every rank has
        found = [(g.prompt.position, g.completions, g.graded) for g in mine] if error is None else []
        parts = self.gather((self.stop_requested(), error and f"{type(error).__name__}: {error}", found))
        if error is not None:
            raise error
        for rank, (_, failure, _) in enumerate(parts):
            if failure is not None:
                raise WorkError(f"process {rank} failed while completions were sampled: {failure}")
        if any(stop for stop, _, _ in parts):
            raise Interrupted("a stop was requested while completions were sampled")
        seconds["generate"] += sampled - begun
        seconds["score"] += scored - sampled
        by_position = {at: (completions, graded) for _, _, part in parts for at, completions, graded in part}
        return [Group(p, *by_position[p.position], round=number) for p in prompts]

    def _sample(self, generator: Generator, share: list[Prompt], mine: list[Group]) -> None:
        """Appends an unscored group for each prompt of `share` to `mine`."""
        if self.rollout.backend != "transformers":
            # vLLM's calls are collective and it makes batches by itself: one call a round, also without
            # prompts
            mine += sample(generator, share, self.rollout, self.seed)
            return
        # one call a batch of sequences, so that a stop request is noticed between batches
        size = max(1, self.rollout.batch_size // self.rollout.num_generations)
        for start in range(0, len(share), size):
            if self.stop_requested():
                return
            mine += sample(generator, share[start : start + size], self.rollout, self.seed)
        # the policy's own log-probabilities are not used, and would be most of what is gathered
        for one in (c for group in mine for c in group.completions):
            one.log_probs = None

    def _poll(self) -> None:
        if self.stop_requested():
            raise _StopRequested

    def _mixed(self, group: Group) -> bool:
        """Whether some completions are right and some wrong, as the advantages count them (batch.py)."""
        penalised = self.rollout.truncated == "penalise"
        seen = {
            bool(d.success) and not (penalised and c.finish == "length")
            for c, d in zip(group.completions, group.graded, strict=True)
            if not d.failed
        }
        return len(seen) == 2
