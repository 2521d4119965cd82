"""Mixtures of experts in every stage: without the load-balancing loss, and with it where a stage has one.

Expected is what the model's own code computes of the same micro-batches, to 1e-5.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain import sft
from posttrain.errors import RequestError
from posttrain.recipe import load_stage
from tests.families import EXPERTS, LOCAL_EXPERTS
from tests.tiny import RECIPE, tiny_model, write_rows
from tests.training import preferences, rollouts
from tests.training.preferences import far, rows, weights

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "olmoe")
WEIGHT = 0.1
ON = ["model.options={output_router_logits: true}"]
STEPS = ["train.max_steps=2", "train.logging_steps=1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("experts")
    return {kind: experts(folder / kind, kind) for kind in FAMILIES}


def experts(folder: Path, kind: str) -> Path:
    return tiny_model(folder, kind=kind, router_aux_loss_coef=WEIGHT, head_dim=8, **EXPERTS | LOCAL_EXPERTS)


def recipe_of(stage: str, folder: Path, model: Path) -> Path:
    """The recipe of a stage, 8 rows a step; its runs go below `folder`."""
    folder.mkdir()
    if stage != "sft":
        return (preferences if stage == "dpo" else rollouts).write_recipe(folder, model)
    path = folder / "case.yaml"
    path.write_text(RECIPE.format(out=folder, model=model, rows=write_rows(folder / "rows.jsonl")))
    return path


def train(stage: str, path: Path, *overrides: str) -> Path:
    if stage == "sft":
        return sft.train(load_stage(str(path), list(overrides), "sft")).path
    return (preferences if stage == "dpo" else rollouts).train(path, *overrides).path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage"), [*((kind, "sft") for kind in FAMILIES), ("mixtral", "dpo"), ("qwen3_moe", "rlvr")]
)
def test_every_stage_trains_without_it(models, tmp_path, kind, stage):
    """TRL would add the coefficient of the config times a loss that was not computed."""
    path = recipe_of(stage, tmp_path / stage, models[kind])
    run = train(stage, path, *STEPS, "train.learning_rate=1e-3")
    assert len(rows(run)) == 2 and all("aux_loss" not in row for row in rows(run))


@pytest.mark.slow
@pytest.mark.parametrize("micro", [8, 4])
@pytest.mark.parametrize("kind", FAMILIES)
def test_sft_equals_the_model_s_own_loss(models, tmp_path, monkeypatch, kind, micro):
    """Cross-entropy over all trained tokens of the step, and the mean of its micro-batches' balancing
    losses."""
    seen, plain = [], sft.SftTrainer.compute_loss

    def compute_loss(self, model, inputs, *more, **named):
        seen.append({k: inputs[k] for k in sft.MODEL_KEYS[:-1] if k in inputs})
        return plain(self, model, inputs, *more, **named)

    monkeypatch.setattr(sft.SftTrainer, "compute_loss", compute_loss)
    size = f"train.per_device_train_batch_size={micro}"
    path = recipe_of("sft", tmp_path / "sft", models[kind])
    first, *_ = rows(train("sft", path, *ON, *STEPS, size, "loss.name=cross_entropy"))
    model = AutoModelForCausalLM.from_pretrained(models[kind], output_router_logits=True).eval()
    total, count, balance = 0.0, 0, []
    for batch in seen[: 8 // micro]:
        with torch.no_grad():
            out = model(**batch)
        tokens = int((batch["labels"][:, 1:] >= 0).sum())
        total += float(out.loss - WEIGHT * out.aux_loss) * tokens
        count += tokens
        balance.append(float(out.aux_loss))
    mean = sum(balance) / len(balance)
    assert first["aux_loss"] == pytest.approx(mean, rel=1e-5)
    assert first["loss"] == pytest.approx(total / count + WEIGHT * mean, rel=1e-5)
    if micro == 8:
        assert first["loss"] == pytest.approx(float(out.loss), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_rlvr_adds_it_to_the_loss_of_the_policy(models, tmp_path, kind):
    path = recipe_of("rlvr", tmp_path / "rlvr", models[kind])
    micro = [*STEPS, "train.per_device_train_batch_size=4"]
    without = rows(train("rlvr", path, *micro, "name=without"))[0]
    found = rows(train("rlvr", path, *micro, *ON))[0]
    assert found["reward"] == without["reward"] and found["aux_loss"] > 0.5
    assert found["loss"] == pytest.approx(without["loss"] + WEIGHT * found["aux_loss"], rel=1e-5)


def test_dpo_refuses_it(models, tmp_path):
    path = recipe_of("dpo", tmp_path / "dpo", models["mixtral"])
    with pytest.raises(
        RequestError, match=r"load-balancing loss \(output_router_logits\), which a dpo stage"
    ):
        train("dpo", path, *ON)
    assert not (tmp_path / "dpo" / "case").exists()


CASES = (
    ("sft", "sft", ON),
    ("rlvr", "rlvr", ON),
    ("sft-lora", "sft", [*ON, "model.lora={r: 4, target_modules: [q_proj, lm_head]}"]),
    ("sft-off", "sft", []),
    ("rlvr-off", "rlvr", []),
    ("dpo-off", "dpo", []),
)
SPLIT = [*STEPS, "train.per_device_train_batch_size=4", "train.learning_rate=0.05"]
"""In one process, two are accumulated."""


@pytest.mark.slow
def test_two_processes_equal_one(models, tmp_path, launch):
    """Under DDP; the first two under FSDP2 are in test_fsdp2.py."""
    wholes, asked = {}, []
    for name, stage, more in CASES:
        path = recipe_of(stage, tmp_path / name, models["qwen3_moe"])
        overrides = [*SPLIT, *more]
        wholes[name] = train(stage, path, *overrides)
        asked.append(
            {"name": name, "stage": stage, "recipe": str(path), "overrides": [*overrides, "name=ranks"]}
        )
    found = launch(asked, "cpu2.yaml")
    for name, whole in wholes.items():
        assert found[name]["world_size"] == 2
        equal(found[name]["run"], whole, on=not name.endswith("off"))


def equal(run: str, whole: Path, on: bool) -> None:
    """The same losses, weights and metrics."""
    for ours, theirs in zip(rows(run), rows(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-6)
        assert ours.get("aux_loss", 0) == pytest.approx(theirs.get("aux_loss", 0), rel=1e-5)
        assert ("aux_loss" in ours) == on
    assert far(weights(run, 2), weights(whole, 2)) <= 1e-5
