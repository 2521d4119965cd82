"""Small models whose next-token distributions are far from flat, with the builtin tokenizers."""

from __future__ import annotations

import pytest
import torch

from posttrain.data.tokenizers import load_tokenizer


def build_model(kind: str, vocabulary: int, positions: int = 64, seed: int = 0):
    """A random causal model of two layers; weights are scaled up so that tokens differ in probability."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
    }
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": positions}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **sizes, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def digits():
    return load_tokenizer("builtin:digits")


@pytest.fixture(scope="session")
def llama(digits):
    return build_model("llama", len(digits))
