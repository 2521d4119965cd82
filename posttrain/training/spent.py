"""What a run has cost so far, in counts that add up exactly: tokens, completions, passes without gradient;
and the numbers of parameters by which FLOPs follow from them.

The counts are cumulative, over all ranks and accumulated micro-batches. They are logged with every line of
training, and checkpoint.json has those of every checkpoint so far, so that a resumed run goes on with them:
steps that it does again count once, and work that a kill undid does not count. Left out: held-out passes and
scoring, which train nothing; the FLOPs themselves (`report/axes.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from posttrain.base.files import number

NAMES = (
    "num_tokens",
    "num_trained_tokens",
    "num_forward_tokens",
    "num_reference_tokens",
    "num_rollouts",
    "num_sampled_tokens",
)
"""Input tokens of forward and backward passes, without padding (TRL's name); those of them with a loss; input
tokens of the policy's passes without gradient; those of the reference's passes; completions sampled, also
those that are not trained on; and their tokens."""
ALWAYS = NAMES[:2]
"""Logged also where they are 0."""
BESIDE = ".original_module."
EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)


class Spent:
    """The counts of one rank; `total` has those of all."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.counts: Counter[str] = Counter()
        self.saved: list[dict[str, int]] = []
        """The total at each checkpoint so far, with its `step`."""
        self.known = True
        """False where the run began under an earlier version, which did not count."""

    def add(self, counts: Mapping[str, Any]) -> None:
        """Adds those of `NAMES` that `counts` has; all its other keys are passed over."""
        for name in NAMES:
            if name in counts:
                self.counts[name] += int(counts[name])

    def total(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, int]:
        """The counts over all ranks; empty where not known. `reduce` sums over ranks (collective)."""
        if not self.known:
            return {}
        mine = [self.counts[name] for name in NAMES]
        values = reduce(torch.tensor(mine, dtype=torch.float64, device=self.device)).tolist()
        found = {name: round(value) for name, value in zip(NAMES, values, strict=True)}
        return {name: n for name, n in found.items() if n or name in ALWAYS}

    def save(self, step: int, reduce: Callable[[Tensor], Tensor]) -> list[dict[str, int]]:
        """`saved` with the checkpoint of `step`, for its checkpoint.json. Collective."""
        if total := self.total(reduce):
            self.saved = [row for row in self.saved if row["step"] < step] + [{"step": step} | total]
        return self.saved

    def load(self, facts: Mapping[str, Any], main: bool) -> None:
        """Goes on with the counts in `facts`, a checkpoint.json, which one rank alone (`main`) takes over."""
        saved = facts.get("spent")
        last = saved[-1] if isinstance(saved, list) and saved else {}
        self.known = number(last.get("step")) == facts["step"] or not facts["step"]
        if self.known and last:
            self.saved = saved
            self.counts = Counter({n: last.get(n, 0) for n in NAMES} if main else {})


def parameters(model: nn.Module) -> dict[str, int] | None:
    """`used`: parameters of `model` that take part in a matrix product with every token; `trained`: those of
    them that have a gradient. None for a mixture of experts: how many a token uses is not known.

    An embedding is a lookup and left out, unless the output head shares it. So are modules that peft keeps
    beside their trained copies.
    """
    if any(EXPERTS.search(name) for name, _ in model.named_parameters()):
        return None
    multiplied = _multiplied(model)
    used = [weight for name, weight in multiplied if BESIDE not in name]
    trained = [weight for weight in used if weight.requires_grad]
    return {"used": sum(map(_size, used)), "trained": sum(map(_size, trained))}


def with_reference(
    found: dict[str, int], policy: nn.Module, other: nn.Module | None
) -> dict[str, int] | None:
    """`found` of the policy, with the parameters of its `reference`: those of the model `other`, or else of
    the policy as it began, without its adapter."""
    if other is not None:
        beside = parameters(other)
        return beside and found | {"reference": beside["used"]}
    if not is_peft_model(policy):
        return found | {"reference": found["used"]}
    frozen = [weight for _, weight in _multiplied(policy) if not weight.requires_grad]
    return found | {"reference": sum(map(_size, frozen))}


def _multiplied(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters by name, without embeddings that the output head does not share."""
    head = model.get_output_embeddings()
    lookups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    lookups -= {id(getattr(head, "weight", None))}
    return [(name, weight) for name, weight in model.named_parameters() if id(weight) not in lookups]


def _size(weight: nn.Parameter) -> int:
    """Elements of the whole weight: ZeRO-3 leaves a part of it on each rank, bitsandbytes packs two into a
    byte."""
    if type(weight).__name__ == "Params4bit":
        return 2 * weight.numel() * weight.element_size()
    return int(getattr(weight, "ds_numel", weight.numel()))
