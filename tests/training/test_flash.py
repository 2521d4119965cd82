"""Stages with flash attention on fp32 master weights, which recipes have by default: training, sampling,
scoring.

Its functions are those of tests/flash.py.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.data.tokenizers import load_tokenizer
from posttrain.generation.base import Sampling
from posttrain.generation.local import TransformersGenerator
from posttrain.models.load import load_model, load_scored
from posttrain.recipe import load_stage
from posttrain.recipe.schema import Model
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


@pytest.mark.parametrize(
    "asked", [{"attention": "flash_attention_2", "dtype": "bfloat16"}, {"attention": "auto"}]
)
def test_a_stage_that_samples(tiny, flash, asked, monkeypatch):
    """Prompts of two lengths; what was sampled has the log-probabilities of a forward without a cache."""
    monkeypatch.setattr("posttrain.models.load.FLASH", ((flash, lambda: True, 8),))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    with monkeypatch.context() as gpu:
        gpu.setattr("torch.cuda.is_available", lambda: True)
        model = load_model(Model(init=str(tiny), **asked), str(tiny), load_tokenizer(str(tiny)), 0).eval()
    assert model.config._attn_implementation == ("sdpa" if asked["attention"] == "auto" else flash)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
    generator = TransformersGenerator(model, load_tokenizer(str(tiny)))
    for made in generator.generate(prompts, 2, Sampling(max_new_tokens=6, batch_size=4), seed=0):
        prompt = prompts[made.prompt_index]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + made.token_ids])).logits[0].float()
        log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        wanted = log_p.gather(1, torch.tensor(made.token_ids)[:, None])[:, 0]
        assert made.log_probs == pytest.approx(wanted.tolist(), abs=0.02)
