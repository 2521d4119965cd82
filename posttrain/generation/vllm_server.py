"""A running vLLM server is compared with the policy before the first weights are copied to it.

What a server says about itself is vLLM's own config, as its `/server_info` gives it (in development mode,
which TRL needs to copy weights). What it leaves out is not compared; wrong weights are found by the first
batch (`rollout.vllm.max_logp_diff`). The name of its model is not compared, since weights of any origin are
overwritten. Left out: quantised weights, which some engines make of what is copied to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.base.printable import server_of
from posttrain.errors import RequestError
from posttrain.recipe.sections import Vllm

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
"""accelerate's name of a mixed precision -> torch's name of the dtype in which the model computes."""


def refuse_server(url: str, info: dict[str, Any], config: Any, dtype: str, length: int, vllm: Vllm) -> None:
    """Raises `RequestError` for a server at `url` that cannot sample as the policy does.

    `info`: the server's config. `config`, `dtype`: the policy's config and the name of the dtype in which it
    computes. `length`: tokens of the longest prompt with its completion.
    """
    if wrong := list(_wrong(info.get("model_config") or {}, config, dtype, length, vllm)):
        raise RequestError("\n".join(f"the vLLM server at {server_of(url)} {sentence}" for sentence in wrong))


def compute_dtype(model: Any, accelerator: Any) -> str:
    """The name of the dtype in which the policy computes: `bfloat16`, `float32`, ..."""
    return PRECISIONS.get(accelerator.mixed_precision) or str(model.dtype).removeprefix("torch.")


def _wrong(server: dict[str, Any], config: Any, dtype: str, length: int, vllm: Vllm) -> Iterator[str]:
    text, shape = config.get_text_config(), server.get("model_arch_config") or {}
    kinds = {shape.get("model_type"), shape.get("text_model_type")} - {None}
    again = "start it with the model that the policy starts from"
    if kinds and not kinds & {config.model_type, text.model_type}:
        yield f"serves a {' / '.join(sorted(kinds))} model, but the policy is {config.model_type}; {again}"
    for key, theirs, what in (
        ("vocab_size", "vocab_size", "a vocabulary of {} rows"),
        ("hidden_size", "hidden_size", "a hidden size of {}"),
        ("num_hidden_layers", "total_num_hidden_layers", "{} layers"),
    ):
        there, here = shape.get(theirs), getattr(text, key, None)
        if None not in (there, here) and there != here:
            yield f"serves a model with {what.format(there)}, but the policy has {here}; {again}"
    longest = server.get("max_model_len")
    if longest is not None and longest < length:
        yield (
            f"takes at most {longest} tokens, but data.max_length + rollout.max_new_tokens = {length}; "
            f"restart it with --max-model-len {length}"
        )
    if vllm.correction == "none" and vllm.max_logp_diff is None:
        return
    mode = server.get("logprobs_mode")
    if mode not in (None, "processed_logprobs"):
        yield (
            f"returns {mode}, which do not include the temperature: they bias the importance weights and "
            "cannot be compared with the policy's; restart it with --logprobs-mode processed_logprobs, or "
            "set rollout.vllm.correction: none and max_logp_diff: null"
        )
    there = str(server.get("dtype", "")).removeprefix("torch.")
    if vllm.max_logp_diff is not None and there and there != dtype:
        yield (
            f"computes in {there}, but the policy in {dtype}; restart it with --dtype {dtype}, or set "
            "rollout.vllm.max_logp_diff: null to train on the difference"
        )
