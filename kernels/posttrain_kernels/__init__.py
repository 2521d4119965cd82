"""The confidence-limited loss family on hidden states, forward and backward, without the T x V logits.

This room computes the loss and its gradients (`confidence_limited`) and differentiable log-probabilities
(`token_log_probs`) from hidden states and the weight of the output head, in three back-ends that agree:
Triton, chunked torch, and a reference in plain torch. It leaves out recipes, models and trainers: it imports
nothing of posttrain, only torch, the standard library and, once its back-end is used, triton, so the folder
can be copied elsewhere. From the ground up:

    environment, rows, sharded, spec, family       switches, statistics of rows, a checked call, formulas
    checks, plan, matmul                           arguments, chunks, products with fp32 results
    rows_torch, segments, tokens_torch             what a back-end does on its own, in torch ...
    triton_math, autotune, rows_triton, segments_triton, tokens_triton, tiled    ... and in Triton
    backends, request                              the choice of a back-end; a call and all its checks
    gradients, chunked, tokens, reference          Mode A, Mode B, the specification
    compiled, compiled_tokens                      the operators of torch.compile
    dispatch                                       the public functions
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
