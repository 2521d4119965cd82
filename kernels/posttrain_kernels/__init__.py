"""The confidence-limited loss on hidden states, without T x V logits.

    family         L(log p) and its weight F, elementwise
    reference      the specification: full logits, autograd
    torch_chunked  the same in chunks of rows: any device, small memory
    segments       sums of log-probabilities -> loss and gradient scales
    spec           the checked request, the output, the global count
    dispatch       `confidence_limited`: checks, back-end choice

Imports nothing but torch. Left out so far: a Triton kernel; bias, softcap and scale on the head.
"""

from . import family
from .dispatch import available_backends, confidence_limited
from .spec import LossOutput, count

__all__ = ["LossOutput", "available_backends", "confidence_limited", "count", "family"]
