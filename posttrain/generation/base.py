"""TODO posttrain.generation.base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from posttrain.errors import RequestError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `batch_size` counts sequences."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    batch_size: int = 64

    def check(self, n: int) -> None:
        """Raises RequestError where `n` samples cannot be drawn so."""
        if not 0 <= self.temperature < float("inf"):
            raise RequestError(f"temperature = {self.temperature} must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p = {self.top_p} must lie in (0, 1]")
        if min(n, self.max_new_tokens, self.batch_size) < 1:
            raise RequestError("samples, max_new_tokens and batch_size must be at least 1")
        if self.temperature == 0 and n > 1:
            raise RequestError(f"temperature 0 is greedy: {n} samples would be the same text")


@dataclass(slots=True)
class Completion:
    """One completion. `token_ids` include the end token where `finish` is `stop`; `text` does not.

    `log_probs`: of each token under the model itself, before temperature and top_p (natural logarithm).
    """

    prompt_index: int
    sample_index: int
    text: str
    token_ids: list[int]
    finish: Literal["stop", "length"]
    log_probs: list[float] | None = None


class Generator(Protocol):
    """What samples completions, for evaluation and reinforcement learning alike."""

    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        seed: int,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """`n` completions of each prompt (token ids), ordered by prompt, then sample.

        `streams` [len(prompts)] names each prompt's random stream, default its place in `prompts`: with them a
        part of a larger list samples what the whole list would.
        """
        ...
