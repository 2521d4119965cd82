"""`train.optim`: every name of transformers is in one of three lists; what it needs and reads is what
transformers asks for and passes; settings without effect are found by `check`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import trainer_optimizer
from transformers.training_args import OptimizerNames
from transformers.utils import import_utils

from posttrain.errors import RequestError
from posttrain.recipe import load_stage, optimizers
from posttrain.recipe.optimizers import EXACT, LIMITED, REFUSED, USABLE, wanting
from tests.training.optimizers_page import lists

NAMES = [o.value for o in OptimizerNames]
TARGETS = "optim_target_modules: [q_proj]"


def source(optim: str) -> str:
    """The code of transformers that sets the optimizer up; most of the packages are not installed."""
    handler = trainer_optimizer._OPTIMIZER_HANDLERS[OptimizerNames(optim)]
    return inspect.getsource(handler)


def test_every_name_of_transformers_is_in_one_list():
    lists = [*EXACT, *LIMITED, *REFUSED]
    assert len(lists) == len(set(lists))
    assert set(lists) == set(NAMES)
    assert {instead for _, instead in REFUSED.values()} <= set(USABLE)


def test_a_name_that_is_in_no_list_is_refused(started, monkeypatch):
    monkeypatch.setattr(optimizers, "enum_values", lambda *_: {*NAMES, "muon"})
    with pytest.raises(RequestError, match="'muon' is not an optimizer that posttrain knows"):
        load_stage(started, ["train.optim=muon"], "sft")
    monkeypatch.setattr(optimizers, "enum_values", lambda *_: {"sgd", "adamw_torch"})
    with pytest.raises(RequestError, match="'adagrad' is not an optimizer that transformers has"):
        load_stage(started, ["train.optim=adagrad"], "sft")


@pytest.mark.parametrize("optim", REFUSED)
def test_what_is_refused_says_what_to_use(started, optim):
    why, instead = REFUSED[optim]
    with pytest.raises(RequestError, match=re.escape(f"train.optim = {optim} is not supported: {why}; use")):
        load_stage(started, [f"train.optim={optim}"], "sft")
    assert instead


@pytest.mark.parametrize("optim", USABLE)
def test_what_an_optimizer_reads_is_what_transformers_passes(optim):
    used, code = USABLE[optim], source(optim)
    low_rank = "_setup_low_rank_optimizer(" in code
    assert used.targets == low_rank
    assert ("decay" in used.reads) == (not low_rank), "by group of parameters, or by name"
    betas = eps = "adam_kwargs" in code
    named = {  # `optim_args.get("x", ...)`, `.pop("x", ...)`, `for key in ("x", ...)`
        *re.findall(r'optim_args\.(?:get|pop)\("(\w+)"', code),
        *re.findall(r'if "(\w+)" in ctx\.optim_args', code),
        *(key for keys in re.findall(r"for key in \((.*?)\)", code) for key in re.findall(r'"(\w+)"', keys)),
    }
    if optim.startswith("rmsprop_bnb") or (low_rank and optim.startswith("galore")):
        betas = eps = False
    elif "lion" in optim:
        eps = False
    elif optim == "schedule_free_sgd":
        betas = eps = False
    assert ("betas" in used.reads, "eps" in used.reads) == (betas, eps)
    if "bitsandbytes" in code and "ademamix" not in optim:  # RMSprop takes text as it is, which it cannot use
        named = set()
    assert set(used.arguments) == named - {"weight_decay", "block_size"}


def test_packages_are_those_that_transformers_asks_for():
    """By the names in its code, and versions of at least its own."""
    least = {
        "bitsandbytes": import_utils.BITSANDBYTES_MIN_VERSION,
        "schedulefree": import_utils.SCHEDULEFREE_MIN_VERSION,
        "torchao": import_utils.TORCHAO_MIN_VERSION,
    }
    for optim, used in USABLE.items():
        for package in map(Requirement, used.packages):
            asked = {s for s in (package.name, package.name.replace("-", "_")) if s in source(optim)}
            assert asked or (package.name == "bitsandbytes" and used.targets), (optim, package)
            if package.name in least and package.specifier:
                assert not package.specifier.contains("0.0.1")
                assert package.specifier.contains(least[package.name]) or optim == "schedule_free_radam"


def test_what_the_machine_lacks_is_said(monkeypatch):
    def version(name):
        if name == "schedulefree":
            return "1.3"
        raise optimizers.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(optimizers.importlib.metadata, "version", version)
    assert wanting("schedule_free_adamw", lambda: None) == []
    (old,) = wanting("schedule_free_radam", lambda: None)
    assert old.endswith("needs the package schedulefree>=1.4; installed is 1.3")
    (missing,) = wanting("adamw_torch_8bit", lambda: None)
    assert "needs the package torchao>=0.15, which is not installed: pip install 'torchao>=0.15'" in missing
    no_package, no_gpu = wanting("lion_8bit", lambda: "torch finds none")
    assert "bitsandbytes" in no_package and "needs a GPU (torch finds none); use adamw_torch" in no_gpu


@pytest.mark.parametrize(
    ("optim", "extra", "sentence"),
    [
        ("sgd", "optim_args: momentun=0.9", "momentun is not read by train.optim = sgd (did you mean 'mom"),
        ("sgd", "optim_args: momentum=x", "optim_args: momentum must be a number from 0 to 1, not 'x'"),
        ("sgd", "optim_args: 'momentum=0.9,nesterov=1'", "nesterov must be true or false, not 1"),
        ("sgd", "optim_args: nesterov=true", "nesterov needs momentum above 0, and no dampening"),
        ("sgd", "optim_args: weight_decay=0.1", "weight_decay is overwritten by train.weight_decay"),
        ("adamw_torch", "optim_args: a=1", "train.extra.optim_args is not used by train.optim = adamw_torch"),
        ("rmsprop_bnb", "optim_args: alpha=0.9", "train.extra.optim_args is not used"),
        ("adamw_torch_8bit", "optim_args: block_size=128", "block_size is not read by train.optim"),
        ("stable_adamw", "optim_args: kahan_sum=False", "kahan_sum must be one of true, True, not 'False'"),
        ("galore_adamw", "optim_args: rank=4", "needs train.extra.optim_target_modules"),
        ("apollo_adamw", f"{TARGETS}, optim_args: rank=4.5", "rank must be a whole number of at least 1"),
        ("sgd", TARGETS, "train.extra.optim_target_modules is not used by train.optim = sgd"),
    ],
)
def test_arguments_without_effect(started, optim, extra, sentence):
    with pytest.raises(RequestError, match=re.escape(sentence)):
        load_stage(started, [f"train.optim={optim}", f"train.extra={{{extra}}}"], "sft")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.optim=sgd", "train.adam_beta1=0.8"], "train.adam_beta1 is not used by train.optim = sgd"),
        (["train.optim=lion_32bit", "train.adam_epsilon=1e-6"], "train.adam_epsilon is not used by"),
        (
            ["train.optim=galore_adamw", f"train.extra={{{TARGETS}}}", "train.weight_decay=0.1"],
            "train.weight_decay is not used by train.optim",
        ),
        (
            ["train.optim=galore_adamw", f"train.extra={{{TARGETS}}}", "model.lora={r: 4}"],
            "cannot be used with model.lora",
        ),
        (["train.optim=adamw"], "not an optimizer that transformers has (did you mean 'adamw_torch'?)"),
        (["train.optim=schedule_free_sgd", "train.lr_scheduler_type=cosine"], "must be constant"),
        (["train.optim=schedule_free_sgd", "train.warmup_steps=0.1"], "must be a number of steps"),
        (["train.optim=schedule_free_radam", "train.warmup_steps=2"], "train.warmup_steps is not used"),
        (["train.optim=schedule_free_sgd", "guard.on_nan=skip"], "guard.on_nan = skip cannot be used"),
    ],
)
def test_settings_of_another_optimizer(started, overrides, sentence):
    with pytest.raises(RequestError, match=re.escape(sentence)):
        load_stage(started, overrides, "sft")


@pytest.mark.parametrize(
    ("optim", "extra"),
    [
        ("sgd", "optim_args: 'momentum=0.9, nesterov=True'"),
        ("rmsprop", "optim_args: 'alpha=0.9,eps=1e-6,centered=true'"),
        ("ademamix_8bit", "optim_args: 'beta3=0.99,t_alpha=100'"),
        ("adamw_torch_4bit", "optim_args: bf16_stochastic_round=true"),
        ("apollo_adamw", f"{TARGETS}, optim_args: 'rank=4,proj=random'"),
        ("galore_adafactor", "optim_target_modules: all-linear"),
        ("stable_adamw", "optim_args: kahan_sum=True"),
    ],
)
def test_what_is_not_refused(started, optim, extra):
    load_stage(started, [f"train.optim={optim}", f"train.extra={{{extra}}}"], "sft")


def test_the_page_has_the_lists():
    page = (Path(optimizers.__file__).parents[1] / "training" / "README.md").read_text(encoding="utf-8")
    assert lists() in page
