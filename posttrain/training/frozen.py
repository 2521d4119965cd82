"""A second model that is never trained: the reference of a live comparison, prepared for whatever engine runs.

Without `place` it is the start model again. Its tokenizer must be the policy's, or its log-probabilities would be of other
tokens. Left out: a reference that follows the policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from trl.models.utils import prepare_deepspeed, prepare_fsdp

from posttrain.data.text import load_text
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.fused import attach_fused_head
from posttrain.model import load_model
from posttrain.recipe.schema import Model
from posttrain.training import checkpoints as ckpt

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def frozen_reference(
    model: Model, place: str | None, tokenizer: Any, start: Any, seed: int, accelerator: Any,
    revision: str | None = None,
) -> nn.Module:  # fmt: skip
    """The reference in `place` (as `model.init`; None: the start model at `start`), its head fused, prepared, in eval mode.

    `model` is the policy's section of the recipe, `tokenizer` the policy's: `refuse_other_reference` has compared them.

    Raises:
        RequestError: it cannot be loaded.
    """
    where = start
    if place is not None:
        where = ckpt.resolve(place)[0]
        model = replace(model, init=place, from_config=None, revision=revision)
    reference = load_model(replace(model, lora=None), where and str(where), tokenizer, seed)
    reference.requires_grad_(False).eval()
    attach_fused_head(reference)
    if accelerator.state.deepspeed_plugin is not None:
        return prepare_deepspeed(reference, accelerator)
    if accelerator.is_fsdp2:
        return prepare_fsdp(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)


def refuse_other_reference(
    recipe: Any, place: str | None, key: str, revision: str | None = None
) -> None:
    """Before rows are prepared and models loaded: raises `RequestError` where the reference in `place` reads other tokens."""
    if place is None:
        return
    model = recipe.model
    start = None if model.init is None else ckpt.resolve(model.init)[0]
    policy, _ = load_text(recipe, str(start))
    what = f"{key} = {place!r}"
    try:
        where = ckpt.resolve(place)[0]
        reference = load_tokenizer(str(where), revision, model.trust_remote_code)
    except RequestError as error:
        raise RequestError(f"{what}: {error}") from error
    refuse_other_tokenizer(policy, reference, what)


def refuse_other_tokenizer(policy: Any, reference: Any, what: str) -> None:
    """Raises `RequestError` naming the first difference; `what` opens the sentence."""
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    for token, number in sorted(theirs.items(), key=lambda item: item[1]):
        if ours.get(token) != number:
            has = "no such token" if token not in ours else f"it as {ours[token]}"
            raise RequestError(
                f"{what} has another tokenizer: {token!r} is its token {number}, the policy has {has}"
            )
    missing = sorted(ours.keys() - theirs.keys(), key=ours.__getitem__)
    if missing:
        raise RequestError(
            f"{what} has another tokenizer: the policy's {missing[0]!r} is unknown to it"
        )
    for name in SPECIAL:
        a, b = getattr(policy, name), getattr(reference, name)
        if a != b:
            raise RequestError(f"{what} has another tokenizer: its {name} is {b}, the policy's {a}")


@contextlib.contextmanager
def without_adapter(trainer: Any, on: bool) -> Iterator[None]:
    """Where `on` and the model has an adapter: the model as it was before it."""
    if on and is_peft_model(trainer.model):
        with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
            yield
    else:
        yield
