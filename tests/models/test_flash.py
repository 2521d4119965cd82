"""Flash attention, which takes half precision only: checks of a model with fp32 weights, and what `auto` is.

Its functions are those of tests/flash.py; whole stages are in tests/training/test_flash.py.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from posttrain.errors import RequestError
from posttrain.models import load
from posttrain.models.documents import refuse_leaking_documents
from posttrain.models.dropout import turn_off_dropout
from posttrain.models.head import attach_fused_head
from posttrain.models.load import attention_implementations, load_model, load_scored
from posttrain.recipe.schema import Model
from tests.models.test_documents import model_of

CHECKS = (attach_fused_head, turn_off_dropout, refuse_leaking_documents)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_runs_in_the_precision_of_the_run(check, flash):
    for kind in ("llama", "gemma2", "cohere"):
        check(model_of(kind, flash).train(), "bf16")
        model = model_of(kind, flash, dtype=torch.bfloat16).train()
        check(model)
        assert model.training and model.config._attn_implementation == flash


@pytest.mark.parametrize("check", CHECKS)
def test_a_forward_that_fails_is_one_sentence(check, flash):
    model = model_of("llama", flash).train()
    said = "a forward of llama fails with model.attention = flash_attention_2, weights in float32 and mixed "
    said += "precision no: FlashAttention only support fp16 and bf16 data type; try model.attention: sdpa"
    with pytest.raises(RequestError, match=said):
        check(model)
    assert model.training and not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("check", CHECKS)
def test_a_model_that_is_still_on_the_cpu_is_checked_with_eager_attention(check, flash, monkeypatch):
    """As under FSDP and ZeRO, where the engine moves it to the GPU."""
    monkeypatch.setattr("posttrain.models.self_check.CPU_ATTENTION", (None, "eager", "sdpa"))
    model = model_of("llama", flash)
    check(model)
    assert model.config._attn_implementation == flash


# ---- what `auto` is ----------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(capability, *installed)`: a machine with such a GPU and those packages."""

    def make(capability: int, *installed: str) -> None:
        cuda = SimpleNamespace(is_available=lambda: True, get_device_capability=lambda: (capability, 0))
        monkeypatch.setattr(load, "torch", SimpleNamespace(**vars(torch) | {"cuda": cuda}))
        found = [(name, lambda name=name: name in installed, least) for name, _, least in load.FLASH]
        monkeypatch.setattr(load, "FLASH", tuple(found))

    return make


def test_auto_is_what_is_installed_and_fits(gpu, caplog):
    two, three, four = (f"flash_attention_{i}" for i in (2, 3, 4))
    cases = [
        (9, [two, three, four], True, two, "its package is installed"),
        (9, [four, three], True, three, "its package is installed"),
        (10, [four], True, four, "its package is installed"),
        (8, [four], True, "sdpa", "no flash attention for this GPU is installed"),
        (7, [two], True, "sdpa", "no flash attention for this GPU is installed"),
        (9, [], True, "sdpa", "no flash attention for this GPU is installed"),
        (9, [two], False, "sdpa", "flash attention takes bfloat16 and float16 only"),
    ]
    for capability, installed, half, picked, reason in cases:
        gpu(capability, *installed)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert attention_implementations("auto", half)[0] == picked
        assert f"attention: {picked} ({reason}" in caplog.text
    assert attention_implementations(four, True) == [four]


def test_auto_follows_the_precision_of_the_run(tiny, flash, gpu, digits):
    """fp32 weights are sampled from, and scored, without mixed precision."""
    gpu(8, flash)
    auto, half = Model(init=str(tiny)), Model(init=str(tiny), dtype="bfloat16")
    names = [
        load_model(model, str(tiny), digits, 0, mixed).config._attn_implementation
        for model, mixed in ((auto, "no"), (auto, "bf16"), (half, "no"))
    ]
    assert names == ["sdpa", flash, flash]
    assert load_scored(tiny, "cpu").config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "picked"),
    [("bloom", "eager"), ("llama", "flash_attention_2"), ("gpt_oss", "eager"), ("gemma4_text", "sdpa")],
)
def test_auto_falls_back_to_what_the_model_supports(kind, picked, gpu, flash, tmp_path, digits, monkeypatch):
    """No flash attention and no SDPA in Bloom; a flash attention of its own in gpt-oss, from the hub; heads
    of 512 in Gemma 4."""
    gpu(8, flash)
    model_of(kind, "eager").save_pretrained(tmp_path)
    model = load_model(Model(init=str(tmp_path), dtype="bfloat16"), str(tmp_path), digits, 0)
    assert model.config._attn_implementation == picked
