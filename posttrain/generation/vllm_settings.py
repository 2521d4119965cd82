"""From a recipe to the arguments of TRL's `VLLMGeneration`, and what cannot be sampled with vLLM.

Imports neither torch nor vLLM, so that `posttrain check` refuses what a run would. Left out: what a running
server says about itself (`vllm_server.py`), the engine (`vllm.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from posttrain.errors import RequestError
from posttrain.recipe.schema import Model
from posttrain.recipe.sections import TrainRollout

MODES = {"vllm_colocate": "colocate", "vllm_server": "server"}
"""`rollout.backend` -> TRL's mode."""
COLOCATED = ("gpu_memory_utilization", "tensor_parallel_size", "enable_sleep_mode")
SERVED = ("server_base_url", "server_timeout")
"""Fields of `rollout.vllm` that each mode reads."""


def vllm_settings(
    start: Model,
    max_length: int,
    rollout: TrainRollout,
    ranks: int,
    stops: Sequence[int] = (),
    positions: int | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `VLLMGeneration`, except the model, the accelerator and the tokenizer.

    `start`: the recipe's section `model`. `max_length`: the maximum length of a prompt. `ranks`: number of
    processes. `stops`: token ids that end a completion. `positions`: the model's maximum length.

    Raises:
        RequestError: settings that exclude each other or that vLLM does not support.
    """
    r = rollout
    length = max_length + r.max_new_tokens
    wrong = [*_wrong(start, rollout, ranks), *wrong_adapters(start, rollout.backend)]
    if positions is not None and length > positions:
        wrong.append(
            f"data.max_length + rollout.max_new_tokens = {length} is above the model's maximum, {positions}"
        )
    if wrong:
        raise RequestError("\n".join(wrong))
    mode = MODES[r.backend]
    own = {key: getattr(r.vllm, key) for key in (COLOCATED if mode == "colocate" else SERVED)}
    if mode == "colocate":
        own["max_num_seqs"] = r.batch_size * r.vllm.tensor_parallel_size
        own["max_model_length"] = length
    return own | {
        "mode": mode,
        "trust_remote_code": start.trust_remote_code,
        "temperature": r.temperature,
        "top_p": r.top_p,
        "max_completion_length": r.max_new_tokens,
        "logprobs": 0,  # of the sampled token alone
        "generation_kwargs": {"stop_token_ids": sorted(stops)},
    }


def _wrong(model: Model, r: TrainRollout, ranks: int) -> Iterator[str]:
    """Yields a sentence for each setting that cannot work."""
    if r.backend not in MODES:
        yield f"rollout.backend = {r.backend} does not use vLLM"
        return
    if r.backend == "vllm_server":
        default = type(r.vllm)()
        for key in COLOCATED:
            if getattr(r.vllm, key) != getattr(default, key):
                yield f"rollout.vllm.{key} has no effect on vllm_server; set it when starting the server"
        return
    parallel, share = r.vllm.tensor_parallel_size, r.vllm.gpu_memory_utilization
    if parallel < 1 or ranks % parallel:
        yield f"rollout.vllm.tensor_parallel_size = {parallel} does not divide the {ranks} rank(s)"
    if not 0 < share <= 1:
        yield f"rollout.vllm.gpu_memory_utilization = {share} must be in (0, 1]"
    if model.init is None:
        yield "rollout.backend = vllm_colocate loads a model by name: set model.init, not model.from_config"


def wrong_adapters(model: Model, backend: str) -> Iterator[str]:
    """Yields a sentence where a new adapter cannot be sampled from: TRL merges it into the policy's weights
    to copy them and takes it out again, which only float32 undoes (to rounding)."""
    if backend not in MODES or model.lora is None:
        return
    why = "merging the adapter for vLLM and taking it out again changes the frozen weights at every copy"
    if model.quantization is not None:
        yield f"rollout.backend = {backend} cannot be used with model.quantization: {why}"
    elif model.dtype in ("bfloat16", "float16"):
        yield (
            f"rollout.backend = {backend} cannot be used with model.lora and model.dtype = {model.dtype}: "
            f"{why}; set model.dtype: float32 (train.bf16 computes in bfloat16 with it)"
        )
    if "trainable_token_indices" in model.lora.options:
        yield f"rollout.backend = {backend} cannot take model.lora.options.trainable_token_indices"


def refuse_without_vllm(backend: str) -> None:
    """Raises `RequestError` if the recipe uses vLLM and it is not installed."""
    if backend in MODES and find_spec("vllm") is None:
        raise RequestError(
            f"rollout.backend = {backend} needs vLLM: pip install 'posttrain[vllm]' in an environment of its "
            "own, or set rollout.backend: transformers"
        )


def refuse_cpu(backend: str, why: str | None) -> None:
    """Raises `RequestError` if the recipe uses vLLM and the policy runs on a CPU because of `why` (None: it
    does not)."""
    if backend in MODES and why is not None:
        raise RequestError(
            f"rollout.backend = {backend} needs a GPU for the policy ({why}): its weights are copied from "
            "GPU to GPU; set rollout.backend: transformers, or run this on a machine with a GPU (posttrain "
            "check on a login node: CUDA_VISIBLE_DEVICES=0 says that the job has one)"
        )
