"""Log-probabilities of given answers, by one teacher-forced forward pass per batch: no sampling, no sampling
noise.

Left out: answers that can be written in several ways (sum their probabilities), prompts shared between
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from posttrain.errors import RequestError, WorkError


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """`log_probs` [T, M] float64: natural logarithm of the probability of each complete answer, at each of
    the T temperatures. `predicted`: the most probable token at each position of the answer, given the correct
    tokens before it; up to the first one that differs from the answer this is what greedy decoding writes."""

    log_probs: np.ndarray
    predicted: list[list[int]]


@torch.inference_mode()
def answer_log_probs(
    model: Any,
    prompts: list[list[int]],
    answers: list[list[int]],
    batch_size: int = 64,
    temperatures: Sequence[float] = (1.0,),
) -> AnswerScores:
    """Scores `answers` (token ids, end token included) after `prompts`, in batches in the order given.

    At temperature t the probability of a token is the softmax of logits / t. All temperatures are read from
    the same logits, so each costs no forward pass of its own.

    Rows are padded on the right, where a causal model cannot see. Logits are computed only from the end of
    the shortest prompt on, and only those of answer tokens are converted to float32.

    Raises:
        RequestError: a prompt or an answer is empty, or longer than the positions of the model.
        WorkError: a log-probability is not finite.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not prompt or not answer:
            raise RequestError(f"problem {i}: the {'answer' if prompt else 'prompt'} has no tokens")
        if limit is not None and len(prompt) + len(answer) - 1 > limit:
            raise RequestError(
                f"problem {i}: {len(prompt)} + {len(answer)} tokens, but the model has {limit} positions"
            )
    training = model.training
    model.eval()
    sums: list[list[float]] = [[] for _ in temperatures]
    predicted: list[list[int]] = []
    try:
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            totals, tokens = _batch(model, prompts[part], answers[part], temperatures)
            for found, new in zip(sums, totals, strict=True):
                found += new
            predicted += tokens
    finally:
        model.train(training)
    log_probs = np.array(sums)
    if not np.isfinite(log_probs).all():
        raise WorkError("the model produces numbers that are not finite, so it cannot be scored")
    return AnswerScores(log_probs, predicted)


def _batch(
    model: Any, prompts: list[list[int]], answers: list[list[int]], temperatures: Sequence[float]
) -> tuple[list[list[float]], list[list[int]]]:
    sizes = [len(answer) for answer in answers]
    chosen = answer_logits(model, prompts, answers)  # [answer tokens, V]
    tokens = torch.tensor([token for answer in answers for token in answer], device=chosen.device)
    most, predicted = chosen.max(1, keepdim=True)
    below = chosen.sub_(most)  # no exponential overflows, at any temperature
    target, buffer = below.gather(1, tokens[:, None])[:, 0], torch.empty_like(below)
    totals = []
    for temperature in temperatures:
        normaliser = torch.div(below, temperature, out=buffer).exp_().sum(1).log_()
        log_probs = target / temperature - normaliser
        totals.append([float(part.sum()) for part in log_probs.double().cpu().split(sizes)])
    return totals, [part.tolist() for part in predicted[:, 0].cpu().split(sizes)]


def answer_logits(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """The logits that predict each token of each answer, in float32 [answer tokens, V]; one forward pass.

    The last token of an answer is predicted only, never read.
    """
    rows = [(prompt + answer)[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    first = min(map(len, prompts)) - 1  # the position that predicts the earliest answer token
    logits = model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        use_cache=False,
        logits_to_keep=longest - first,
    ).logits  # [B, longest - first, V]
    row = torch.tensor([b for b, answer in enumerate(answers) for _ in answer])
    at = torch.tensor(
        [
            len(p) - 1 - first + j
            for p, answer in zip(prompts, answers, strict=True)
            for j in range(len(answer))
        ]
    )
    return logits[row.to(logits.device), at.to(logits.device)].float()
