"""Sampled log-probabilities of every kind of cache equal those of one plain forward, or are refused.

Prompts of different lengths, several samples of each, sequences that end early and leave the batch.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import RequestError
from posttrain.generation.base import Sampling
from posttrain.generation.local import TransformersGenerator
from tests.families import EXPERTS, GPT2, LINEAR, LOCAL_EXPERTS, SHARED_EXPERT
from tests.families import SIZES as COMMON

V = 48
SIZES = {**COMMON, "vocab_size": V, "bos_token_id": None, "eos_token_id": None}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}
MOE = EXPERTS | LOCAL_EXPERTS
FAMILIES = {
    "llama": {},
    "gpt2": GPT2 | {"n_positions": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "gpt_oss": MOE | {"head_dim": 8, "sliding_window": 8},
    "cohere2": {"sliding_window": 8},
    "mixtral": MOE,
    "qwen3_moe": MOE | {"head_dim": 8},
    "phi3": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64, "head_dim": 8},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "jamba": MOE | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "granitemoehybrid": MAMBA | MOE | MIXED | {"shared_intermediate_size": 16},
    "qwen3_next": LINEAR | MOE | MIXED | SHARED_EXPERT,
    "qwen3_5_text": LINEAR | MIXED,
    "minimax": MOE | {"head_dim": 8, "layer_types": ["full_attention", "linear_attention"]},
}
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 14], [5], [9, 8, 7, 20, 21], [11, 12, 13], [7] * 14]
STOPS = [17, 18, 19, 23]
SAMPLING = Sampling(max_new_tokens=24, batch_size=12)


def model_of(kind: str, **options):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **(SIZES | options))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, 0.15)
    return model


def worst(model, digits, prompts=PROMPTS, sampling=SAMPLING) -> float:
    """The largest error of a log-probability; there are sequences of both finishes, and some leave early."""
    found = TransformersGenerator(model, digits, STOPS).generate(prompts, 3, sampling, seed=1)
    lengths = [len(completion.token_ids) for completion in found]
    assert min(lengths) <= 8 < max(lengths)
    errors = []
    for completion in found:
        prompt, ids = prompts[completion.prompt_index], torch.tensor(completion.token_ids)
        with torch.no_grad():
            whole = torch.tensor([prompt + completion.token_ids])
            logits = model(whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        errors.append(float((expected - torch.tensor(completion.log_probs)).abs().max()))
    return max(errors)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_kind_of_cache(kind, digits):
    assert worst(model_of(kind, **FAMILIES[kind]), digits) < 1e-4


def test_a_balancing_loss_in_the_config_does_not_disturb(digits):
    """Of a step of decoding it would be computed with the mask of the whole sequence, and fail."""
    assert worst(model_of("mixtral", **MOE, output_router_logits=True), digits) < 1e-4


def test_a_family_without_such_a_cache_is_refused(digits):
    model = model_of("recurrent_gemma", num_hidden_layers=3, lru_width=32, attention_window_size=16)
    with pytest.raises(RequestError, match="^RecurrentGemmaForCausalLM has no key-value cache"):
        TransformersGenerator(model, digits).generate(PROMPTS, 3, SAMPLING, 0)
    layers = {"layer_types": MIXED["layer_types"] * 2, "num_hidden_layers": 4}
    model = model_of("minimax", **FAMILIES["minimax"] | layers)
    with pytest.raises(RequestError, match="^MiniMaxForCausalLM: rows of its cache cannot be repeated"):
        TransformersGenerator(model, digits).generate(PROMPTS, 3, SAMPLING, 0)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 8.0, 12.0, 16.0],
}


def test_longrope_is_right_on_either_side_of_its_switch(digits):
    """And refused across it: a plain forward over a long sequence has other factors from its first token on.

    A prompt above the switch shares no batch with one below.
    """
    model = model_of("phi3", rope_parameters=dict(LONGROPE), original_max_position_embeddings=20)
    sides = [[3, 4, 5], [6, 7, 8, 9], [7] * 21, [5] * 30]
    assert worst(model, digits, sides, Sampling(max_new_tokens=16, batch_size=12)) < 1e-4
    with pytest.raises(RequestError, match=r"^prompt 1 has 4 tokens .* beyond 20 tokens .* within 20$"):
        TransformersGenerator(model, digits).generate(sides, 3, Sampling(max_new_tokens=17), 0)


def test_dynamic_scaling_ends_with_the_positions(digits):
    """Beyond `max_position_embeddings` its factors would grow with every token."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = model_of("llama", rope_parameters=rope, max_position_embeddings=20)
    assert worst(model, digits) < 1e-4


def test_an_end_of_several_tokens(digits):
    """Generation stops behind the sequence, not at its parts, and the text does not have it."""
    model = model_of("llama")
    free = TransformersGenerator(model, digits).generate(PROMPTS, 3, SAMPLING, 5)
    ending = free[4].token_ids[6:8]
    found = TransformersGenerator(model, digits, [], [ending]).generate(PROMPTS, 3, SAMPLING, 5)
    stopped = 0
    for before, now in zip(free, found, strict=True):
        ids = before.token_ids
        ends = [i + 2 for i in range(len(ids) - 1) if ids[i : i + 2] == ending]
        length = ends[0] if ends else len(ids)
        assert now.token_ids == ids[:length] and len(now.log_probs) == length
        kept = ids[: length - 2] if ends else ids
        padding = digits.pad_token_id
        if ends:
            stopped += 1
            assert now.finish == "stop" and now.text == digits.decode([i for i in kept if i != padding])
        assert now.finish == ("stop" if ends or ids[-1] == digits.eos_token_id else "length")
    assert 1 <= stopped < len(found)
