"""The trained model with all its weights in place, for sampling from it between optimizer steps.

DDP: the module below the wrapper. ZeRO-3: weights gathered and hooks taken off, by TRL's context and one more. FSDP2: every
sharded module unsharded and kept so. In each case the ranks may then run as many forwards as each needs. Left out:
models that do not fit on one device whole; vLLM samples from those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from trl.models.utils import unwrap_model_for_generation


@contextlib.contextmanager
def whole_model(model: nn.Module, accelerator: Any) -> Iterator[nn.Module]:
    """`model` is what the engine wraps. Collective: all ranks enter and leave together."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        with (
            unwrap_model_for_generation(model, accelerator) as plain,
            _no_roll_call(model),
            accelerator.autocast(),
        ):
            yield plain
        return
    sharded = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        with accelerator.autocast():
            yield accelerator.unwrap_model(model)
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


@contextlib.contextmanager
def _no_roll_call(engine: Any) -> Iterator[None]:
    """Takes off the hook of ZeRO-3 that TRL leaves on: at each forward of the whole model all ranks compare what they have
    run, so that one whose completions are shorter, or that has fewer prompts, would keep the others waiting for ever."""
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    offload.fwd_pre_hook.remove()
    try:
        yield
    finally:
        offload.fwd_pre_hook = offload.module.register_forward_pre_hook(
            lambda *_: offload.get_param_coordinator().reset_step()
        )
