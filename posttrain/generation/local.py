"""Generation with a causal language model of transformers.

The loop is our own, on the public methods of transformers' caches: a prompt is read once for all its samples,
and finished sequences leave the batch. `model.generate` does neither. Sampling is by inverse CDF from a
random stream that belongs to (seed, prompt, sample): the global random state is neither read nor changed, and
the samples of a prompt do not depend on the other prompts of the call. Of the model's generation config only
the end tokens are used. Left out: beam search, penalties, constrained decoding, models without a cache whose
rows can be repeated and removed; vLLM (`vllm.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from posttrain.base.stop import check_stop
from posttrain.errors import RequestError, WorkError
from posttrain.generation.base import Completion, Sampling, completion_of, end_tokens, refuse_prompts
from posttrain.generation.cache_limits import has_state, longrope_switch, refuse_switch

COMPACT_EVERY = 8
"""Decoding steps between removals of finished sequences, each of which copies the cache, and between looks at
whether this process was asked to stop."""


def batches(lengths: Sequence[int], n: int, batch_size: int, kind: Callable = lambda _: 0) -> list[list[int]]:
    """Indices of prompts in batches of at most `batch_size` sequences, `n` a prompt, at least one prompt.

    Longest prompts first: less padding, and a batch that does not fit in memory fails at once. All lengths of
    a batch have the same `kind`, which may only change where the length does.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    size = max(1, batch_size // n)
    one_kind = [list(group) for _, group in groupby(order, key=lambda i: kind(lengths[i]))]
    return [group[start : start + size] for group in one_kind for start in range(0, len(group), size)]


class TransformersGenerator:
    """A `Generator` on a causal language model of transformers.

    A sequence ends at an end token (the tokenizer's, those of the model's generation config,
    `stop_token_ids`), behind one of `endings` (ends of turn of several tokens) and, with finish `length`,
    when the model has no positions left.

    Prompts of a batch are padded on the left. A layer with a state (a convolution, a state space, linear
    attention) would read the padding, and a model that is not told positions would count it: such a model
    gets prompts of one length at a time, and no mask.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stop_token_ids: Sequence[int] = (),
        endings: Sequence[Sequence[int]] = (),
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        stops = end_tokens(model, tokenizer, stop_token_ids)
        self.stops = torch.tensor(stops, dtype=torch.long, device=model.device)
        self.endings = [torch.tensor(e, dtype=torch.long, device=model.device) for e in endings]
        # the argument is called `cache` from transformers 5.23 on, `past_key_values` before
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        forward = getattr(type(plain), "forward", plain)
        taken = inspect.signature(forward).parameters
        self.cache = "cache" if "cache" in taken else "past_key_values"
        config = model.config.get_text_config()
        self.positions = getattr(config, "max_position_embeddings", None)
        self.switch = longrope_switch(vars(config))
        state = getattr(plain, "_is_stateful", False) or has_state(getattr(config, "layer_types", None))
        self.alike = state or "position_ids" not in taken  # only prompts of one length in a batch
        # a step of decoding has no balancing loss
        self.extra = {"output_router_logits": False} if getattr(config, "output_router_logits", None) else {}

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
            RequestError: invalid settings, an empty prompt, a prompt that fills the model's positions,
                completions at which the model's rotary factors would change, a model without a cache.
            WorkError: the model's logits are not finite.
            Stopped: this process was asked to stop; what was sampled is discarded.
        """
        sampling.check(n)
        refuse_prompts(prompts, self.positions, f"the model has {self.positions} positions")
        lengths = [len(p) for p in prompts]
        refuse_switch(lengths, sampling.max_new_tokens, self.switch)
        streams = range(len(prompts)) if streams is None else streams
        found: list[Completion] = []
        training = self.model.training
        self.model.eval()
        try:
            for batch in batches(lengths, n, sampling.batch_size, self._kind):
                uniform = np.stack([_uniform(seed, streams[i], n, sampling) for i in batch])
                for first in range(0, n, sampling.batch_size):
                    check_stop()
                    part = uniform[:, first : first + sampling.batch_size]
                    found += self._batch(batch, [prompts[i] for i in batch], part, first, sampling)
        finally:
            self.model.train(training)
        return sorted(found, key=lambda r: (r.prompt_index, r.sample_index))

    def _kind(self, length: int) -> Any:
        """Prompts of lengths with the same value may be in one batch."""
        if self.alike:
            return length
        return self.switch is not None and length > self.switch

    @torch.inference_mode()
    def _batch(
        self,
        indices: list[int],
        prompts: list[list[int]],
        uniform: np.ndarray,
        first: int,
        sampling: Sampling,
    ) -> list[Completion]:
        """Samples `first` to `first + n` of P prompts that fit in memory together; `uniform` [P, n, T]."""
        n, steps = uniform.shape[1], sampling.max_new_tokens
        logits, cache, mask = self._prefill(prompts)
        if n > 1:
            self._select(cache, torch.arange(len(mask), device=mask.device).repeat_interleave(n))
            logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        past = mask.shape[1]
        # [S, T], or [S, 0] if greedy
        draws = torch.from_numpy(uniform.reshape(len(mask), -1)).to(mask.device)
        state = _Decoding.start(mask, steps, self.positions)
        for step in range(steps):
            logits = logits.float()
            uniforms = draws[state.rows, step : step + 1] if draws.numel() else None
            token = choose(logits, uniforms, sampling)
            state.add(step, token, logits, self.stops, self.endings)
            if not state.live.any():
                break
            due = (step + 1) % COMPACT_EVERY == 0
            if due:
                check_stop()
            if due and not state.live.all():
                kept = state.compact()
                self._select(cache, kept)
                token = token[kept]
            logits = self.model(
                input_ids=token[:, None],
                attention_mask=None if self.alike else state.mask[:, : past + step + 1],
                position_ids=(state.position - 1)[:, None],
                use_cache=True,
                **{self.cache: cache},
                **self.extra,
            ).logits[:, -1]
        return [
            self._completion(indices[i // n], first + i % n, *row) for i, row in enumerate(state.sequences())
        ]

    def _prefill(self, prompts: list[list[int]]) -> tuple[Tensor, Any, Tensor]:
        """Logits [P, V] after each of P prompts, the cache, the mask [P, L] of the left-padded prompts."""
        longest = max(map(len, prompts))
        device = self.model.device
        ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids,
            attention_mask=None if self.alike else mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **self.extra,
        )
        cache = getattr(out, self.cache, None)
        if cache is None:
            raise RequestError(f"{type(self.model).__name__} has no key-value cache, which generation needs")
        return out.logits[:, -1], cache, mask

    def _select(self, cache: Any, rows: Tensor) -> None:
        """Keeps `rows` of the cache, some of them several times."""
        # the library's own passes over states
        own = type(cache).batch_select_indices is not Cache.batch_select_indices
        try:
            cache.batch_select_indices(rows) if own else cache.reorder_cache(rows)
        except (AttributeError, IndexError, TypeError) as error:
            name = type(self.model).__name__
            raise RequestError(f"{name}: rows of its cache cannot be repeated or removed: {error}") from error

    def _completion(
        self, prompt: int, sample: int, ids: list[int], log_probs: list[float], length: int, stopped: bool
    ) -> Completion:
        ids, log_probs = ids[:length], log_probs[:length]
        if not np.isfinite(log_probs).all():
            raise WorkError("the model's logits are not finite, so no completion can be sampled from it")
        endings = [ending.tolist() for ending in self.endings]
        return completion_of(self.tokenizer, prompt, sample, ids, stopped, log_probs, endings)


@dataclass
class _Decoding:
    """S sequences of one batch while they are sampled; R of them (`rows`) are still in the batch."""

    tokens: Tensor  # [S, T] int64
    log_probs: Tensor  # [S, T] fp32
    lengths: Tensor  # [S] int64: tokens sampled
    stopped: Tensor  # [S] bool: ended by an end token or an end of several tokens
    rows: Tensor  # [R] int64
    live: Tensor  # [R] bool: not ended yet
    mask: Tensor  # [R, L + T] attention mask; the part of the prompt is padded on the left
    position: Tensor  # [R] int64: of the next token
    end: Tensor  # [R] int64: the position at which the sequence is cut off

    @classmethod
    def start(cls, mask: Tensor, steps: int, positions: int | None) -> _Decoding:
        """Before the first token; `mask` [S, L] is that of the prompts."""
        size, device = len(mask), mask.device
        position = mask.sum(1)
        end = position + steps
        stopped = torch.zeros(size, dtype=torch.bool, device=device)
        return cls(
            tokens=torch.zeros(size, steps, dtype=torch.long, device=device),
            log_probs=torch.zeros(size, steps, device=device),
            lengths=torch.zeros(size, dtype=torch.long, device=device),
            stopped=stopped,
            rows=torch.arange(size, device=device),
            live=torch.ones_like(stopped),
            mask=torch.cat([mask, mask.new_ones(size, steps)], 1),
            position=position,
            end=end if positions is None else end.clamp(max=positions),
        )

    def add(self, step: int, token: Tensor, logits: Tensor, stops: Tensor, endings: list[Tensor]) -> None:
        """Records token number `step` [R] of each sequence, drawn from `logits` [R, V] fp32."""
        self.tokens[self.rows, step] = token
        chosen = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1)
        self.log_probs[self.rows, step] = chosen
        self.lengths[self.rows] += self.live
        ends = torch.isin(token, stops)
        for ending in endings:
            if len(ending) <= step + 1:
                ends |= (self.tokens[self.rows, step + 1 - len(ending) : step + 1] == ending).all(1)
        ends &= self.live
        self.stopped[self.rows] |= ends
        self.position += self.live  # a finished sequence stays at a position that the model has
        self.live &= ~ends & (self.position < self.end)

    def compact(self) -> Tensor:
        """Removes finished sequences from the batch; returns the indices [R'] of those kept."""
        kept = self.live.nonzero()[:, 0]
        self.rows, self.live, self.mask = self.rows[kept], self.live[kept], self.mask[kept]
        self.position, self.end = self.position[kept], self.end[kept]
        return kept

    def sequences(self) -> list[tuple[list[int], list[float], int, bool]]:
        """(tokens [T], log-probabilities [T], length, stopped) of each sequence."""
        columns = (self.tokens, self.log_probs, self.lengths, self.stopped)
        return list(zip(*(column.tolist() for column in columns), strict=True))


def choose(logits: Tensor, uniform: Tensor | None, sampling: Sampling) -> Tensor:
    """Next tokens [R] from logits [R, V] float32 and numbers [R, 1] in [0, 1).

    The token whose interval of the cumulative probabilities contains the number. With top_p < 1 only the
    smallest set of most probable tokens that reaches top_p is used (Holtzman et al. 2020, arXiv 1904.09751).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    weight = (logits / sampling.temperature).softmax(-1)
    order = None
    if sampling.top_p < 1:
        weight, order = weight.sort(dim=-1, descending=True)
        weight = weight.masked_fill(weight.cumsum(-1) - weight >= sampling.top_p, 0.0)
    cumulative = weight.cumsum(-1)
    # below the total even after rounding, as a float32 number is at most 1 - 2^-24; the clamp is for NaN
    target = uniform * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return (index if order is None else order.gather(1, index))[:, 0]


def _uniform(seed: int, stream: int, n: int, sampling: Sampling) -> np.ndarray:
    """[n, T] float32 numbers of a prompt's stream; the first rows do not change with n. Greedy: [n, 0]."""
    if sampling.temperature == 0:
        return np.zeros((n, 0), dtype=np.float32)
    key = np.array([seed, stream], dtype=np.int64).astype(np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    return rng.random((n, sampling.max_new_tokens), dtype=np.float32)
