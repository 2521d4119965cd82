"""The section `model`: where weights and tokenizer come from, how they are loaded, adapters, quantisation.

Plain dataclasses without behaviour, as in schema.py, which gives them to the other modules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class FromConfig:
    """A model with random weights, described by a transformers config."""

    model_type: str
    """transformers' `model_type`: llama, qwen2, gpt2, ..."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of that config class (hidden_size, num_hidden_layers, ...). The tokenizer gives `vocab_size`."""


@dataclass
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through peft."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Module names (also `lm_head`), or `all-linear`: all linear layers but the head (arXiv 2305.14314)."""
    modules_to_save: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Other fields of `peft.LoraConfig` (use_dora, ...); training/README.md lists them."""


@dataclass
class Quantization:
    """Frozen base weights in 4 or 8 bits (QLoRA); needs the `qlora` extra, a GPU and `lora`."""

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True


@dataclass
class Model:
    """Where the weights and the tokenizer come from, and how they are loaded."""

    init: str | None = None
    """Hub id, local path, `runs/<name>` (last checkpoint) or `runs/<name>@best:<task>/<metric>`."""
    revision: str | None = None
    from_config: FromConfig | None = None
    """Instead of `init`: train from scratch."""
    tokenizer: str | None = None
    """Hub id, path, `builtin:digits` or `builtin:bytes`. Default: the tokenizer of `init`."""
    add_tokens: list[str] = field(default_factory=list)
    """Special tokens to add. The embedding grows; new rows are drawn around the mean of the old ones."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in memory. `auto`: float32, the master weights that mixed precision needs."""
    attention: str = "auto"
    """sdpa, eager, flex_attention, flash_attention_2, flash_attention_3, flash_attention_4, or a kernel of
    the hub (kernels-community/...). `auto`: flash attention where it is installed, the GPU has it and the
    run computes in half precision, else SDPA; the choice is logged. models/README.md says how to get it."""
    trust_remote_code: bool = False
    lora: Lora | None = None
    quantization: Quantization | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Other arguments of `from_pretrained`."""
