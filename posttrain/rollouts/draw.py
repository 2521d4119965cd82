"""Where an RLVR run gets its batches of groups: sampled and judged on all ranks, refilled where a group teaches nothing.

The state is one integer, the position in the mixture of the next prompt. Dynamic sampling (DAPO, arXiv 2503.14476,
eq. 11): groups all right or all wrong are set aside and as many new prompts sampled, in a bounded number of rounds; what
is still missing then is filled with groups set aside, so that a batch always has its size. Left out: advantages.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import WorkError
from posttrain.recipe.sections import TrainRollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.groups import Group, Prompt, Prompts, judge, sample

Gather = Callable[[Any], list[Any]]
"""This rank's value -> those of all ranks, in rank order."""


class Interrupted(WorkError):
    """The run was asked to stop while a batch was sampled; nothing of the batch counts."""


class _Asked(Exception):
    """Leaves the rewards where a stop is asked for while they judge."""


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
        self,
        prompts: Prompts,
        rollout: TrainRollout,
        rewards: Composite,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        gather: Gather = lambda value: [value],
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.prompts, self.rollout, self.rewards, self.seed = prompts, rollout, rewards, seed
        self.rank, self.ranks, self.gather, self.asked = rank, ranks, gather, asked
        self.position = 0
        """Of the next prompt: the state of this source."""

    def draw(self, generating: Callable[[], Any], size: int) -> Drawn:
        """`size` groups. `generating()` is a context manager that gives the generator (collective).

        Raises:
            Interrupted: a rank was asked to stop; `position` is as before.
            WorkError: another rank failed; on the rank itself what it failed with.
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

    def _round(self, generating, count: int, number: int, seconds: dict[str, float]) -> list[Group]:
        prompts = [self.prompts[self.position + i] for i in range(count)]
        self.position += count
        mine: list[Group] = []
        error: Exception | None = None
        begun = sampled = time.perf_counter()
        try:
            with generating() as generator:
                self._sample(generator, prompts[self.rank :: self.ranks], mine)
            sampled = time.perf_counter()
            with contextlib.suppress(_Asked):
                self._poll()
                judge(mine, self.rewards, self.rollout, done=self._poll)
        except Exception as caught:  # the others must hear of it: they wait for this rank
            error = caught
        judged = time.perf_counter()
        # A prompt's columns stay where they are: every rank has read them.
        told = [(g.prompt.position, g.completions, g.graded) for g in mine] if error is None else []
        parts = self.gather((self.asked(), error and f"{type(error).__name__}: {error}", told))
        if error is not None:
            raise error
        for rank, (_, what, _) in enumerate(parts):
            if what is not None:
                raise WorkError(f"process {rank} failed while completions were sampled: {what}")
        if any(asked for asked, _, _ in parts):
            raise Interrupted("asked to stop while completions were sampled")
        seconds["generate"] += sampled - begun
        seconds["score"] += judged - sampled
        found = {at: (completions, graded) for _, _, part in parts for at, completions, graded in part}
        return [Group(p, *found[p.position], round=number) for p in prompts]

    def _sample(self, generator: Any, share: list[Prompt], mine: list[Group]) -> None:
        """Adds a group of each prompt of `share` to `mine`."""
        if self.rollout.backend != "transformers":
            # its calls are collective, and it makes batches by itself: one a round, also of a rank that has nothing to ask
            mine += sample(generator, share, self.rollout, self.seed)
            return
        # a call a batch of sequences, so that a request to stop is heard between them
        size = max(1, self.rollout.batch_size // self.rollout.num_generations)
        for start in range(0, len(share), size):
            if self.asked():
                return
            mine += sample(generator, share[start : start + size], self.rollout, self.seed)
        # the policy's own: nothing reads them, and they would be most of what is sent
        for one in (c for group in mine for c in group.completions):
            one.log_probs = None

    def _poll(self) -> None:
        if self.asked():
            raise _Asked

    def _mixed(self, group: Group) -> bool:
        """Whether some are right and some wrong, as the advantages will see it (batch.py)."""
        penalised = self.rollout.truncated == "penalise"
        seen = {
            bool(d.success) and not (penalised and c.finish == "length")
            for c, d in zip(group.completions, group.graded, strict=True)
            if not d.failed
        }
        return len(seen) == 2
