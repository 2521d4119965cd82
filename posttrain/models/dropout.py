"""Dropout turned off in a model that stays in training mode, for the stages that compare two forwards.

A preference run compares the policy with its reference, and RLVR with the policy that sampled; with dropout
the two would differ although their weights are equal. TRL's `disable_dropout` reaches only `nn.Dropout`:
attention dropout is a number that most models pass to a function. Left out: sft, where the model's own
dropout is active.
"""

from __future__ import annotations

import torch
from torch import nn

from posttrain.errors import RequestError
from posttrain.models.self_check import as_trained, is_sharded, probe_ids

NOISE = ("drop", "jitter")
"""What the attributes are called that hold a probability of dropout, or the size of a router's noise."""


def turn_off_dropout(model: nn.Module, mixed: str = "no") -> None:
    """Sets every dropout probability of the modules of `model` to 0; its config stays as it is.

    `mixed`: accelerate's `mixed_precision` of the run.

    Raises:
        RequestError: the outputs in training mode still differ from those in eval mode. Measured on a row of
            8 tokens, unless the weights are sharded already.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(word in name for word in NOISE):
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    if is_sharded(model):
        return
    ids, found = probe_ids(model, 8), []
    devices = [ids.device] if ids.device.type == "cuda" else []
    with as_trained(model, mixed), torch.no_grad(), torch.random.fork_rng(devices):
        for mode in (True, False):
            model.train(mode)
            found.append(model(input_ids=ids, use_cache=False).logits.float())
    if (found[0] - found[1]).abs().max() > 1e-3 * found[1].abs().max():
        given = model.config.get_text_config().to_dict()
        names = [k for k, v in given.items() if isinstance(v, float) and v and any(w in k for w in NOISE)]
        raise RequestError(
            f"{model.config.model_type} has dropout that cannot be turned off"
            + (f"; set model.options.{names[0]}=0" if names else "")
            + ": this stage compares forwards, which must be functions of the weights"
        )
