"""Generation with vLLM: a `Generator` on TRL's `VLLMGeneration`, in this process (colocate) or on a server.

TRL owns the engine, its memory and the copying of weights into it. This file starts it, keeps its weights
those of the policy, and turns its answers into completions. There are three differences to
`TransformersGenerator`:

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

Left out: the settings (`vllm_settings.py`); what a server says about itself (`vllm_server.py`); what
an answer must have (`vllm_answer.py`); images; LoRA
inside vLLM (TRL merges adapters into the weights it copies); `model.revision` (vLLM reads the config under
the model's name; the weights are the policy's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from posttrain.base.printable import server_of
from posttrain.errors import RequestError, WorkError
from posttrain.generation.base import Completion, Sampling, completion_of, end_tokens, refuse_prompts
from posttrain.generation.vllm_answer import explained, refuse_answer
from posttrain.generation.vllm_server import compute_dtype, refuse_server
from posttrain.generation.vllm_settings import refuse_without_vllm, vllm_settings
from posttrain.recipe.schema import Model
from posttrain.recipe.sections import TrainRollout
from posttrain.rundir.adapters import chain


def engine_model(model: Any) -> str:
    """The name under which a colocated engine loads the policy: a folder or hub id of a whole model.

    Of a policy that was merged from an adapter it is the base, at the bottom of the chain. Only the shapes
    matter, since weights are copied before the first sample.
    """
    return chain(model.name_or_path)[-1]


def _refuse_grown(name: str, model: Any) -> None:
    """A vocabulary that has grown since does not fit into an engine that loads the model `name`."""
    from transformers import AutoConfig

    there = AutoConfig.from_pretrained(name).get_text_config().vocab_size
    here = model.config.get_text_config().vocab_size
    if there != here:
        raise RequestError(
            f"rollout.backend = vllm_colocate: the vocabulary of {name} has {there} rows, but {here} with "
            "the tokens of the template and model.add_tokens; train an SFT stage with these tokens first "
            "and start from its run"
        )


@contextmanager
def _named(model: Any, name: str) -> Iterator[None]:
    """`model.name_or_path`, from which TRL takes the engine's model, is `name`."""
    own = model.name_or_path
    model.name_or_path = name
    try:
        yield
    finally:
        model.name_or_path = own


def _refuse_tied_adapter(model: Any) -> None:
    """vLLM has one weight for head and embedding where the policy's adapter has made them two."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    tied = getattr(plain.config.get_text_config(), "tie_word_embeddings", False)
    layers = plain.get_input_embeddings(), plain.get_output_embeddings()
    if tied and any(hasattr(x, "base_layer") or hasattr(x, "original_module") for x in layers):
        raise RequestError(
            "model.lora: vLLM cannot sample from an adapter on the head or the embedding of a model in which "
            "they are one weight; adapt other modules, export the model with a first adapter there (which "
            "separates them), or set rollout.backend: transformers"
        )


@contextmanager
def _server_errors(url: str) -> Iterator[None]:
    """TRL's client raises bare exceptions for error responses, and those of requests if the server is
    gone."""
    try:
        yield
    except Exception as error:
        raise WorkError(f"the vLLM server at {server_of(url)}: {explained(error)}") from error


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
            RequestError: see `vllm_settings` and `refuse_server`; or vLLM is not installed.
            WorkError: the server does not answer in time, or cannot take weights.
        """
        refuse_without_vllm(rollout.backend)
        _refuse_tied_adapter(model)
        stops = end_tokens(model, tokenizer, stop_token_ids)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        settings = vllm_settings(start, max_length, rollout, accelerator.num_processes, stops, positions)
        from trl.generation.vllm_generation import VLLMGeneration

        if settings["mode"] == "colocate":
            name = engine_model(model)
            _refuse_grown(name, model)
            with _named(model, name):
                engine = VLLMGeneration(model, accelerator, tokenizer, **settings)
            return cls(engine, tokenizer, stops, step)
        url = rollout.vllm.server_base_url
        with _server_errors(url):
            engine = VLLMGeneration(model, accelerator, tokenizer, **settings)
            info = engine.vllm_client.get_server_info() if accelerator.is_main_process else None
        if info is not None:
            length = max_length + rollout.max_new_tokens
            dtype = compute_dtype(model, accelerator)
            refuse_server(url, info, model.config, dtype, length, rollout.vllm)
        return cls(engine, tokenizer, stops, step)

    def sync(self) -> None:
        """Copies the policy's weights to the engine, unless it has them. Collective."""
        if (step := self.step()) != self.synced:
            with self._errors():
                self.engine.sync_weights()
            self.synced = step

    def _errors(self) -> AbstractContextManager[None]:
        return _server_errors(self.engine.server_base_url) if self.engine.mode == "server" else nullcontext()

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
            WorkError: the server does not answer or take the weights, or its answer is not one completion
                with log-probabilities for each copy of a prompt (`refuse_answer`).
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
        with self._errors():
            _, ids, log_probs, _ = engine.generate(copies, images=None, num_generations=n)
        if log_probs is None:
            raise WorkError(
                f"{self._name} returned no log-probabilities, so that its samples cannot be compared with "
                "the policy"
            )
        if len(ids) != len(copies):
            raise WorkError(f"{self._name} returned {len(ids)} completions; {len(copies)} were requested")
        found, rows = [], engine.model.config.get_text_config().vocab_size
        for i in range(n * len(prompts)):
            whose = f"{self._name} answered prompt {i // n}, sample {i % n},"
            refuse_answer(whose, ids[i], log_probs[i], sampling.max_new_tokens, rows, self.stops)
            found.append(self._completion(i // n, i % n, list(ids[i]), log_probs[i]))
        return found

    @property
    def _name(self) -> str:
        server = self.engine.mode == "server"
        return f"the vLLM server at {server_of(self.engine.server_base_url)}" if server else "vLLM"

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
        self, prompt: int, sample: int, ids: list[int], log_probs: list[list[float | None]]
    ) -> Completion:
        # only the sampled token's is requested; vLLM gives None where it has no number
        values = [math.nan if first[0] is None else first[0] for first in log_probs]
        return completion_of(self.tokenizer, prompt, sample, ids, ids[-1] in self.stops, values)
