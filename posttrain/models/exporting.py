"""A checkpoint written as a plain model, and compared with the checkpoint: what stock transformers loads from
the files must give the logits that were scored.

Merging rounds, ties of weights get lost, libraries rename and convert weights on the way to disk: the only
proof is the folder itself, read by another program's rules. One model is in memory at a time. Left out: where
the folder comes from and goes to (`commands/export.py`); models with code of their own, which stock
transformers does not load.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from posttrain.base.loading import why_unloaded
from posttrain.data.template import Template, own_template
from posttrain.errors import RequestError, WorkError
from posttrain.models.adapters import merge
from posttrain.models.generation_config import stop_as_trained, with_generation_config
from posttrain.models.load import LOADING, load_scored, load_whole
from posttrain.types import Message

log = logging.getLogger(__name__)

EXACT = 1e-5
"""The bound, relative to the largest logit, unless rounding does more. In fp32 a merged weight, which sums in
another order than an adapter beside it, gives about 1e-6; weights that nothing changed give 0 in any type."""
SPOKEN: list[Message] = [
    {"role": "user", "content": "What is 12 + 30?\n\tDon't guess:  naïve, 中文, 🙂."},
    {"role": "assistant", "content": "It is 42."},
]
PART = 64
"""Maximum number of tokens of the conversation, and of ids spread over the vocabulary."""


@dataclass(frozen=True)
class Proof:
    """How far the logits of an export are from those of its checkpoint."""

    difference: float
    """The largest, over a row of tokens and the vocabulary."""
    bound: float
    """What `difference` may be."""


def write_plain(path: str, folder: Path, tokenizer: Any, dtype: str) -> Proof:
    """Writes the model at `path`, adapters merged, and `tokenizer` to `folder`; loads it and compares.

    `dtype`: of the weights, by torch's name; `auto` as in the checkpoint (of an adapter: as in its base).

    Raises:
        RequestError: the model cannot be loaded or merged, or gives NaN.
        WorkError: the folder does not load, or has other logits or another tokenizer than the checkpoint.
    """
    template = own_template(tokenizer)
    model = load_scored(path, "cpu")
    row = _row(model, tokenizer, template)
    scored = _logits(model, row)
    if scored.isnan().any():
        names = (name for name, weight in model.named_parameters() if weight.isnan().any())
        raise RequestError(f"{path} gives NaN instead of logits (NaN in {next(names, 'no weight')})")
    had = model.dtype
    wanted = had if dtype == "auto" else getattr(torch, dtype)
    merged = hasattr(model, "peft_config")
    if (wide := torch.promote_types(had, wanted)) != had:
        model = model.to(wide)  # before the adapter is merged, so that its update is rounded once
    if merged:
        log.info("merging the adapter %s", path)
        model = merge(model, path)
    if dtype != "auto":  # else parts that the model keeps in fp32 stay so
        model = model.to(wanted)
    stop_as_trained(model, tokenizer, template)
    with with_generation_config(model, folder):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    coarse = max(had, wanted, key=lambda kind: torch.finfo(kind).eps)
    bound = EXACT * scored.abs().max().item()
    if merged or had != wanted:
        bound = max(bound, _rounding(model, row, coarse))
    del model
    log.info("comparing what was written with %s", path)
    _compare_tokenizers(tokenizer, folder, template)
    return _compare_logits(folder, row, scored, bound)


def _compare_logits(folder: Path, row: Tensor, scored: Tensor, bound: float) -> Proof:
    try:
        model = load_whole(folder, dtype="auto").eval()
    except (*LOADING, RequestError) as error:
        raise WorkError(f"transformers does not load what was exported: {why_unloaded(error)}") from error
    exported = _logits(model, row)
    difference = torch.where(exported == scored, 0.0, exported - scored).abs().max().item()
    if not difference <= bound:  # NaN too
        raise WorkError(
            f"the exported model is not the checkpoint: a logit differs by {difference:.3g}, above the bound "
            f"{bound:.3g} (the largest logit is {scored.abs().max().item():.3g})"
        )
    return Proof(difference, bound)


def _row(model: Any, tokenizer: Any, template: Template | None) -> Tensor:
    """Token ids [1, T]: a conversation as the template renders it, then ids from all over the vocabulary."""
    text = template.render(SPOKEN) if template else SPOKEN[0]["content"]
    spoken = tokenizer(text, add_special_tokens=False)["input_ids"]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * PART
    part = min(PART, positions // 2)
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.cat([torch.tensor(spoken[:part]), torch.linspace(0, rows - 1, part).long()])[None]


@torch.inference_mode()
def _logits(model: nn.Module, row: Tensor) -> Tensor:
    """fp32 logits [T, V] of the ids `row` [1, T]."""
    return model(input_ids=row, use_cache=False).logits[0].float()


@torch.no_grad()
def _rounding(model: Any, row: Tensor, kind: torch.dtype) -> float:
    """How far the logits may move when weights are rounded to `kind`. Spoils the weights of `model`.

    Measured on the model itself: every weight moves up or down, at random, by one unit of the last place
    that `kind` keeps (rounding moves it by at most half a unit), and the bound is twice what that does to a
    logit. It grows with depth and with what a router decides, as the effect of rounding does.
    """
    before = _logits(model, row)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        sign = torch.empty_like(weight).uniform_(-1, 1, generator=generator).sign_()
        weight.mul_(1 + torch.finfo(kind).eps * sign)
    return 2 * (_logits(model, row) - before).abs().max().item()


def _compare_tokenizers(own: Any, folder: Path, template: Template | None) -> None:
    """Raises `WorkError` unless the tokenizer in `folder` has the tokens of `own`, and renders and encodes
    alike."""
    try:
        loaded = AutoTokenizer.from_pretrained(folder)
    except LOADING as error:
        raise WorkError(
            f"transformers does not load the exported tokenizer: {why_unloaded(error)}"
        ) from error
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    texts = [message["content"] for message in SPOKEN]
    same = own.chat_template == loaded.chat_template
    if template and same:
        texts += [t.apply_chat_template(SPOKEN, tokenize=False) for t in (own, loaded)]
    differs = {
        "vocabulary": own.get_vocab() != loaded.get_vocab(),
        "special tokens": any(getattr(own, name) != getattr(loaded, name) for name in special),
        "chat template": not same or len(set(texts[2:])) > 1,
        "encoding of a text": any(own(text).input_ids != loaded(text).input_ids for text in texts),
    }
    wrong = [what for what, unequal in differs.items() if unequal]
    if wrong:
        raise WorkError(f"the exported tokenizer is not the checkpoint's: another {' and '.join(wrong)}")
