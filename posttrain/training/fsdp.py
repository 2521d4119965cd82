"""Which FSDP a run may ask for, and what of it is refused by name.

What is allowed is torch's `fully_shard` through accelerate, as launch/fsdp2.yaml says it. Left out: FSDP1, weights
offloaded to the host, meshes of more than one dimension, quantised weights, fp16.
"""

from __future__ import annotations

import os
from typing import Any

from posttrain.errors import RequestError
from posttrain.recipe import Recipe

INSTEAD = "see launch/fsdp2.yaml, or use launch/ddp.yaml or launch/zero3.yaml"


def asked() -> bool:
    """Whether the launcher was told to use FSDP: what accelerate makes of it is another matter."""
    return _on("ACCELERATE_USE_FSDP")


def refuse(recipe: Recipe, on_cpu: bool) -> None:
    """Raises `RequestError` for what of FSDP cannot work or was never seen to."""
    if not asked():
        return
    for applies, reason in (
        (on_cpu, "without a GPU accelerate runs DDP under an FSDP config and does not say so"),
        (os.environ.get("FSDP_VERSION", "1") != "2", "fsdp_version must be 2: FSDP1 is not supported"),
        (
            os.environ.get("FSDP_STATE_DICT_TYPE", "") != "FULL_STATE_DICT",
            "fsdp_state_dict_type must be FULL_STATE_DICT: a checkpoint has to load with from_pretrained",
        ),
        (
            _on("FSDP_CPU_RAM_EFFICIENT_LOADING"),
            "fsdp_cpu_ram_efficient_loading must be false: under it every from_pretrained of the other ranks "
            "returns empty weights, also when they load a checkpoint to score it",
        ),
        (_on("FSDP_OFFLOAD_PARAMS"), "fsdp_offload_params must be false: not tried with the fused head"),
        (
            _on("FSDP_ACTIVATION_CHECKPOINTING"),
            "fsdp_activation_checkpointing must be false: it is said in train.activation_checkpointing",
        ),
        (_on("ACCELERATE_USE_PARALLELISM_CONFIG"), "parallelism_config must be left out: one mesh of data-parallel ranks only"),
        (recipe.model.quantization is not None, "model.quantization is not tried with sharded weights"),
        (recipe.stage == "dpo", f"the {recipe.stage} stage was never run under it; use launch/zero3.yaml"),
        (recipe.train.fp16, "train.fp16 is not tried with sharded weights; use train.bf16"),
    ):  # fmt: skip
        if applies:
            raise RequestError(f"FSDP: {reason}; {INSTEAD}")


def refuse_pretence(accelerator: Any) -> None:
    """Raises `RequestError` where FSDP2 was asked for and something else was set up, or the other way round."""
    if asked() != bool(accelerator.is_fsdp2):
        got = str(accelerator.distributed_type).rpartition(".")[2]
        what = "was asked for" if asked() else "was not asked for"
        raise RequestError(f"FSDP {what}, but accelerate runs {got}; {INSTEAD}")


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
