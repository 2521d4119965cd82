"""The confidence-limited loss on hidden states, without T x V logits.

    family         L(log p) and its weight F, elementwise
    reference      the specification: full logits, autograd
    chunked        Mode A: chunks of rows, gradients made in forward, any device, small memory
    tokens         Mode B: differentiable log-probabilities, logits computed again in backward
    rows_torch, rows_triton          operations on rows of logits, the difference between back-ends
    segments, segments_triton        sums of log-probabilities -> loss and gradient scales
    plan, matmul, view, vocab, sharded, spec, checks
    dispatch       `confidence_limited`, `token_log_probs`: checks, back-end choice

Imports nothing but torch, and triton once its back-end is used.
"""

from . import family
from .backends import available_backends
from .dispatch import confidence_limited, token_log_probs
from .sharded import VocabShard
from .spec import LossOutput, OnHost, TokenOutput, count

__all__ = [
    "LossOutput",
    "OnHost",
    "TokenOutput",
    "VocabShard",
    "available_backends",
    "confidence_limited",
    "count",
    "family",
    "token_log_probs",
]
