"""Dropout turned off in training mode: the forward is that of eval mode, wherever a model keeps
it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import RequestError
from posttrain.models.dropout import turn_off_dropout

SHAPES = {
    # nn.Dropout; a number that attention reads; numbers and skipped layers; noise on the router's input
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "attn_pdrop": 0.2,
        "embd_pdrop": 0.2,
        "resid_pdrop": 0.2,
    },
    "llama": {"attention_dropout": 0.4},
    "opt": {
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "dropout": 0.2,
        "attention_dropout": 0.2,
        "layerdrop": 0.5,
    },
    "mixtral": {"router_jitter_noise": 0.5, "num_local_experts": 4, "attention_dropout": 0.2},
}


def model_of(kind: str, **options):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    if kind == "gpt2":
        sizes = {"vocab_size": 64}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | options))).train()


def logits(model) -> torch.Tensor:
    return model(input_ids=torch.arange(1, 33)[None], use_cache=False).logits


@pytest.mark.parametrize("mixed", ["no", "bf16"])
@pytest.mark.parametrize("kind", SHAPES)
def test_training_mode_becomes_eval_mode(kind, mixed):
    model = model_of(kind, **SHAPES[kind])
    with torch.no_grad():
        plain = logits(model.eval())
        assert not torch.allclose(logits(model.train()), plain), "the case has no dropout"
        state = torch.random.get_rng_state()
        turn_off_dropout(model, mixed)
        assert torch.equal(torch.random.get_rng_state(), state), "later random numbers do not change"
        assert model.training
        assert torch.equal(logits(model), plain)
    kept = {k: v for k, v in SHAPES[kind].items() if k in model.config.to_dict()}
    assert kept and all(getattr(model.config, k) == v for k, v in kept.items()), "what is saved stays"


@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_dropout_that_is_read_from_the_config_is_refused(mixed):
    model = model_of("persimmon", attention_dropout=0.5, hidden_dropout=0.0)
    with pytest.raises(RequestError, match="persimmon has dropout.*model.options.attention_dropout=0"):
        turn_off_dropout(model, mixed)
    assert model.training
    turn_off_dropout(model_of("persimmon", attention_dropout=0.0, hidden_dropout=0.0), mixed)
