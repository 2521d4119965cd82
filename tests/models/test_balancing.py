"""The load-balancing loss of mixtures of experts: the fused forward has that of the model's own code.

Loss and all gradients, routers included, with padding and with several examples in a row.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import RequestError
from posttrain.models.head import attach_fused_head, balancing_coefficient
from tests.families import EXPERTS, LOCAL_EXPERTS, SHARED_EXPERT
from tests.models.test_head import FUSED, SHAPE, batch, gradients, model_of, worst

BALANCED = EXPERTS | LOCAL_EXPERTS | {"output_router_logits": True, "router_aux_loss_coef": 0.5}
FAMILIES = {
    "mixtral": {},
    "qwen2_moe": SHARED_EXPERT,
    "qwen3_moe": {},
    "gpt_oss": {},
    "granitemoe": {},
    "olmoe": {},
    "phimoe": {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "jetmoe": {"aux_loss_coef": 0.5, "kv_channels": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
}


def padded() -> dict[str, torch.Tensor]:
    """The second row is shorter: its padding has no share in the statistic."""
    data = batch()
    mask = torch.ones_like(data["labels"])
    mask[1, 7:] = 0
    return data | {"attention_mask": mask, "labels": data["labels"].masked_fill(mask == 0, -100)}


def packed() -> dict[str, torch.Tensor]:
    """Two examples in one row, as without padding."""
    ids = batch()["input_ids"].reshape(1, -1)
    positions = torch.arange(12).repeat(2)[None]
    return {"input_ids": ids, "labels": ids.masked_fill(positions < 4, -100), "position_ids": positions}


@pytest.mark.parametrize("data", [padded, packed])
@pytest.mark.parametrize("kind", FAMILIES)
def test_it_is_that_of_the_models_own_code(kind, data):
    model = model_of(kind, **SHAPE | BALANCED | FAMILIES[kind])
    rows = data()
    own = model(**rows, use_cache=False)
    expected = gradients(model, own.loss)
    attach_fused_head(model)
    coefficient = balancing_coefficient(model)
    out = model(**rows, segment_ids=(rows["labels"] >= 0).long(), fused=FUSED)
    assert coefficient == 0.5 and out.aux_loss.item() == pytest.approx(own.aux_loss.item(), rel=1e-6)
    loss = out.loss + coefficient * out.aux_loss
    assert loss.item() == pytest.approx(own.loss.item(), rel=1e-5)
    assert worst(gradients(model, loss), expected) <= 1e-5
    assert model(**rows, tokens={}).aux_loss.item() == pytest.approx(own.aux_loss.item(), rel=1e-6)


def test_with_recomputed_activations():
    model = model_of("qwen3_moe", **SHAPE | BALANCED)
    attach_fused_head(model)
    rows = padded() | {"segment_ids": (padded()["labels"] >= 0).long()}

    def found() -> dict[str, torch.Tensor]:
        out = model(**rows, fused=FUSED)
        return gradients(model, out.loss + 0.5 * out.aux_loss)

    expected = found()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert worst(found(), expected) <= 1e-6


@pytest.mark.parametrize("off", [{"output_router_logits": False}, {"router_aux_loss_coef": 0.0}])
def test_it_is_left_out_where_the_config_does_not_ask(off):
    model = model_of("mixtral", **SHAPE | BALANCED | off)
    attach_fused_head(model)
    assert balancing_coefficient(model) == 0 and model(**padded(), tokens={}).aux_loss is None


def test_a_model_that_returns_none_is_refused():
    model = model_of("llama", **SHAPE, output_router_logits=True)
    model.router_aux_loss_coef = 0.1
    with pytest.raises(RequestError, match="llama computes no load-balancing loss in transformers; set "):
        attach_fused_head(model)


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe"])
def test_a_family_without_code_for_it_is_refused(kind):
    """Their configs take the option, and no class of theirs reads it."""
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 1, "topk_group": 1, "n_routed_experts": 4}
    latent |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1}
    shape = SHAPE | BALANCED | latent | {"num_key_value_heads": 4}
    with pytest.raises(RequestError, match=f"{kind} computes no load-balancing loss in transformers; set "):
        balancing_coefficient(model_of(kind, **shape))
