"""Loading models as a recipe describes, for training and for scoring. A trained adapter is a model like any
other: its base is loaded, be it a model or another adapter, and the adapter merged into it.

Left out: the forward under training (`head.py`); the adapter that a stage trains (attached by the trainers).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
)
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from posttrain.base.loading import UNLOADED, why_unloaded
from posttrain.base.unsharded import unsharded_loading
from posttrain.base.whole_weights import REPORTED, refuse_partial
from posttrain.data.tokenizers import vocabulary_size
from posttrain.errors import RequestError
from posttrain.models.adapters import attach, merge
from posttrain.models.generation_config import take_generation_config
from posttrain.models.logits import refuse_unsupported_head
from posttrain.models.saved_tokenizer import refuse_swapped_tokenizer
from posttrain.recipe.schema import Model
from posttrain.rundir.adapters import (
    Adapter,
    adapter_in,
    adapter_of,
    quantized_base_error,
    refuse_other_base,
)
from posttrain.rundir.proof import proved

log = logging.getLogger(__name__)

LOADING = (*UNLOADED, SafetensorError, StrictDataclassError)
"""What `from_pretrained` and `from_config` raise."""

FLASH = (
    ("flash_attention_2", is_flash_attn_2_available, 8),
    ("flash_attention_3", is_flash_attn_3_available, 8),
    ("flash_attention_4", is_flash_attn_4_available, 9),
)
"""What `auto` looks for: name, whether its package is installed, the GPU's least compute capability. The most
complete comes first: 3 and 4 have no dropout."""


FLASH_WIDTH = 256
"""The widest attention head that flash attention takes."""


def attention_implementations(choice: str, half: bool) -> list[str]:
    """What to give transformers as `attn_implementation`, each if the model does not support the one before.

    `half`: whether the run computes in half precision. The choice of `auto` is logged.
    """
    if choice != "auto":
        return [choice]
    flash: list[str] = []
    if not torch.cuda.is_available():
        reason = "no GPU"
    elif not half:
        reason = "flash attention takes bfloat16 and float16 only, and this run computes in float32"
    else:
        capability = torch.cuda.get_device_capability()[0]
        flash = [name for name, installed, least in FLASH if capability >= least and installed()][:1]
        reason = "its package is installed" if flash else "no flash attention for this GPU is installed"
    picked = [*flash, "sdpa", "eager"]
    log.info("attention: %s (%s)", picked[0], reason)
    return picked


def load_model(
    config: Model, init: str | Path | None, tokenizer: Any, seed: int, mixed: str = "no"
) -> nn.Module:
    """The causal language model of `config` with an embedding row for every token of `tokenizer`.

    `init` is the resolved path or hub id of trained weights (None with `from_config`). `mixed`:
    accelerate's `mixed_precision` of the run.

    Raises:
        RequestError: the model cannot be loaded or built, or the fused head does not support it.
    """
    half = mixed != "no" or config.quantization is not None or _dtype(config) != torch.float32
    attention, *others = attention_implementations(config.attention, half)

    def load(attention: str) -> nn.Module:
        if config.from_config is None:
            return _from_pretrained(config, str(init), attention)
        torch.manual_seed(seed)
        return _from_config(config, tokenizer, attention)

    while True:
        try:
            model = load(attention)
            break
        except RequestError as error:
            if not others or not re.search("attention|flash", str(error.__cause__ or error), re.IGNORECASE):
                raise
            log.info("attention: %s (the model does not support %s)", others[0], attention)
            attention, *others = others
    if others and "flash" in attention and (width := _head_width(model)) > FLASH_WIDTH:
        log.info("attention: %s (heads of %d are too wide for %s)", others[0], width, attention)
        model.set_attn_implementation(others[0])
    if config.tokenizer is not None:
        refuse_swapped_tokenizer(tokenizer, model.config, config.tokenizer, config.trust_remote_code)
        _forget_end_tokens(model)
    _resize(model, tokenizer, config, seed)
    refuse_unsupported_head(model)
    return model


def _head_width(model: nn.Module) -> int:
    """Of the widest attention head; Gemma 4 has two widths."""
    return max((w for m in model.modules() if isinstance(w := getattr(m, "head_dim", 0), int)), default=0)


def _forget_end_tokens(model: nn.Module) -> None:
    """The ids that end a text in the model's own vocabulary may be anything in that of another tokenizer."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = model.generation_config.bos_token_id = None


def _from_config(config: Model, tokenizer: Any, attention: str) -> nn.Module:
    assert config.from_config is not None
    options = config.from_config.options | {"vocab_size": vocabulary_size(tokenizer)}
    for name in ("pad", "bos", "eos"):
        options.setdefault(f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    try:
        shape = AutoConfig.for_model(config.from_config.model_type, **options)
        return AutoModelForCausalLM.from_config(
            shape, attn_implementation=attention, dtype=_dtype(config), **config.options
        )
    except LOADING as error:
        raise RequestError(f"model.from_config does not describe a model: {why_unloaded(error)}") from error


def _from_pretrained(config: Model, init: str, attention: str) -> nn.Module:
    quantization = None
    if config.quantization is not None:
        q = config.quantization
        if not torch.cuda.is_available():
            raise RequestError("model.quantization needs a GPU; remove it to train on a CPU")
        quantization = BitsAndBytesConfig(
            load_in_4bit=q.bits == 4,
            load_in_8bit=q.bits == 8,
            bnb_4bit_quant_type=q.type,
            bnb_4bit_use_double_quant=q.double,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        return _load_merged(
            init,
            config.revision,
            config.options,
            attn_implementation=attention,
            dtype=torch.bfloat16 if quantization else _dtype(config),
            quantization_config=quantization,
            trust_remote_code=config.trust_remote_code,
        )
    except LOADING as error:
        raise RequestError(f"model.init = {init!r} cannot be loaded: {why_unloaded(error, init)}") from error


def _load_merged(place: str, revision: str | None, options: dict[str, Any], **arguments: Any) -> nn.Module:
    """The model at `place`; where that is an adapter, its base with the adapter merged into it.

    `options`: the recipe's `model.options`. Those with which an adapter was trained count below them.
    """
    adapter = _adapter(place, revision)
    if adapter is None:
        with proved(place):
            return load_whole(place, revision=revision or "main", **arguments, **options)
    with unsharded_loading():  # DeepSpeed shards the weights when the trainer sets up its engine
        base = _load_merged(adapter.base, adapter.revision, adapter.options | options, **arguments)
        if getattr(base, "is_quantized", False):
            raise quantized_base_error(place, adapter.base)
        take_generation_config(base, place)
        log.info("%s is an adapter: merged into %s", place, adapter.base)
        with proved(place):
            return merge(attach(base, place, revision), place)


def load_whole(place: str | Path, **arguments: Any) -> nn.Module:
    """`from_pretrained` of a full model, of which no weight is drawn at random.

    Raises:
        RequestError: the files lack weights, or have them in other shapes than config.json says.
        Exception: one of `LOADING`.
    """
    model, found = AutoModelForCausalLM.from_pretrained(place, **(arguments | REPORTED))
    refuse_partial(place, found)
    return model


def _adapter(place: str, revision: str | None) -> Adapter | None:
    if Path(place).is_dir():
        if (adapter := adapter_in(place)) is not None:
            refuse_other_base(adapter, commit_of)
        return adapter
    file = find_adapter_config_file(place, revision=revision)  # on the hub
    return None if file is None else adapter_of(place, Path(file))


def commit_of(place: str, revision: str | None) -> str | None:
    """The commit that `revision` of the hub id `place`, a model or an adapter, is now; None of a folder.

    Raises:
        RequestError: there is no such model.
    """
    if Path(place).is_dir():
        return None
    try:
        file = find_adapter_config_file(place, revision=revision)
        file = file or cached_file(place, "config.json", revision=revision)
    except OSError as error:
        raise RequestError(f"{place}: {why_unloaded(error)}") from error
    return extract_commit_hash(file, None)


def _dtype(config: Model) -> torch.dtype:
    return torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)


def _resize(model: nn.Module, tokenizer: Any, config: Model, seed: int) -> None:
    rows, size = model.config.get_text_config().vocab_size, vocabulary_size(tokenizer)
    if size <= rows:
        return
    if config.lora is not None:
        # An adapter saved with a grown vocabulary does not load with from_pretrained: the base on disk has
        # fewer rows.
        raise RequestError(
            f"{size - rows} token(s) are new to the model, which LoRA cannot add: choose a "
            "data.template whose tokens the model has, remove model.add_tokens, or train without model.lora"
        )
    log.info("vocabulary: %d -> %d rows; new rows are initialised around the mean", rows, size)
    # seeded, so that new rows are the same on every rank, in a resumed run and in a separately loaded
    # reference
    torch.manual_seed(seed)
    model.resize_token_embeddings(size, mean_resizing=True)


def load_scored(path: str | Path, device: str) -> nn.Module:
    """A checkpoint for inference, on `device`: eval mode, whole weights in the saved type.

    An adapter is attached to its base, not merged, so that in half precision no update of a weight is rounded
    away; a base that is an adapter itself is merged in float32 for the same reason. Raises `RequestError` if
    it cannot be loaded.
    """
    try:
        with unsharded_loading():  # it is no part of the engine that may train in this process
            model = _for_inference(str(path))
    except LOADING as error:
        raise RequestError(f"{path} cannot be loaded: {why_unloaded(error, path)}") from error
    return model.eval().to(device)


def _for_inference(place: str) -> nn.Module:
    stored = {"dtype": "auto", "trust_remote_code": False}  # not None: transformers would ask at the terminal
    adapter = _adapter(place, None)
    if adapter is None:
        return _load_merged(place, None, {}, **stored)
    chained = _adapter(adapter.base, adapter.revision) is not None
    stored |= {"dtype": torch.float32} if chained else {}
    base = _load_merged(adapter.base, adapter.revision, adapter.options, **stored)
    take_generation_config(base, place)
    with proved(place):
        return attach(base, place, None)
