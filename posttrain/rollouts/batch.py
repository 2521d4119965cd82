"""The micro-batches of a batch of groups; optimizer steps do not depend on the number of ranks.

A seeded permutation of the whole batch decides which completions share a step. Within a step completions are
sorted by length, to reduce padding, and dealt to the ranks round-robin. Left out: log-probabilities of the
old policy and of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.data.order import key_of, permute_array
from posttrain.losses.advantage import advantages
from posttrain.recipe.sections import Policy, TrainRollout
from posttrain.rollouts.groups import Group

Inputs = dict[str, Tensor]


@dataclass(slots=True)
class BatchAdvantages:
    """G groups of n completions. `valid`: no check failed; `trained`: part of the loss."""

    rewards: Tensor  # [G, n] fp64; 0 where not valid
    successes: Tensor  # [G, n] bool
    valid: Tensor  # [G, n] bool
    advantages: Tensor  # [G, n] fp64
    trained: Tensor  # [G, n] bool


def batch_advantages(groups: Sequence[Group], policy: Policy, rollout: TrainRollout) -> BatchAdvantages:
    """The advantages of scored groups; truncated completions are masked only afterwards."""
    cut = torch.tensor([[c.finish == "length" for c in g.completions] for g in groups])
    valid = torch.tensor([[not d.failed for d in g.graded] for g in groups])
    rewards = torch.tensor([[d.value or 0.0 for d in g.graded] for g in groups], dtype=torch.double)
    successes = torch.tensor([[bool(d.success) for d in g.graded] for g in groups])
    if rollout.truncated == "penalise":
        rewards = torch.where(cut & valid, rollout.truncated_reward, rewards)
        successes &= ~cut
    rewards = torch.where(valid, rewards, 0.0)
    found = advantages(policy.advantage, rewards, successes, valid, policy.k)
    trained = valid & ~cut if rollout.truncated == "mask" else valid
    return BatchAdvantages(rewards, successes & valid, valid, found, trained)


def micro_batches(
    groups: Sequence[Group],
    scored: BatchAdvantages,
    pad_id: int,
    steps: int,
    micro: int,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
) -> list[Inputs]:
    """This rank's micro-batches of at most `micro` completions for all `steps` optimizer steps, in order.

    Prompts [B, P] are padded on the left, completions [B, C] on the right; advantages are fp32 [B]. A
    completion that is not trained has an empty mask. `rows` [B] are the completions' places in the batch.
    `num_items_in_batch` is the number of trained tokens of
    the step over all ranks, times `steps`, as TRL's losses expect.
    """
    rows = [(group.prompt.ids, one.token_ids) for group in groups for one in group.completions]
    sampled = [one.log_probs for group in groups for one in group.completions]
    advantage, trained = scored.advantages.flatten(), scored.trained.flatten()
    order = permute_array(np.arange(len(rows)), len(rows), key_of(seed, "steps"))
    found = []
    for part in np.split(order, steps):
        tokens = sum(len(rows[i][1]) for i in part if trained[i])
        part = sorted(part.tolist(), key=lambda i: (-len(rows[i][0]) - len(rows[i][1]), i))
        starts = range(rank * micro, len(part), ranks * micro)
        for chosen in (part[start : start + micro] for start in starts):
            prompts, completions = zip(*(rows[i] for i in chosen), strict=True)
            inputs = _padded(prompts, "prompt", pad_id, left=True)
            inputs |= _padded(completions, "completion", pad_id, left=False)
            inputs["completion_mask"] *= trained[chosen].long()[:, None]
            inputs["rows"] = torch.tensor(chosen)
            inputs["advantages"] = advantage[chosen].float()
            inputs["num_items_in_batch"] = torch.tensor(float(tokens * steps))
            given = [sampled[i] for i in chosen]
            inputs["sampled_log_probs"] = _log_probs(given, inputs["completion_ids"])
            found.append(inputs)
    return found


def cost_of(batch: Inputs) -> dict[str, int]:
    """What training once on a micro-batch costs (training/spent.py): a completion that is not trained counts
    as padding."""
    trained = int(batch["completion_mask"].sum())
    return {"num_tokens": trained + int(batch["prompt_mask"].sum()), "num_trained_tokens": trained}


def _padded(rows: Sequence[list[int]], name: str, pad_id: int, left: bool) -> Inputs:
    """`<name>_ids` and `<name>_mask`, int64 [B, longest]."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return {f"{name}_ids": ids, f"{name}_mask": mask}


def _log_probs(sampled: Sequence[list[float] | None], ids: Tensor) -> Tensor:
    """The generator's log-probabilities, fp32 [B, C]; NaN where it gave none, 0 without a token."""
    found = torch.zeros(ids.shape)
    for i, given in enumerate(sampled):
        if given is None:
            found[i] = float("nan")  # 0 would mean a probability of 1
        else:
            values = [float("nan") if v is None else v for v in given]
            found[i, : len(values)] = torch.tensor(values)
    return found
