"""Stages with flash attention on fp32 master weights, which recipes have by default: training, sampling,
scoring.

Its functions are those of tests/flash.py.
"""

from __future__ import annotations

import pytest

from posttrain.models.load import load_scored
from posttrain.recipe import load_stage
from tests.training import preferences, rollouts


def on(flash: str) -> list[str]:
    return [f"model.attention={flash}", "train.bf16=true", "train.max_steps=2"]


@pytest.mark.slow
def test_sft(recipe, flash):
    """Padded and padding-free, and its checkpoint scored: the same loss up to bf16."""
    from posttrain.sft import train
    from posttrain.stages.launch import scorer_for

    def loss(name: str, *overrides: str) -> float:
        asked = [f"name={name}", "train.bf16=true", "train.max_steps=2", *overrides]
        return preferences.rows(train(load_stage(recipe, asked, "sft")))[-1]["loss"]

    wanted = loss("sdpa", "model.attention=sdpa")
    assert loss("flash", *on(flash)) == pytest.approx(wanted, rel=0.01)
    assert loss("free", *on(flash), "data.padding_free=true") == pytest.approx(wanted, rel=0.01)
    asked = [*on(flash), "name=scored", "evaluate.tasks=[{name: arithmetic, options: {test_size: 4}}]"]
    run = train(load_stage(recipe, asked, "sft"), scorer_for).path
    assert (run / "scores.jsonl").exists() and not (run / "unscored.jsonl").exists()
    assert load_scored(run / "checkpoints" / "step-000002", "cpu").config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["precomputed", "live"])
def test_dpo(tmp_path, tiny, flash, reference):
    path = preferences.write_recipe(tmp_path, tiny)
    first = preferences.rows(preferences.train(path, *on(flash), f"preference={{reference: {reference}}}"))[0]
    assert first["loss"] == pytest.approx(0.6931, abs=2e-3)


@pytest.mark.slow
def test_rlvr(tmp_path, tiny, flash):
    run = rollouts.train(rollouts.write_recipe(tmp_path, tiny), *on(flash), "policy={beta: 0.1}")
    assert len(rollouts.rollouts(run)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", ["target_modules: [q_proj, embed_tokens]", "modules_to_save: [embed_tokens]"]
)
def test_adapters_without_padding(recipe, flash, more):
    """The check of documents reads the embedding, which peft wraps."""
    from posttrain.sft import train

    asked = [*on(flash), f"model.lora={{r: 4, {more}}}", "data.padding_free=true"]
    run = train(load_stage(recipe, [*asked, "train.activation_checkpointing=true"], "sft"))
    assert len(preferences.rows(run)) == 2
