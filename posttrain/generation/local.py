"""Text from a model: the `Generator` protocol, and its implementation on a transformers model.

The loop is our own, on the public calls of transformers' caches: a prompt is read once for all its samples, and
sequences that have ended leave the batch. `model.generate` does neither. Sampling is by inverse CDF from a
stream that belongs to (seed, prompt, sample): the global random state is neither read nor moved, and a
prompt's samples do not depend on what else is in the call. Of the model's generation config only
the end tokens count. Left out: beams, penalties, constrained decoding, models without a key-value cache; vLLM
is `generate_vllm.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from posttrain.errors import RequestError, WorkError
from posttrain.generation.base import Completion, Sampling

COMPACT_EVERY = 8
"""Steps between removals of ended sequences: a removal copies the cache."""


def batches(lengths: Sequence[int], n: int, batch_size: int) -> list[list[int]]:
    """Prompts by index in batches of at most `batch_size` sequences, at least one prompt each.

    Longest first: little padding, and what does not fit in memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    size = max(1, batch_size // n)
    return [order[start : start + size] for start in range(0, len(order), size)]


def refuse_prompts(prompts: list[list[int]], limit: int | None, says: str) -> None:
    """Raises `RequestError` where a prompt is empty, or leaves no room for a token below `limit` (`says` which that is)."""
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise RequestError(f"prompt {i} is empty: there is no token to go on from")
        if limit is not None and len(prompt) >= limit:
            raise RequestError(f"prompt {i} has {len(prompt)} tokens, {says}")


def end_tokens(model: Any, tokenizer: Any, stop_token_ids: Sequence[int] = ()) -> list[int]:
    """Tokens that end a sequence: of the tokenizer, of the model's generation config, and `stop_token_ids`."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *configured, *stop_token_ids} - {None})


class TransformersGenerator:
    """Generation with a causal language model of transformers.

    A sequence ends at an end token: of the tokenizer, of the model's generation config, or of `stop_token_ids`
    (a template's end of turn). It also ends, with finish `length`, where the model has no more positions.
    """

    def __init__(self, model: Any, tokenizer: Any, stop_token_ids: Sequence[int] = ()) -> None:
        self.model, self.tokenizer = model, tokenizer
        stops = end_tokens(model, tokenizer, stop_token_ids)
        self.stops = torch.tensor(stops, dtype=torch.long, device=model.device)
        # transformers 5.23 calls it `cache`, earlier ones `past_key_values`
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        forward = getattr(type(plain), "forward", plain)
        taken = inspect.signature(forward).parameters
        self.cache = "cache" if "cache" in taken else "past_key_values"
        self.positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        seed: int,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """See `Generator`.

        Raises:
            RequestError: settings that exclude each other, an empty prompt, one that fills the model's positions.
            WorkError: the model gives NaN.
        """
        sampling.check(n)
        refuse_prompts(prompts, self.positions, f"the model {self.positions} positions")
        streams = range(len(prompts)) if streams is None else streams
        found: list[Completion] = []
        training = self.model.training
        self.model.eval()
        try:
            for batch in batches([len(p) for p in prompts], n, sampling.batch_size):
                uniform = np.stack([_uniform(seed, streams[i], n, sampling) for i in batch])
                for first in range(0, n, sampling.batch_size):
                    part = uniform[:, first : first + sampling.batch_size]
                    found += self._batch(batch, [prompts[i] for i in batch], part, first, sampling)
        finally:
            self.model.train(training)
        return sorted(found, key=lambda r: (r.prompt_index, r.sample_index))

    @torch.inference_mode()
    def _batch(
        self, indices: list[int], prompts: list[list[int]], uniform: np.ndarray, first: int, sampling
    ) -> list[Completion]:
        """Samples of prompts [P] that fit in memory together; `uniform` [P, n, T] in [0, 1)."""
        device, steps = self.model.device, sampling.max_new_tokens
        n = uniform.shape[1]
        size = len(prompts) * n
        logits, cache, mask = self._prefill(prompts)
        if n > 1:
            cache.batch_repeat_interleave(n)
            logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        past = mask.shape[1]
        mask = torch.cat([mask, mask.new_ones(size, steps)], 1)
        position = mask[:, :past].sum(1)  # of the next token
        draws = torch.from_numpy(uniform.reshape(size, -1)).to(device)
        end = position + steps
        if self.positions is not None:
            end = end.clamp(max=self.positions)
        tokens = torch.zeros(size, steps, dtype=torch.long, device=device)
        log_probs = torch.zeros(size, steps, device=device)
        lengths = torch.zeros(size, dtype=torch.long, device=device)
        stopped = torch.zeros(size, dtype=torch.bool, device=device)
        rows = torch.arange(size, device=device)  # the sequences still in the batch
        live = torch.ones_like(stopped)  # of those, which have not ended
        for step in range(steps):
            logits = logits.float()
            token = choose(logits, draws[rows, step : step + 1] if draws.numel() else None, sampling)
            tokens[rows, step] = token
            chosen = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1)
            log_probs[rows, step] = chosen
            lengths[rows] += live
            ends = torch.isin(token, self.stops) & live
            stopped[rows] |= ends
            position += live  # an ended one stays where the model has positions
            live &= ~ends & (position < end)
            if not live.any():
                break
            if (step + 1) % COMPACT_EVERY == 0 and not live.all():
                kept = live.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, live, token = rows[kept], live[kept], token[kept]
                mask, position, end = mask[kept], position[kept], end[kept]
            logits = self.model(
                input_ids=token[:, None],
                attention_mask=mask[:, : past + step + 1],
                position_ids=(position - 1)[:, None],
                use_cache=True,
                **{self.cache: cache},
            ).logits[:, -1]
        columns = (tokens.tolist(), log_probs.tolist(), lengths.tolist(), stopped.tolist())
        return [
            self._rollout(indices[i // n], first + i % n, *row)
            for i, row in enumerate(zip(*columns, strict=True))
        ]

    def _prefill(self, prompts: list[list[int]]) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Logits [P, V] after each prompt, the cache, and the mask [P, L] of the left-padded prompts."""
        longest = max(map(len, prompts))
        device = self.model.device
        ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        cache = getattr(out, self.cache, None)
        if cache is None:
            raise RequestError(f"{type(self.model).__name__} has no key-value cache to generate with")
        return out.logits[:, -1], cache, mask

    def _rollout(
        self, prompt: int, sample: int, ids: list[int], log_probs: list[float], length: int, stop: bool
    ) -> Completion:
        ids, log_probs = ids[:length], log_probs[:length]
        if not np.isfinite(log_probs).all():
            raise WorkError("the model gives numbers that are not finite: nothing can be sampled from it")
        text = self.tokenizer.decode(ids[: length - stop], skip_special_tokens=True)
        return Completion(prompt, sample, text, ids, "stop" if stop else "length", log_probs)


def choose(logits: torch.Tensor, uniform: torch.Tensor | None, sampling: Sampling) -> torch.Tensor:
    """Next tokens [R] from logits [R, V] float32 and numbers [R, 1] in [0, 1).

    The token whose interval of the cumulated probabilities holds the number; with top_p < 1 over the fewest
    most probable tokens that reach it (Holtzman et al. 2020, arXiv 1904.09751).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    weight = (logits / sampling.temperature).softmax(-1)
    order = None
    if sampling.top_p < 1:
        weight, order = weight.sort(dim=-1, descending=True)
        weight = weight.masked_fill(weight.cumsum(-1) - weight >= sampling.top_p, 0.0)
    cumulated = weight.cumsum(-1)
    # below the total also after rounding, for a float32 number is at most 1 - 2^-24; NaN would be past the end
    target = uniform * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target, right=True).clamp(max=logits.shape[-1] - 1)
    return (index if order is None else order.gather(1, index))[:, 0]


def _uniform(seed: int, stream: int, n: int, sampling: Sampling) -> np.ndarray:
    """[n, T] float32 numbers of a prompt's stream; the first rows stay when n grows. Greedy needs none."""
    if sampling.temperature == 0:
        return np.zeros((n, 0), dtype=np.float32)
    key = np.array([seed, stream], dtype=np.int64).astype(np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    return rng.random((n, sampling.max_new_tokens), dtype=np.float32)
