"""Text from vLLM: the `Generator` protocol on TRL's `VLLMGeneration`, in this process (colocate) or from a server.

TRL owns the engine, its memory and the copying of weights into it; this file turns a recipe into its arguments and its
answers into rollouts. Three things differ from `TransformersGenerator`:

- Randomness is vLLM's. `seed` and `streams` are not read: one seed for all copies of a prompt would make them one text, and
  vLLM has no stream of its own for a sample. Runs with this generator cannot be repeated bit by bit.
- `Completion.log_probs` are under the distribution that was sampled from: temperature applied, top_p too (vLLM's
  `processed_logprobs`). `losses/importance.py` wants them so; divide the policy's logits by the temperature to compare.
- `generate` copies new weights first and is collective: every rank calls it as often, with any number of prompts.

A server runs on other GPUs than the policy's: `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config
'{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1`. Left out: images, LoRA inside vLLM (TRL merges
adapters into the weights it copies), `model.revision` (vLLM reads the config by the model's name; the weights are ours).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from posttrain.errors import RequestError, WorkError
from posttrain.generation.base import Completion, Sampling
from posttrain.generation.local import end_tokens, refuse_prompts
from posttrain.recipe.schema import Model
from posttrain.recipe.sections import TrainRollout

MODES = {"vllm_colocate": "colocate", "vllm_server": "server"}
"""`rollout.backend` -> TRL's mode."""
COLOCATED = ("gpu_memory_utilization", "tensor_parallel_size", "enable_sleep_mode")
SERVED = ("server_base_url", "server_timeout")


def vllm_settings(
    start: Model,
    max_length: int,
    rollout: TrainRollout,
    ranks: int,
    stops: Sequence[int] = (),
    positions: int | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `VLLMGeneration` besides the model, the accelerator and the tokenizer.

    `start`: the recipe's section `model`. `max_length`: tokens of a prompt at most. `ranks`: processes of the launch. `stops`: token ids that end a completion, the model's own besides. `positions`: the
    model's longest sequence.

    Raises:
        RequestError: settings that exclude each other, or that vLLM cannot have.
    """
    r = rollout
    length = max_length + r.max_new_tokens
    wrong = list(_wrong(start, rollout, ranks))
    if positions is not None and length > positions:
        wrong.append(f"data.max_length + rollout.max_new_tokens = {length} is above the model's {positions}")
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
    """A sentence for each setting of `rollout` that cannot work."""
    if r.backend not in MODES:
        yield f"rollout.backend = {r.backend} is not vLLM"
        return
    if r.backend == "vllm_server":
        default = type(r.vllm)()
        for key in COLOCATED:
            if getattr(r.vllm, key) != getattr(default, key):
                yield f"rollout.vllm.{key} is for vllm_colocate; a server has its own settings"
        return
    parallel, share = r.vllm.tensor_parallel_size, r.vllm.gpu_memory_utilization
    if parallel < 1 or ranks % parallel:
        yield f"rollout.vllm.tensor_parallel_size = {parallel} does not divide the {ranks} rank(s)"
    if not 0 < share <= 1:
        yield f"rollout.vllm.gpu_memory_utilization = {share} must lie in (0, 1]"
    if model.init is None:
        yield "rollout.backend = vllm_colocate loads a model by its name or path; model.from_config has none"
    if model.quantization is not None and model.quantization.bits == 8:
        yield "rollout.backend = vllm_colocate cannot have 8-bit weights; use model.quantization.bits = 4"


def _refuse_grown(backend: str, model: Any) -> None:
    """A colocated engine loads the model by name: a vocabulary that has grown since does not fit into it."""
    from transformers import AutoConfig

    if backend != "vllm_colocate":
        return
    there = AutoConfig.from_pretrained(model.name_or_path).get_text_config().vocab_size
    here = model.config.get_text_config().vocab_size
    if there != here:
        raise RequestError(
            f"rollout.backend = vllm_colocate: the vocabulary of {model.name_or_path} has {there} rows, with the tokens "
            f"of the template and model.add_tokens {here}; train a first stage with them and start from its run"
        )


def refuse_without_vllm(backend: str) -> None:
    """Raises `RequestError` where the recipe asks for vLLM and it is not installed."""
    if backend in MODES and find_spec("vllm") is None:
        raise RequestError(
            f"rollout.backend = {backend} needs vLLM, which wants its own environment: pip install 'posttrain[vllm]'; "
            "or use rollout.backend: transformers"
        )


def refuse_raw_log_probs(info: dict[str, Any]) -> None:
    """Raises `RequestError` where a server's log-probabilities are not those it samples from; `info` is its config."""
    mode = info["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise RequestError(
            f"the vLLM server gives {mode}, before temperature, which biases the importance weights: restart it with "
            "--logprobs-mode processed_logprobs, or set rollout.vllm.correction: none"
        )


def vllm_generator(trainer: Any, start: Model, max_length: int, rollout: TrainRollout) -> VllmGenerator:
    """What `trainer`, an RLVR trainer that is set up, samples with: an engine that gets its weights after each step."""
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
    """A `Generator` on an engine of TRL. `step()` says which optimizer step's weights the policy has."""

    def __init__(self, engine: Any, tokenizer: Any, stops: Sequence[int], step: Callable[[], int]) -> None:
        self.engine, self.tokenizer, self.stops = engine, tokenizer, frozenset(stops)
        self.step = step
        self.synced: int | None = None
        """The optimizer step whose weights the engine has; None: those it was loaded with."""

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
        """Start the engine, or wait for the server. Collective; needs a GPU.

        Raises:
            RequestError: see `vllm_settings`; no vLLM.
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
        """Give the engine the policy's weights, unless it has them. Collective."""
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
        """See `Generator`; `seed` and `streams` are not read, and `sampling.batch_size` was settled at the start.

        Raises:
            RequestError: settings that exclude each other, an empty prompt, one that leaves no room for a token.
            WorkError: the server is gone, the engine answers something else than it was asked.
        """
        sampling.check(n)
        limit = self.engine.max_model_length
        refuse_prompts(prompts, limit, f"vLLM's limit is {limit}")
        asked = [prompt for prompt in prompts for _ in range(n)]
        asked += [self._filler(prompts)] * (n * self._most(len(prompts)) - len(asked))
        self.sync()
        if not asked:
            return []
        engine = self.engine
        engine.temperature, engine.top_p = sampling.temperature, sampling.top_p
        engine.max_completion_length = sampling.max_new_tokens
        try:
            _, ids, log_probs, _ = engine.generate(asked, images=None, num_generations=n)
        except Exception as error:
            if engine.mode != "server":
                raise
            # TRL's client raises bare exceptions for what the server answers, requests' own where it is gone
            raise WorkError(f"the vLLM server at {engine.server_base_url}: {error}") from error
        if len(ids) != len(asked):
            raise WorkError(f"vLLM gave {len(ids)} completions for {len(asked)}")
        return [
            self._rollout(i // n, i % n, list(ids[i]), None if log_probs is None else log_probs[i])
            for i in range(n * len(prompts))
        ]

    def _most(self, prompts: int) -> int:
        """The largest number of prompts that a rank asks; TRL's collective calls want the same on all."""
        accelerator = self.engine.accelerator
        alone = self.engine.mode == "colocate" and self.engine.tensor_parallel_size == 1
        if alone or accelerator.num_processes == 1:
            return prompts
        from accelerate.utils import gather_object

        return max(gather_object([prompts]))

    def _filler(self, prompts: list[list[int]]) -> list[int]:
        """What a rank with fewer prompts asks besides; the replies are thrown away."""
        return prompts[0] if prompts else [min(self.stops)]

    def _rollout(
        self, prompt: int, sample: int, ids: list[int], log_probs: list[list[float | None]] | None
    ) -> Completion:
        stop = bool(ids) and ids[-1] in self.stops
        text = self.tokenizer.decode(ids[: len(ids) - stop], skip_special_tokens=True)
        if log_probs is not None:
            # the sampled token alone is asked for; vLLM says None where it has no number
            values = [math.nan if first[0] is None else first[0] for first in log_probs]
        return Completion(
            prompt, sample, text, ids, "stop" if stop else "length", values if log_probs else None
        )
