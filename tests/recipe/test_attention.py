"""Names of `model.attention`, and flash attention with weights that it does not take: refused before the
weights are loaded."""

from __future__ import annotations

import sys

import pytest

from posttrain.recipe import load
from tests.recipe.minimal import fails

FLASH = "model.attention=flash_attention_2"
HUB = "kernels-community/flash-attn2"
SAMPLED = """
rewards: [{name: math}]
rollout: {num_generations: 8, max_new_tokens: 8}
"""


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """The package `kernels` of PyPI, in place of the folder of that name in this project."""
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "kernels", raising=False)  # the folder, if something has imported it


def test_names(started):
    said = fails(started, "model.attention=flash_attention_5")
    assert "model.attention = 'flash_attention_5' (did you mean 'flash_attention_" in said
    assert "model.attention = 'fast'" in fails(started, "model.attention=fast")
    for name in ("auto", "eager", "sdpa", "flex_attention", "flash_attention_4"):
        load(started, [f"model.attention={name}", "train.bf16=true"])


@pytest.mark.parametrize("kind", ["flash_attention_2", "flash_attention_3", "flash_attention_4", HUB])
def test_it_computes_in_half_precision_only(started, kind, kernels):
    flash = f"model.attention={kind}"
    for dtype in ("auto", "float32"):
        sentence = f"model.attention = {kind} takes bfloat16 and float16 only, and model.dtype = {dtype}"
        said = fails(started, flash, f"model.dtype={dtype}")
        assert sentence in said and "set train.bf16: true, or model.attention: sdpa" in said
    load(started, [flash, "train.bf16=true"])
    load(started, [flash, "train.fp16=true"])
    load(started, [flash, "model.dtype=bfloat16"])
    load(started, [flash, "model.lora={r: 4}", "model.quantization={}"])
    load(started, [])


@pytest.mark.parametrize("stage", ["pass_rate", "pairs"])
def test_a_stage_that_samples_has_no_mixed_precision(started, stage):
    text = started.read_text().replace("stage: sft", f"stage: {stage}")
    started.write_text(text.partition("train:")[0] + SAMPLED)
    assert "set model.dtype: bfloat16, or" in fails(started, FLASH)
    load(started, [FLASH, "model.dtype=bfloat16"])


def test_kernels_of_the_hub_need_a_package_whose_name_a_folder_has(started, root, monkeypatch):
    asked = [f"model.attention={HUB}", "train.bf16=true"]
    monkeypatch.syspath_prepend(root)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    said = fails(started, *asked)
    assert f"model.attention = {HUB} needs the package `kernels`, which is not installed" in said
    assert f"{root}/kernels only has its name" in said


def test_kernels_of_the_hub_with_their_package(started, kernels):
    load(started, [f"model.attention={HUB}", "train.bf16=true"])
