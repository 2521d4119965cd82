"""Distributed engines: which one the launcher asked for, which one a run has, what is refused under FSDP, a
frozen model sharded, and a sharded one gathered for sampling.

Of FSDP, torch's `fully_shard` through accelerate is supported, as in launch/fsdp2.yaml. Left out: FSDP1,
weights offloaded to the host, meshes of more than one dimension, quantised weights, fp16.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from accelerate.utils import DeepSpeedPlugin, fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from trl.models.utils import unwrap_model_for_generation

from posttrain.base.process import flag, world_size
from posttrain.errors import RequestError
from posttrain.recipe.schema import Model, Train

INSTEAD = "see launch/fsdp2.yaml, or use launch/ddp.yaml or launch/zero3.yaml"


def fsdp_asked() -> bool:
    """Whether the launcher asked for FSDP; `refuse_pretence` compares that with what accelerate set up."""
    return engine_asked() == "fsdp2"


def refuse_fsdp(model: Model, train: Train, on_cpu: bool) -> None:
    """Raises `RequestError` for settings of FSDP that cannot work or were never tested."""
    if not fsdp_asked():
        return
    for applies, reason in (
        (on_cpu, "without a GPU, accelerate silently runs DDP under an FSDP config"),
        (os.environ.get("FSDP_VERSION", "1") != "2", "fsdp_version must be 2: FSDP1 is not supported"),
        (
            os.environ.get("FSDP_STATE_DICT_TYPE", "") != "FULL_STATE_DICT",
            "fsdp_state_dict_type must be FULL_STATE_DICT: a checkpoint has to load with from_pretrained",
        ),
        (
            flag("FSDP_CPU_RAM_EFFICIENT_LOADING"),
            "fsdp_cpu_ram_efficient_loading must be false: under it every from_pretrained of the other ranks "
            "returns empty weights, also when they load a checkpoint to score it",
        ),
        (
            flag("FSDP_OFFLOAD_PARAMS"),
            "fsdp_offload_params must be false: it is not tested with the fused head",
        ),
        (
            flag("FSDP_ACTIVATION_CHECKPOINTING"),
            "fsdp_activation_checkpointing must be false: set train.activation_checkpointing instead",
        ),
        (
            flag("ACCELERATE_USE_PARALLELISM_CONFIG"),
            "parallelism_config must be left out: one mesh of data-parallel ranks only",
        ),
        (model.quantization is not None, "model.quantization is not tested with sharded weights"),
        (train.fp16, "train.fp16 is not tested with sharded weights; use train.bf16"),
    ):
        if applies:
            raise RequestError(f"FSDP: {reason}; {INSTEAD}")


def refuse_pretence(accelerator: Any) -> None:
    """Raises `RequestError` where FSDP2 was asked for and another engine was set up, or the reverse."""
    if fsdp_asked() != bool(accelerator.is_fsdp2):
        got = str(accelerator.distributed_type).rpartition(".")[2]
        what = "was asked for" if fsdp_asked() else "was not asked for"
        raise RequestError(f"FSDP {what}, but accelerate runs {got}; {INSTEAD}")


def zero_asked() -> dict[str, Any]:
    """Section `zero_optimization` of the DeepSpeed config, with what the file says that the launcher names;
    empty without DeepSpeed. Raises `RequestError` where accelerate cannot use it."""
    if not flag("ACCELERATE_USE_DEEPSPEED"):
        return {}
    try:
        return DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    except (ValueError, OSError) as error:
        raise RequestError(f"the DeepSpeed config cannot be used: {str(error).splitlines()[0]}") from error


def engine_asked() -> str:
    """The engine that the launcher asked for, as `engine` names the one that was set up."""
    if flag("ACCELERATE_USE_DEEPSPEED"):
        return f"zero{zero_asked().get('stage', 0)}"
    if flag("ACCELERATE_USE_FSDP"):
        return "fsdp2"
    return "ddp" if world_size() > 1 else "single"


def engine(args: Any) -> str:
    """ddp, fsdp2, zero2, zero3 or single, as accelerate set it up."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        return f"zero{plugin.zero_stage}"
    if str(args.distributed_state.distributed_type).endswith("FSDP"):
        return "fsdp2"
    return "ddp" if args.world_size > 1 else "single"


@contextlib.contextmanager
def told_of_unused(model: nn.Module) -> Iterator[None]:
    """Raises `RequestError` for the error with which DDP meets weights that no gradient reaches."""
    try:
        yield
    except RuntimeError as error:
        if "Expected to have finished reduction" not in str(error):
            raise
        names = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        what = (
            f"no gradient reaches {names[0]}, one of {len(names)} such weights" if names else "some have none"
        )
        raise RequestError(
            f"DDP waits for the gradients of all weights, and {what}; set "
            "train.extra.ddp_find_unused_parameters: true and another name=..., or use launch/zero2.yaml"
        ) from error


def name_own_layers(model: nn.Module) -> None:
    """Leaves only classes of `model`'s own modules among those that FSDP2 makes units of: a family names
    those of its vision and audio parts, too, and accelerate fails on one that a text model lacks."""
    found = {type(module).__name__ for module in model.modules()}
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module._no_split_modules:
            module._no_split_modules = [name for name in module._no_split_modules if name in found]


def shard_frozen(model: nn.Module, accelerator: Any) -> nn.Module:
    """`model`, sharded by FSDP2 layer by layer as accelerate shards the one that trains.

    TRL's `prepare_fsdp` makes one unit of it, which every forward gathers whole.
    """
    plugin = accelerator.state.fsdp_plugin
    policy = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    name_own_layers(model)
    try:
        fsdp2_prepare_model(accelerator, model)
    finally:  # layers of this family would be looked for in the model that trains
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = policy
    model.set_reshard_after_forward(True)  # accelerate keeps the head gathered for a backward
    return model


def reshard(model: nn.Module) -> None:
    """Frees the weights of FSDP2 that a forward has left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def whole_model(model: nn.Module, accelerator: Any) -> Iterator[nn.Module]:
    """Yields the unwrapped model with all its weights gathered; `model` is what the engine wraps.

    Collective: all ranks enter and leave together.
    """
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
    """Removes a ZeRO-3 hook that TRL leaves in place.

    At each forward of the whole model it makes all ranks compare what they have run, so that a rank with
    shorter completions or fewer prompts would keep the others waiting forever.
    """
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    offload.fwd_pre_hook.remove()
    try:
        yield
    finally:
        offload.fwd_pre_hook = offload.module.register_forward_pre_hook(
            lambda *_: offload.get_param_coordinator().reset_step()
        )
