"""What a model's config says of sampling with a cache: layers with a state, and rotary factors that change.

Longrope has two sets of factors. Beyond a length all positions have the second set, also those before it,
and all rows of the batch: keys in a cache do not fit any more, the probabilities of the tokens that were
sampled are not those of one forward over the whole sequence, and those of a row depend on the rows beside it.
Left out: dynamic NTK scaling, whose factors change beyond the model's positions, where sampling
ends. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.errors import RequestError

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that have only keys and values in a cache, which a mask hides."""
LONGROPE = ("longrope", "su")
"""The second is its name in older configs."""
CHANGE = "the model's rotary factors (longrope) change, and with them the probabilities of the tokens before"


def has_state(layer_types: Sequence[str] | None) -> bool:
    """Whether there are layers of other kinds than `ATTENTION`; None: the config does not list them."""
    return not ATTENTION.issuperset(layer_types or ())


def longrope_switch(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that has the first factors; None without longrope. `config`: of the text model."""
    ropes = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(ropes, dict):
        return None
    for rope in (ropes, *ropes.values()):
        if not isinstance(rope, dict) or (rope.get("rope_type") or rope.get("type")) not in LONGROPE:
            continue
        short, long = rope.get("short_factor"), rope.get("long_factor")
        if short is None or short != long:
            own = config.get("original_max_position_embeddings")
            return rope.get("original_max_position_embeddings") or own
    return None


def across_switch(config: Mapping[str, Any], max_length: int, new: int = 0) -> str | None:
    """Why rows of up to `max_length` tokens cannot be trained on, or `new` tokens not be sampled behind them,
    and the remedy; None where they can."""
    switch = longrope_switch(config)
    if switch is None or max_length + new <= switch:
        return None
    if not new:
        return (
            f"data.max_length = {max_length} is above the {switch} tokens beyond which the model's rotary "
            "factors (longrope) change, for all rows of a micro-batch: what a row gives would depend on the "
            f"rows beside it; lower data.max_length to {switch}, or write the whole rope_parameters "
            "(rope_type, rope_theta, original_max_position_embeddings, ...) into model.options, with one set "
            "of factors: short_factor equal to long_factor"
        )
    return (
        f"data.max_length = {max_length} and rollout.max_new_tokens = {new} are above the {switch} tokens "
        f"beyond which {CHANGE}; lower data.max_length or rollout.max_new_tokens"
    )


def refuse_switch_of_rows(model: Any, max_length: int, new: int = 0) -> None:
    """Raises `RequestError` for what `across_switch` says: of a model on the hub, check knows no config."""
    if why := across_switch(vars(model.config.get_text_config()), max_length, new):
        raise RequestError(why)


def refuse_switch(lengths: Sequence[int], new: int, switch: int | None) -> None:
    """Raises `RequestError` where `new` tokens behind a prompt of one of the `lengths` cross `switch`."""
    for i, length in enumerate(lengths):
        if switch is not None and length <= switch < length + new:
            raise RequestError(
                f"prompt {i} has {length} tokens and up to {new} more would be sampled, but beyond {switch} "
                f"tokens {CHANGE}; keep prompt and max_new_tokens together within {switch}"
            )
