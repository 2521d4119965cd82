"""What every generator shares: how tokens are chosen, what a completion is, which requests are refused.

Left out: the sampling itself (`local.py`, `vllm.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from posttrain.data.tokenizers import decode
from posttrain.errors import RequestError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `batch_size` counts sequences."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    batch_size: int = 64

    def check(self, n: int) -> None:
        """Raises `RequestError` if `n` samples a prompt cannot be drawn with these settings."""
        if not 0 <= self.temperature < float("inf"):
            raise RequestError(f"temperature = {self.temperature} must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p = {self.top_p} must be in (0, 1]")
        if min(n, self.max_new_tokens, self.batch_size) < 1:
            raise RequestError("samples, max_new_tokens and batch_size must be at least 1")
        if self.temperature == 0 and n > 1:
            raise RequestError(f"temperature 0 is greedy: all {n} samples would be the same text")


@dataclass(slots=True)
class Completion:
    """What was sampled from one prompt. With finish `stop`, `token_ids` has what ended it (an end token, or
    an end of turn of several tokens), `text` does not.

    `log_probs`: natural log-probability of each token. A transformers model gives those of the model itself,
    before temperature and top_p; vLLM those of the distribution that was sampled from.
    """

    prompt_index: int
    sample_index: int
    text: str
    token_ids: list[int]
    finish: Literal["stop", "length"]
    log_probs: list[float] | None = None
    ended: int = 0
    """How many of the tokens, at the end, are what ended it."""


class Generator(Protocol):
    """Samples completions, for evaluation, reinforcement learning and the stages that sample."""

    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        seed: int,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """`n` completions of each prompt (token ids), ordered by prompt, then sample.

        `streams` [len(prompts)] names the random stream of each prompt; the default is its index in
        `prompts`. With explicit streams, a part of a list of prompts gets the same samples as the full list.
        """
        ...


def ending_of(ids: list[int], endings: Iterable[list[int]]) -> int:
    """How many of `ids`, at the end, are one of `endings`; the most, 0 if none."""
    return max((len(ending) for ending in endings if ids[-len(ending) :] == ending), default=0)


def completion_of(
    tokenizer: Any,
    prompt: int,
    sample: int,
    ids: list[int],
    stopped: bool,
    log_probs: list[float] | None,
    endings: Iterable[list[int]] = (),
) -> Completion:
    """The completion with token ids `ids`; `stopped`: the last ones ended it, which are one of `endings` or
    one token."""
    ended = (ending_of(ids, endings) or 1) if stopped else 0
    text = completion_text(tokenizer, ids, ended)
    return Completion(prompt, sample, text, ids, "stop" if stopped else "length", log_probs, ended)


def completion_text(tokenizer: Any, ids: list[int], ended: int = 0) -> str:
    """The text of `ids` without what only ends or pads: the last `ended` tokens, and padding.

    Every other token is kept, special ones too: markers such as `<think>` carry meaning. A padding token that
    is also the tokenizer's unknown or begin-of-text token is kept as the latter.
    """
    padding = {tokenizer.pad_token_id} - {tokenizer.unk_token_id, tokenizer.bos_token_id}
    return decode([i for i in ids[: len(ids) - ended] if i not in padding], tokenizer)


def end_tokens(model: Any, tokenizer: Any, stop_token_ids: Sequence[int] = ()) -> list[int]:
    """End tokens of the tokenizer, of the model's generation config, and `stop_token_ids`."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *configured, *stop_token_ids} - {None})


def refuse_prompts(prompts: list[list[int]], limit: int | None, reason: str) -> None:
    """Raises `RequestError` for an empty prompt or one of `limit` or more tokens (`reason`: whose limit)."""
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise RequestError(f"prompt {i} is empty; generation needs at least one prompt token")
        if limit is not None and len(prompt) >= limit:
            raise RequestError(f"prompt {i} has {len(prompt)} tokens; {reason}")
