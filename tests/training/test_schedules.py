"""Learning rate, weight decay, clipping and types of weights: what the recipe says is what the optimizer
gets."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import SchedulerType, Trainer, get_scheduler

from posttrain import sft
from posttrain.base.files import read_jsonl
from posttrain.recipe import load_stage
from posttrain.recipe.optimizers import EXACT
from posttrain.recipe.schedule_rules import BY_EVALUATION
from posttrain.rundir.directory import RunDir
from posttrain.stages.train import run_training
from posttrain.training.arguments import trainer_arguments
from tests.tiny import tiny_model

STEPS, RATE = 6, 0.01


def trained(path: Path, *overrides: str, build=sft.build):
    """The run's lines of metrics and its trainer."""
    kept = []

    def keep(recipe, parts):
        kept.append(build(recipe, parts))
        return kept[-1]

    run = run_training(load_stage(path, list(overrides), "sft"), replace(sft.STAGE, build=keep))
    return list(read_jsonl(run.metrics)), kept[0]


# ---- the schedule ------------------------------------------------------------------------------------------


def share(kind: str, step: int, warmup: int, steps: int) -> float:
    """The learning rate of step `step` (from 0), relative to `train.learning_rate`."""
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    after = {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "constant_with_warmup": 1.0,
        "cosine_with_min_lr": 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2,
    }
    return after[kind]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "warmup", "count", "accumulation"),
    [
        ("linear", 0, 0, 1),
        ("linear", 2, 2, 4),
        ("cosine", 0.5, 3, 4),
        ("cosine", 0.2, 2, 1),  # 1.2 steps of 6: rounded up
        ("cosine", 0.2, 2, 4),
        ("constant_with_warmup", 3, 3, 4),
        ("cosine_with_min_lr", 1, 1, 1),
    ],
)
def test_the_rate_of_every_step(recipe, kind, warmup, count, accumulation):
    """A warm-up below 1 is a share of all steps; accumulation changes nothing."""
    lines, _ = trained(
        recipe,
        f"train.lr_scheduler_type={kind}",
        f"train.warmup_steps={warmup}",
        f"train.learning_rate={RATE}",
        f"train.max_steps={STEPS}",
        f"train.per_device_train_batch_size={8 // accumulation}",
        *(["train.extra={lr_scheduler_kwargs: {min_lr_rate: 0.1}}"] if kind == "cosine_with_min_lr" else []),
    )
    found = [line["learning_rate"] for line in lines if line["split"] == "train"]
    assert found == pytest.approx(
        [RATE * share(kind, step, count, STEPS) for step in range(STEPS)], rel=1e-12
    )


ARGUMENTS = {
    "cosine_with_restarts": "num_cycles: 2",
    "polynomial": "lr_end: 0.001, power: 2",
    "inverse_sqrt": "timescale: 2",
    "cosine_with_min_lr": "min_lr: 0.001",
    "cosine_warmup_with_min_lr": "min_lr_rate: 0.1, warmup_lr_rate: 0.05",
    "warmup_stable_decay": "num_decay_steps: 3, decay_type: 1-sqrt, min_lr_ratio: 0.1",
}


KINDS = sorted({s.value for s in SchedulerType} - set(BY_EVALUATION))


def schedule(kind: str) -> tuple[list[str], list[float]]:
    """Overrides with a warm-up of a share, 1.8 of 6 steps, and the rates of transformers."""
    warmup = 0.0 if kind == "constant" else 0.3
    given = f"{{{ARGUMENTS.get(kind, '')}}}"
    settings = [
        *(f"train.lr_scheduler_type={kind}", f"train.warmup_steps={warmup}", f"train.learning_rate={RATE}"),
        *(f"train.max_steps={STEPS}", "checkpoints={save_steps: 3, keep_last: 9}"),
        f"train.extra.lr_scheduler_kwargs={given if kind in ARGUMENTS else 'null'}",
    ]
    own = get_scheduler(kind, parameter(), 2 if warmup else 0, STEPS, yaml.safe_load(given))
    return settings, rates(own, STEPS)


def parameter() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)


def rates(scheduler, count: int) -> list[float]:
    """Those of the next `count` steps."""
    found = []
    for _ in range(count):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_has_the_rates_of_transformers(recipe, kind):
    """The scheduler of the trainer, replaced in the middle by one with its saved state."""
    settings, wanted = schedule(kind)
    asked = load_stage(recipe, settings, "sft")
    given = trainer_arguments(sft.STAGE.config_class, asked.train, RunDir(recipe.parent / "run"), STEPS, {})
    trainer = Trainer(torch.nn.Linear(1, 1), given)
    first = trainer.create_scheduler(STEPS, parameter())
    found = rates(first, 3)
    optimizer = parameter()
    optimizer.load_state_dict(first.optimizer.state_dict())
    trainer.lr_scheduler = None
    again = trainer.create_scheduler(STEPS, optimizer)
    assert again is not first
    again.load_state_dict(first.state_dict())
    assert found + rates(again, 3) == wanted
    assert kind.startswith("constant") or len(set(wanted)) > 2


@pytest.mark.slow
def test_a_run_that_is_resumed_has_them_too(recipe):
    settings, wanted = schedule("warmup_stable_decay")
    trained(recipe, *settings)
    shutil.rmtree(recipe.parent / "case" / "checkpoints" / "step-000006")
    lines, _ = trained(recipe, *settings)
    found = {line["step"]: line["learning_rate"] for line in lines if line["split"] == "train"}
    assert [found[step + 1] for step in range(STEPS)] == wanted


# ---- what the optimizer gets -------------------------------------------------------------------------------


@pytest.mark.slow
def test_weight_decay_spares_biases_and_norms(recipe, tmp_path):
    """GPT-2 has both; embeddings and matrices decay. One step of AdamW with gradients of 0: p (1 - lr wd)."""
    folder = tiny_model(tmp_path / "gpt2", kind="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=512)

    def build(recipe, parts):
        trainer = sft.build(recipe, parts)
        kept.update({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
        trainer.compute_loss = lambda model, inputs, **_: sum(0.0 * p.sum() for p in model.parameters())
        return trainer

    kept: dict[str, torch.Tensor] = {}
    _, trainer = trained(
        recipe,
        f"model.init={folder}",
        "train={optim: adamw_torch, weight_decay: 0.5, learning_rate: 0.1, max_steps: 1}",
        "train.global_batch_size=8",
        build=build,
    )
    factor = {n: 0.95 if p.dim() > 1 else 1.0 for n, p in kept.items()}
    assert {n for n, f in factor.items() if f == 1} == {n for n in kept if "bias" in n or "ln_" in n}
    assert "transformer.wte.weight" in kept and factor["transformer.wte.weight"] == 0.95
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight.detach(), kept[name] * factor[name], msg=name)


@pytest.mark.slow
def test_clipping_and_its_absence(recipe):
    """SGD: the step is lr x gradient, scaled to the norm where it is above it; 0 clips nothing."""

    def step(norm: float) -> tuple[float, float]:
        def build(recipe, parts):
            trainer = sft.build(recipe, parts)
            kept.extend(p.detach().clone() for p in trainer.model.parameters())
            return trainer

        kept: list[torch.Tensor] = []
        lines, trainer = trained(
            recipe,
            f"name=norm{norm}",
            f"train.max_grad_norm={norm}",
            "train.max_steps=1",
            f"train.learning_rate={RATE}",
            build=build,
        )
        moved = sum(
            float((p.detach() - q).double().square().sum())
            for p, q in zip(trainer.model.parameters(), kept, strict=True)
        )
        return math.sqrt(moved) / RATE, lines[0]["grad_norm"]

    free, norm = step(0)
    assert free == pytest.approx(norm, rel=1e-4) and norm > 0.1
    assert step(1e6)[0] == pytest.approx(norm, rel=1e-4)
    clipped, logged = step(0.05)
    assert clipped == pytest.approx(0.05, rel=1e-3) and logged == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    "optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
)
def test_settings_of_the_optimizers_that_torch_has(tmp_path, optim):
    from transformers import Trainer, TrainingArguments

    given = TrainingArguments(str(tmp_path), optim=optim, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-5)
    _, options = Trainer.get_optimizer_cls_and_kwargs(given)
    betas = {"betas": (0.8, 0.9), "eps": 1e-5} if "betas" in EXACT[optim].reads else {}
    assert {k: v for k, v in options.items() if k in ("betas", "eps")} == betas
    assert "weight_decay" not in options, "it is set by group of parameters"


# ---- types of weights --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_types_of_weights(recipe, dtype, bf16):
    """Adapters are fp32 whatever the base is (peft's autocast_adapter_dtype); copied modules as the base."""
    base = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    settings = [f"model.dtype={dtype}", f"train.bf16={bf16}", "train.max_steps=1"]
    adapter = "r: 4, target_modules: [q_proj]"
    whole = ", modules_to_save: [lm_head]" if dtype != "float16" else ""
    _, trainer = trained(recipe, "name=lora", *settings, f"model.lora={{{adapter}{whole}}}")
    for name, weight in trainer.model.named_parameters():
        assert weight.dtype == (torch.float32 if "lora_" in name else base), name
    if dtype != "float16":
        _, trainer = trained(recipe, "name=full", *settings)
        assert {p.dtype for p in trainer.model.parameters()} == {base}
