"""Optimizers: a resumed run ends with the weights of one that was not killed; schedule-free ones are saved
and measured at their average; what shards weights is refused where the optimizer needs them whole."""

from __future__ import annotations

import shutil
import sys
import types
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from transformers import trainer_optimizer

from posttrain import sft
from posttrain.base.files import read_jsonl
from posttrain.errors import RequestError
from posttrain.recipe import load_stage, optimizers
from posttrain.recipe.optimizers import EXACT, LIMITED, USABLE
from posttrain.recipe.schema import Train
from posttrain.rundir.directory import RunDir
from posttrain.stages.train import run_training
from posttrain.training.optimizers import OBJECTS, is_stateless, refuse_optimizer
from tests.tiny import tiny_model
from tests.training.preferences import far, weights

EXTRA = {
    "sgd": "optim_args: 'momentum=0.9,nesterov=true'",
    "rmsprop": "optim_args: 'momentum=0.5,centered=true'",
    "adamw_torch_8bit": "optim_args: bf16_stochastic_round=false",
    "schedule_free_sgd": "optim_args: r=1",
} | dict.fromkeys(
    ("galore_adamw", "galore_adafactor", "apollo_adamw"),
    "optim_target_modules: [q_proj, mlp], optim_args: 'rank=4,update_proj_gap=2'",
)


def missing(optim: str) -> str:
    """A package that the optimizer needs and that is not installed."""
    for package in EXACT[optim].packages:
        try:
            version(Requirement(package).name)
        except PackageNotFoundError:
            return package
    return ""


def trained(path: Path, *overrides: str, build=sft.build) -> RunDir:
    return run_training(load_stage(path, list(overrides), "sft"), replace(sft.STAGE, build=build))


def resumed(path: Path, *overrides: str) -> tuple[dict, dict]:
    """The weights of a run of six steps, and of the same once it has lost all after the third."""
    run = trained(path, *overrides)
    whole = weights(run, 6)
    shutil.rmtree(run.checkpoints / "step-000006")
    return whole, weights(trained(path, *overrides), 6)


NEEDS = {
    "torchao": ["adamw_torch_4bit", "adamw_torch_8bit"],
    "galore_torch": ["galore_adamw", "galore_adafactor"],
    "apollo_torch": ["apollo_adamw"],
    "bitsandbytes": ["galore_adamw", "galore_adafactor", "apollo_adamw"],
    "schedulefree": ["schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"],
}
"""Module -> the optimizers that are skipped below where it cannot be imported; no others are."""


def test_only_what_is_not_installed_is_skipped():
    absent = {name for module, names in NEEDS.items() if find_spec(module) is None for name in names}
    assert {name for name in EXACT if missing(name)} == absent


SIX = ("train.max_steps=6", "train.learning_rate=0.01", "checkpoints={save_steps: 3, keep_last: 9}")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """With matrices of 16,384 elements: torchao keeps whole state for those below 4,096."""
    return tiny_model(tmp_path_factory.mktemp("wide") / "model", hidden_size=128, intermediate_size=128)


@pytest.mark.slow
@pytest.mark.parametrize("optim", EXACT)
def test_a_resumed_run_ends_with_the_same_weights(recipe, wide, optim):
    if package := missing(optim):
        pytest.skip(f"{package} is not installed")
    start = {"adamw_torch_4bit": wide, "adamw_torch_8bit": wide}.get(optim)
    settings = [*SIX, f"train.optim={optim}", "train.max_grad_norm=1"]
    if start is not None:
        settings.append(f"model.init={start}")
    if optim in EXTRA:
        settings.append(f"train.extra={{{EXTRA[optim]}}}")
    whole, again = resumed(recipe, *settings)
    assert far(whole, again) == 0
    (run,) = recipe.parent.glob("*/metrics.jsonl")
    norms = [line["grad_norm"] for line in read_jsonl(run) if line["split"] == "train"]
    assert len(norms) >= 6 and min(norms) > 0, "the guard and clipping see the gradients"


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adafactor", "adamw_torch", "rmsprop"])
def test_state_keeps_its_type_beside_weights_of_bf16(recipe, optim):
    """Adafactor's moments are fp32; torch would round them as they are loaded."""
    whole, again = resumed(recipe, *SIX, f"train.optim={optim}", "model.dtype=bfloat16")
    assert far(whole, again) == 0


class Averaging(torch.optim.Optimizer):
    """Schedule-free SGD (arXiv 2405.15682, eq. 3 to 5), uniform weights; the interface of schedulefree."""

    history: list[list[torch.Tensor]] = []
    """The z of every step."""

    def __init__(self, params, lr, weight_decay=0.0, warmup_steps=0, weight_lr_power=2.0, r=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "k": 0, "train_mode": False})

    def _to(self, train: bool, weight: float) -> None:
        for group in self.param_groups:
            if group["train_mode"] != train:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], weight)
                group["train_mode"] = train

    def train(self):
        self._to(True, 0.1)

    def eval(self):
        self._to(False, 1 - 1 / 0.9)

    @torch.no_grad()
    def step(self, closure=None):
        now = []
        for group in self.param_groups:
            assert group["train_mode"]
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = p.lerp(z, 1 - 1 / 0.9)
                z.sub_(p.grad, alpha=group["lr"])
                x.lerp_(z, 1 / group["k"])
                p.copy_(x.lerp(z, 0.1))
                now.append(z.clone())
        self.history.append(now)


@pytest.fixture
def averaging(monkeypatch):
    """`Averaging` in place of the package schedulefree."""
    module = types.ModuleType("schedulefree")
    module.SGDScheduleFree = module.AdamWScheduleFree = Averaging
    monkeypatch.setitem(sys.modules, "schedulefree", module)
    monkeypatch.setattr(trainer_optimizer, "is_schedulefree_available", lambda *_: True)
    monkeypatch.setattr(optimizers, "_lacking", lambda package: "")
    monkeypatch.setattr(Averaging, "history", [])
    return Averaging


@pytest.mark.slow
def test_schedule_free_runs_are_saved_and_measured_at_the_average(recipe, averaging):
    """x after k steps is the mean of z_1 ... z_k; gradients are taken at y, a tenth of the way to z."""
    measured, kept = [], []

    def build(recipe, parts):
        trainer = sft.build(recipe, parts)
        plain = trainer.heldout_metrics

        def heldout_metrics():
            measured.append([p.detach().clone() for p in trainer.model.parameters()])
            return plain()

        trainer.heldout_metrics = heldout_metrics
        kept.append(trainer)
        return trainer

    settings = (*SIX, "train.optim=schedule_free_sgd", "train.learning_rate=0.5")
    heldout = "evaluate.heldout={share: 0.1, every_steps: 2}"
    run = trained(recipe, *settings, heldout, build=build)
    (trainer,) = kept
    order = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    names = {p: name for name, p in trainer.model.named_parameters()}
    z = averaging.history
    for step in (3, 6):
        saved = weights(run, step)
        for i, p in enumerate(order):
            mean = torch.stack([now[i] for now in z[:step]]).mean(0)
            torch.testing.assert_close(saved[names[p]], mean, atol=1e-6, rtol=0)
    assert len(measured) == 3
    position = {id(p): i for i, p in enumerate(trainer.model.parameters())}
    for step, values in zip((2, 4, 6), measured, strict=True):
        for i, p in enumerate(order):
            mean = torch.stack([now[i] for now in z[:step]]).mean(0)
            torch.testing.assert_close(values[position[id(p)]], mean, atol=1e-6, rtol=0)
    once = trained(recipe, *settings, "name=once", "checkpoints.save_steps=6", heldout)
    first, other = weights(run, 6), weights(once, 6)
    for name in first:  # saving changes nothing but a rounding
        torch.testing.assert_close(first[name], other[name], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_schedule_free_run_is_resumed_at_the_point_of_training(recipe, averaging):
    whole, again = resumed(recipe, *SIX, "train.optim=schedule_free_sgd", "train.learning_rate=0.5")
    assert far(whole, again) == 0


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_engines_that_shard_weights(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    for optim, used in USABLE.items():
        train = Train(learning_rate=1, global_batch_size=1, optim=optim)
        if not used.whole:
            refuse_optimizer(train)
            continue
        with pytest.raises(RequestError, match=f"train.optim = {optim} cannot be used under .*launch/ddp"):
            refuse_optimizer(train)
    monkeypatch.delenv(f"ACCELERATE_USE_{engine}")
    for optim in USABLE:
        refuse_optimizer(Train(learning_rate=1, global_batch_size=1, optim=optim))


@pytest.mark.parametrize(
    ("optim", "options", "stateless"),
    [("sgd", {}, True), ("sgd", {"momentum": 0.9}, False), ("adamw_torch", {}, False)],
)
def test_an_optimizer_without_state(optim, options, stateless):
    """Asked before its first step, of one that is to be resumed."""
    weight = torch.nn.Parameter(torch.ones(3))
    made = (torch.optim.SGD if optim == "sgd" else torch.optim.AdamW)([weight], lr=0.1, **options)
    assert is_stateless(optim, made) == stateless
    weight.sum().backward()
    made.step()
    assert any(made.state_dict()["state"].values()) != stateless


def test_what_is_not_measured_is_logged(caplog):
    for optim in LIMITED:
        caplog.clear()
        refuse_optimizer(Train(learning_rate=1, global_batch_size=1, optim=optim))
        assert f"train.optim = {optim}: no test of posttrain runs it" in caplog.text


def test_families_with_objects_in_their_state_are_those_with_targets():
    assert set(OBJECTS) == {name.partition("_")[0] for name, used in USABLE.items() if used.targets}
