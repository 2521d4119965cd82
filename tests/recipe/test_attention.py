"""Flash attention with weights that it does not take is refused before they are loaded."""

from __future__ import annotations

import pytest

from posttrain.recipe import load
from tests.recipe.minimal import fails

FLASH = "model.attention=flash_attention_2"
SAMPLED = """
rewards: [{name: math}]
rollout: {num_generations: 8, max_new_tokens: 8}
"""


@pytest.mark.parametrize("kind", ["flash_attention_2", "flash_attention_3"])
def test_it_computes_in_half_precision_only(started, kind):
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


def test_a_stage_that_samples_has_no_mixed_precision(started):
    text = started.read_text().replace("stage: sft", "stage: pass_rate")
    started.write_text(text.partition("train:")[0] + SAMPLED)
    assert "set model.dtype: bfloat16, or" in fails(started, FLASH)
    load(started, [FLASH, "model.dtype=bfloat16"])
