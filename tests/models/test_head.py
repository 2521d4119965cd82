"""The fused forward against the model's own: cross-entropy at N = 1, so loss and all gradients must agree.

Every family that changes its logits, at values where the change is large: capped at 2, scaled by 3 or by 1/3.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.errors import RequestError
from posttrain.models.head import attach_fused_head
from posttrain.models.logits import logit_view
from posttrain.models.self_check import SAME_LOGITS, TESTED
from tests.families import SIZES

V = 64
SHAPE = {**SIZES, "vocab_size": V, "head_dim": 8}
GPT = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4}
FAMILIES = {
    "llama": (SHAPE, {}),
    "mistral": (SHAPE, {}),
    "qwen2": (SHAPE, {}),
    "qwen3": (SHAPE, {}),
    "phi3": (SHAPE, {}),
    "olmo2": (SHAPE, {}),
    "gemma": (SHAPE, {}),
    "gemma2": ({**SHAPE, "final_logit_softcapping": 2.0}, {"softcap": 2.0}),
    "gemma3_text": ({**SHAPE, "final_logit_softcapping": 2.0}, {"softcap": 2.0}),
    "vaultgemma": ({**SHAPE, "final_logit_softcapping": 2.0}, {"softcap": 2.0}),
    "nanochat": ({**SHAPE, "final_logit_softcapping": 2.0}, {"softcap": 2.0}),
    "cohere": ({**SHAPE, "logit_scale": 3.0}, {"logit_scale": 3.0}),
    "cohere2": ({**SHAPE, "logit_scale": 3.0}, {"logit_scale": 3.0}),
    "granite": ({**SHAPE, "logits_scaling": 3.0}, {"logit_scale": 1 / 3}),
    "hyperclovax": ({**SHAPE, "logits_scaling": 3.0}, {"logit_scale": 3.0}),
    "falcon_h1": ({**SHAPE, **MAMBA, "lm_head_multiplier": 3.0}, {"logit_scale": 3.0}),
    "recurrent_gemma": ({**SHAPE, "lru_width": 32, "logits_soft_cap": 2.0}, {"softcap": 2.0}),
    "mpt": ({"vocab_size": V, "d_model": 32, "n_layers": 2, "n_heads": 4, "logit_scale": 3.0}, {}),
    "gpt2": (GPT, {}),
    "gptj": ({**GPT, "rotary_dim": 4}, {}),  # a bias on the head
    "phi": (SHAPE, {}),  # a bias on the head
    "opt": ({**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32}, {}),
}


def model_of(kind: str, seed: int = 0, **options) -> nn.Module:
    """A tiny model whose logits are far from flat, in training mode without dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **options)
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "dropout", "resid_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    head = model.get_output_embeddings()
    with torch.no_grad():
        nn.init.normal_(head.weight, std=0.7)
        if getattr(head, "bias", None) is not None:
            nn.init.normal_(head.bias)
    return model.train()


def batch() -> dict[str, torch.Tensor]:
    """Two rows of 12 tokens, a prompt of 4 that is not trained."""
    ids = torch.randint(3, V, (2, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "labels": labels}


FUSED = {"n": 1.0, "reduction": "token_mean", "chunk_rows": 5}


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest error relative to the norm of the parameter's gradient (to the mean norm if that is tiny)."""
    assert found.keys() == expected.keys()
    floor = sum(float(g.norm()) for g in expected.values()) / len(expected) * 1e-3
    return max(float((found[k] - g).norm()) / max(float(g.norm()), floor) for k, g in expected.items())


def compare(model: nn.Module, fused: nn.Module | None = None) -> None:
    """`model`'s own loss and gradients equal those of its fused forward (`fused`: a wrapper to call)."""
    data = batch()
    own = model(**data, use_cache=False)
    expected = gradients(model, own.loss)
    out = (fused or model)(**data, segment_ids=(data["labels"] >= 0).long(), fused=FUSED)
    assert out.loss.item() == pytest.approx(own.loss.item(), rel=1e-5)
    assert worst(gradients(model, out.loss), expected) <= 1e-5
    tokens = (fused or model)(**data, tokens={"backend": "reference"})
    trained = tokens.label_mask.sum()
    assert (-tokens.log_probs.sum() / trained).item() == pytest.approx(own.loss.item(), rel=1e-5)
    assert worst(gradients(model, -tokens.log_probs.sum() / trained), expected) <= 1e-5


@pytest.mark.parametrize("kind", FAMILIES)
def test_loss_and_gradients_are_the_model_s_own(kind):
    options, view = FAMILIES[kind]
    model = model_of(kind, **options)
    assert logit_view(model.config.get_text_config()) == view
    attach_fused_head(model)
    compare(model)


def test_what_is_called_tested_is_tested_here():
    assert set(SAME_LOGITS) <= set(FAMILIES)
    heads = {k: model_of(k, **FAMILIES[k][0]).get_output_embeddings() for k in ("gptj", "phi")}
    assert all(head.bias is not None for head in heads.values())


@pytest.mark.parametrize("kind", ["modernbert-decoder", "roberta", "inkling2_text"])
def test_logits_that_cannot_be_explained_are_refused(kind):
    """Two transform the hidden states before the head, one cuts off columns of its logits after it."""
    options = {**SHAPE, "is_decoder": True}
    if kind == "inkling2_text":
        options = {**SHAPE, "unpadded_vocab_size": 60}
    model = model_of(kind, **options)
    if kind == "inkling2_text":
        columns = model(input_ids=torch.tensor([[1, 2]])).logits.shape[-1]
        if columns == len(model.get_output_embeddings().weight):
            pytest.skip("from transformers 5.24 on it keeps all columns")
    for mixed in ("no", "bf16"):
        with pytest.raises(RequestError, match=f"{kind} changes its logits"):
            attach_fused_head(model, mixed)


@pytest.mark.parametrize("kind", FAMILIES)
def test_low_precision_is_not_mistaken_for_a_difference(kind):
    """bf16 logits of size 50 are wrong by up to 0.1: measured, and let pass, of bf16 weights and of fp32
    weights under autocast."""
    attach_fused_head(model_of(kind, **FAMILIES[kind][0]).bfloat16())
    attach_fused_head(model_of(kind, **FAMILIES[kind][0]), "bf16")


def test_a_field_nobody_knows_is_measured(monkeypatch):
    """The same Gemma 2, under a spelling of its cap that the table does not list."""
    import posttrain.models.logits

    monkeypatch.setattr(posttrain.models.logits, "SOFTCAPS", ())
    model = model_of("gemma2", **{**SHAPE, "final_logit_softcapping": 30.0})
    with torch.no_grad():  # as a fresh model has it: logits so small that the cap does nothing to them
        model.get_output_embeddings().weight.mul_(0.01)
    with pytest.raises(RequestError, match="gemma2 changes its logits"):
        attach_fused_head(model)
    assert model.training and not model.get_output_embeddings()._forward_pre_hooks


def test_sharded_weights_pass_by_family(monkeypatch):
    known, other = model_of("llama", **SHAPE), model_of("olmo2", **SHAPE)
    for model in (known, other):
        next(model.parameters()).ds_id = 0  # as under ZeRO-3
    attach_fused_head(known)
    monkeypatch.setitem(TESTED, "logits", (("llama",), TESTED["logits"][1]))
    with pytest.raises(RequestError, match="olmo2 cannot be checked while its weights are sharded"):
        attach_fused_head(other)


def test_generation_is_the_model_s_own():
    model = model_of("cohere", **{**SHAPE, "logit_scale": 3.0}).eval()
    ids = batch()["input_ids"]
    before = model.generate(ids, max_new_tokens=5, do_sample=False)
    attach_fused_head(model)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), before)


# ---- adapters on the head
# ------------------------------------------------------------------------------------------


def adapted(tie: bool = False, kind: str = "llama", **options):
    """(peft model, its base) with LoRA on the head, B not zero."""
    from peft import LoraConfig, get_peft_model

    base = model_of(kind, **{**FAMILIES[kind][0], "tie_word_embeddings": tie})
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "lm_head"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**(settings | options)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.3)
    return model.train(), model.get_base_model()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "phi"])
@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_lora_on_the_head(kind, tie):
    model, base = adapted(tie, kind)
    attach_fused_head(base)
    data = batch()
    own = model(**data, use_cache=False)
    trained = gradients(model, own.loss)
    assert any("lm_head.lora_A" in k for k in trained) and any("lm_head.lora_B" in k for k in trained)
    assert not any("base_layer" in k for k in trained)  # the head itself is frozen
    compare(model)


def test_lora_dropout_falls_on_what_enters_the_adapter():
    model, base = adapted(lora_dropout=0.5, target_modules=["lm_head"])
    attach_fused_head(base)
    data = batch()
    losses = []
    for extra in ({"use_cache": False}, {"segment_ids": (data["labels"] >= 0).long(), "fused": FUSED}):
        torch.manual_seed(3)
        losses.append(model(**data, **extra).loss.item())
    # The own forward drops entries of all 24 rows, the fused one of the 22 that predict something: not the
    # same draw, but the same law. Without dropout both are equal; with it, neither equals that.
    model.eval()
    still = model(**data, use_cache=False).loss.item()
    assert all(abs(loss - still) > 1e-3 for loss in losses)
    fused = model(**data, segment_ids=(data["labels"] >= 0).long(), fused=FUSED).loss.item()
    assert fused == pytest.approx(still, rel=1e-5)


def test_lora_that_is_merged_or_off():
    model, base = adapted()
    attach_fused_head(base)
    compare(model)
    with model.disable_adapter():
        off = model(**batch(), segment_ids=torch.ones(2, 12).long(), fused=FUSED).loss
        own = model(**batch(), use_cache=False).loss
    assert off.item() == pytest.approx(own.item(), rel=1e-5)
    on = model(**batch(), use_cache=False).loss.item()
    assert abs(on - own.item()) > 1e-2
    model.merge_adapter()
    merged = model(**batch(), segment_ids=torch.ones(2, 12).long(), fused=FUSED).loss
    assert merged.item() == pytest.approx(on, rel=1e-4)


def test_a_trained_copy_of_the_head():
    model, base = adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])
    attach_fused_head(base)
    compare(model)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"use_dora": True}, "DoraLinearVariant"),
        ({"lora_bias": True}, "lora_bias"),
        (
            {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [1]}},
            "TrainableTokensWrapper",
        ),
    ],
    ids=["dora", "bias", "tokens"],
)
def test_other_adapters_on_the_head_are_refused_by_name(options, expected):
    kind = "phi" if "lora_bias" in options else "llama"
    _, base = adapted(kind=kind, **options)
    with pytest.raises(RequestError, match=expected):
        attach_fused_head(base)


def test_two_adapters_at_once_are_refused():
    from peft import LoraConfig

    model, base = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["lm_head"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(RequestError, match="2 active adapters"):
        attach_fused_head(base)
