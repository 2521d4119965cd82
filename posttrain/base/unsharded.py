"""Loading whole models in a process that trains under ZeRO-3.

While transformers knows ZeRO-3's config, every `from_pretrained` leaves each rank with a part of the weights,
also of a model that the engine does not train. Here because reward models and language models, of rooms that
do not import each other, are loaded by the same rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def unsharded_loading() -> Iterator[None]:
    """Under ZeRO-3, `from_pretrained` returns whole weights in here."""
    from transformers.integrations import deepspeed  # late: imports torch

    config = deepspeed._hf_deepspeed_config_weak_ref  # there is no function that returns it
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
