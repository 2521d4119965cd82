"""Generation with vLLM: a `Generator` on TRL's `VLLMGeneration`, in this process (colocate) or on a server.

TRL owns the engine, its memory and the copying of weights into it. This file turns a recipe into TRL's
arguments and its answers into completions. There are three differences to `TransformersGenerator`:

- Randomness is vLLM's; `seed` and `streams` are not used. One seed for all copies of a prompt would give the
  same text for each, and vLLM has no random stream for a single sample. Runs with this generator are not
  reproducible bit by bit.
- `Completion.log_probs` are those of the distribution that was sampled from: after temperature and top_p
  (vLLM's `processed_logprobs`), as `losses/importance.py` needs them. Divide the policy's logits by the
  temperature to compare.
- `generate` first copies new weights and is collective: every rank calls it equally often, with any number of
  prompts.

A server runs on GPUs other than the policy's:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' \
        --logprobs-mode processed_logprobs --max-logprobs -1

Left out: images; LoRA inside vLLM (TRL merges adapters into the weights it copies); `model.revision` (vLLM
reads the config under the model's name; the weights are the policy's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from posttrain.errors import RequestError, WorkError
from posttrain.generation.base import Completion, Sampling, completion_of, end_tokens, refuse_prompts
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
    wrong = list(_wrong(start, rollout, ranks))
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
    if model.quantization is not None and model.quantization.bits == 8:
        yield "rollout.backend = vllm_colocate does not support 8-bit weights; set model.quantization.bits: 4"


def _refuse_grown(backend: str, model: Any) -> None:
    """A colocated engine loads the model by name: a vocabulary that has grown since does not fit into it."""
    from transformers import AutoConfig

    if backend != "vllm_colocate":
        return
    there = AutoConfig.from_pretrained(model.name_or_path).get_text_config().vocab_size
    here = model.config.get_text_config().vocab_size
    if there != here:
        raise RequestError(
            f"rollout.backend = vllm_colocate: the vocabulary of {model.name_or_path} has {there} rows, but "
            f"{here} with the tokens of the template and model.add_tokens; train an SFT stage with these "
            "tokens first and start from its run"
        )


def refuse_without_vllm(backend: str) -> None:
    """Raises `RequestError` if the recipe uses vLLM and it is not installed."""
    if backend in MODES and find_spec("vllm") is None:
        raise RequestError(
            f"rollout.backend = {backend} needs vLLM: pip install 'posttrain[vllm]' in an environment of its "
            "own, or set rollout.backend: transformers"
        )


def refuse_raw_log_probs(info: dict[str, Any]) -> None:
    """Raises `RequestError` unless a server (config `info`) gives the log-probabilities it samples from."""
    mode = info["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise RequestError(
            f"the vLLM server returns {mode}, which do not include the temperature and bias the importance "
            "weights; restart it with --logprobs-mode processed_logprobs or set rollout.vllm.correction: none"
        )


def vllm_generator(trainer: Any, start: Model, max_length: int, rollout: TrainRollout) -> VllmGenerator:
    """The generator of an RLVR trainer that is set up; its engine follows the policy's weights."""
    parts = trainer.parts
    return VllmGenerator.start(
        start,
        max_length,
        rollout,
        trainer.model,
        trainer.accelerator,
        parts.tokenizer,
        parts.template.stops,
        lambda: trainer.state.global_step,
    )


class VllmGenerator:
    """A `Generator` on an engine of TRL. `step()` is the optimizer step whose weights the policy has."""

    def __init__(self, engine: Any, tokenizer: Any, stops: Sequence[int], step: Callable[[], int]) -> None:
        self.engine, self.tokenizer, self.stops = engine, tokenizer, frozenset(stops)
        self.step = step
        self.synced: int | None = None
        """The optimizer step whose weights the engine has; None before the first copy."""

    @classmethod
    def start(
        cls,
        start: Model,
        max_length: int,
        rollout: TrainRollout,
        model: Any,
        accelerator: Any,
        tokenizer: Any,
        stop_token_ids: Sequence[int] = (),
        step: Callable[[], int] = lambda: 0,
    ) -> VllmGenerator:
        """Starts the engine, or waits for the server. Collective; needs a GPU.

        Raises:
            RequestError: see `vllm_settings`; or vLLM is not installed.
            WorkError: the server does not answer in time.
        """
        refuse_without_vllm(rollout.backend)
        stops = end_tokens(model, tokenizer, stop_token_ids)
        _refuse_grown(rollout.backend, model)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        settings = vllm_settings(start, max_length, rollout, accelerator.num_processes, stops, positions)
        from trl.generation.vllm_generation import VLLMGeneration

        try:
            engine = VLLMGeneration(model, accelerator, tokenizer, **settings)
        except ConnectionError as error:
            raise WorkError(f"rollout.vllm: {error}") from error
        corrected = rollout.vllm.correction != "none"
        if corrected and engine.mode == "server" and accelerator.is_main_process:
            refuse_raw_log_probs(engine.vllm_client.get_server_info())
        return cls(engine, tokenizer, stops, step)

    def sync(self) -> None:
        """Copies the policy's weights to the engine, unless it has them. Collective."""
        if (step := self.step()) != self.synced:
            self.engine.sync_weights()
            self.synced = step

    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        seed: int,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """See `Generator`; `seed`, `streams` and `sampling.batch_size` are not used.

        Raises:
            RequestError: invalid settings, an empty prompt, or a prompt that leaves no room for a token.
            WorkError: the server does not answer, or the number of completions is wrong.
        """
        sampling.check(n)
        limit = self.engine.max_model_length
        refuse_prompts(prompts, limit, f"vLLM's limit is {limit}")
        copies = [prompt for prompt in prompts for _ in range(n)]
        copies += [self._filler(prompts)] * (n * self._most(len(prompts)) - len(copies))
        self.sync()
        if not copies:
            return []
        engine = self.engine
        engine.temperature, engine.top_p = sampling.temperature, sampling.top_p
        engine.max_completion_length = sampling.max_new_tokens
        try:
            _, ids, log_probs, _ = engine.generate(copies, images=None, num_generations=n)
        except Exception as error:
            if engine.mode != "server":
                raise
            # TRL's client raises bare exceptions for error responses and those of requests if the server is
            # gone
            raise WorkError(f"the vLLM server at {engine.server_base_url}: {error}") from error
        if len(ids) != len(copies):
            raise WorkError(f"vLLM returned {len(ids)} completions; {len(copies)} were requested")
        return [
            self._completion(i // n, i % n, list(ids[i]), None if log_probs is None else log_probs[i])
            for i in range(n * len(prompts))
        ]

    def _most(self, prompts: int) -> int:
        """The largest number of prompts on any rank: TRL's collective calls need the same number on all."""
        accelerator = self.engine.accelerator
        alone = self.engine.mode == "colocate" and self.engine.tensor_parallel_size == 1
        if alone or accelerator.num_processes == 1:
            return prompts
        from accelerate.utils import gather_object

        return max(gather_object([prompts]))

    def _filler(self, prompts: list[list[int]]) -> list[int]:
        """The prompt with which a rank that has fewer prompts is filled up; its completions are discarded."""
        return prompts[0] if prompts else [min(self.stops)]

    def _completion(
        self, prompt: int, sample: int, ids: list[int], log_probs: list[list[float | None]] | None
    ) -> Completion:
        if log_probs is not None:
            # only the sampled token's is requested; vLLM gives None where it has no number
            log_probs = [math.nan if first[0] is None else first[0] for first in log_probs]
        ended = bool(ids) and ids[-1] in self.stops
        return completion_of(self.tokenizer, prompt, sample, ids, ended, log_probs or None)
