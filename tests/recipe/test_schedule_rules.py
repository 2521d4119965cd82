"""Schedules: a setting that would be ignored, and one that is missing, are found by `check`."""

from __future__ import annotations

import re

import pytest
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames

from posttrain.errors import RequestError
from posttrain.recipe import load_stage
from posttrain.recipe.library_source import enum_values, integration_names, schedule_arguments
from posttrain.recipe.plan import steps_of, warmup_of
from posttrain.recipe.schedule_rules import ARGUMENTS, BY_EVALUATION, WITHOUT_ARGUMENTS
from posttrain.recipe.schema import Train


def kwargs(**given) -> str:
    return f"train.extra.lr_scheduler_kwargs={{{', '.join(f'{k}: {v}' for k, v in given.items())}}}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["train.lr_scheduler_type=cosin"],
            "lr_scheduler_type = 'cosin' is not a schedule of transformers (did you mean 'cosine'?)",
        ),
        (
            ["train.warmup_steps=3"],
            "train.lr_scheduler_type = constant ignores train.warmup_steps = 3; use constant_with_warmup",
        ),
        (
            [kwargs(min_lr=0)],
            "lr_scheduler_kwargs.min_lr: train.lr_scheduler_type = constant does not read it",
        ),
        (["train.lr_scheduler_type=reduce_lr_on_plateau"], "follows the library's evaluation"),
        (["train.lr_scheduler_type=greedy"], "follows the library's evaluation"),
        (
            ["train.lr_scheduler_type=cosine_with_min_lr"],
            "needs exactly one of train.extra.lr_scheduler_kwargs.min_lr and train.extra.lr_scheduler_kwargs."
            "min_lr_rate",
        ),
        (
            ["train.lr_scheduler_type=cosine_with_min_lr", kwargs(min_lr=0, min_lr_rate=0)],
            "needs exactly one of",
        ),
        (
            ["train.lr_scheduler_type=warmup_stable_decay"],
            "needs train.extra.lr_scheduler_kwargs.num_decay_steps",
        ),
        (
            [
                "train.lr_scheduler_type=warmup_stable_decay",
                "train.warmup_steps=2",
                kwargs(num_decay_steps=4),
            ],
            "its parts, 2 of warm-up, num_decay_steps = 4, are more than the 5 steps of train.max_steps = 5; "
            "num_decay_steps can be at most 3",
        ),
        (
            [
                "train.lr_scheduler_type=warmup_stable_decay",
                kwargs(num_decay_steps=2, num_stable_steps=2),
            ],
            "num_stable_steps = 2, num_decay_steps = 2, are fewer than the 5 steps of train.max_steps = 5; "
            "remove num_stable_steps, or set it to 3",
        ),
        (
            [
                "train.lr_scheduler_type=warmup_stable_decay",
                "train.warmup_steps=0.3",  # 1.5 of 5: transformers takes 2
                kwargs(num_decay_steps=2, num_stable_steps=2),
            ],
            "its parts, 2 of warm-up, num_stable_steps = 2, num_decay_steps = 2, are more than the 5 steps",
        ),
        (
            [
                "train.lr_scheduler_type=warmup_stable_decay",
                "train.warmup_steps=0.3",
                kwargs(num_decay_steps=4),
            ],
            "2 of warm-up, num_decay_steps = 4, are more than the 5 steps",
        ),
        (
            [
                "train.lr_scheduler_type=warmup_stable_decay",
                "train.warmup_steps=7",
                kwargs(num_decay_steps=0),
            ],
            "train.max_steps = 5; lower train.warmup_steps",
        ),
        (
            [
                *("train.lr_scheduler_type=warmup_stable_decay", "train.max_steps=null"),
                *("train.num_train_epochs=1", kwargs(num_decay_steps=2, num_stable_steps=2)),
            ],
            "num_stable_steps needs train.max_steps; remove it",
        ),
        (
            ["train.lr_scheduler_type=linear", "train.warmup_steps=2.5"],
            "train.warmup_steps = 2.5 must be a whole number of steps, or a share below 1",
        ),
        (["train.lr_scheduler_type=wsd"], "not a schedule of transformers (did you mean 'warmup_stable_dec"),
        (["train.lr_scheduler_type=polynomial"], "polynomial needs train.extra.lr_scheduler_kwargs.lr_end"),
        (["train.lr_scheduler_type=inverse_sqrt"], "inverse_sqrt needs train.warmup_steps or"),
        (
            ["train.lr_scheduler_type=cosine", kwargs(num_cycle=2)],
            "does not read it (did you mean 'num_cycles'?)",
        ),
        (["train.extra.lr_scheduler_kwargs=3"], "must be a mapping or null, not 3"),
        (
            ["model.lora={r: 4, modules_to_save: [lm_head]}", "model.dtype=float16"],
            "cannot be done in model.dtype = float16",
        ),
        (["train.optim=foo"], "train.optim = 'foo' is not an optimizer that transformers has"),
        (["train.report_to=[wanbd]"], "unknown integration 'wanbd' (did you mean 'wandb'?)"),
        (["train.report_to=[tensorboard, none]"], "train.report_to: none cannot be combined with others"),
        (["model.lora={r: 4, dropout: 1}"], "model.lora.dropout = 1.0 must be in [0, 1)"),
    ],
)
def test_what_is_refused(started, overrides, sentence):
    with pytest.raises(RequestError, match=re.escape(sentence)):
        load_stage(started, overrides, "sft")


def test_parts_of_a_schedule_are_compared_with_the_steps_of_the_epochs(started):
    """`posttrain check` counts rows, and a run does before the model is loaded."""
    wsd = ["train.lr_scheduler_type=warmup_stable_decay", "train.max_steps=null", "train.num_train_epochs=1"]
    recipe = load_stage(started, [*wsd, kwargs(num_decay_steps=4)], "sft")
    batch = recipe.train.global_batch_size
    assert steps_of(recipe, 4 * batch) == 4
    with pytest.raises(
        RequestError, match="num_decay_steps = 4, are more than the 3 steps of train.num_train_"
    ):
        steps_of(recipe, 3 * batch)


def test_max_steps_are_those_that_a_run_has(started):
    """An rlvr run ends with a batch of rollouts."""
    text = started.read_text().replace("stage: sft", "stage: rlvr")
    started.write_text(
        text + "rewards: [{name: math}]\nrollout: {num_generations: 4, steps_per_generation: 4}\n"
    )
    wsd = ["train.lr_scheduler_type=warmup_stable_decay", "train.max_steps=5"]
    recipe = load_stage(started, [*wsd, kwargs(num_decay_steps=8)], "rlvr")
    assert steps_of(recipe, 100) == 8
    with pytest.raises(RequestError, match="are more than the 8 steps of train.max_steps = 5"):
        load_stage(started, [*wsd, kwargs(num_decay_steps=9)], "rlvr")


def test_warm_up_is_rounded_as_transformers_does(tmp_path):
    for warmup in (0, 0.01, 0.07, 0.1, 0.3, 0.999, 1, 2):
        arguments = TrainingArguments(str(tmp_path), warmup_steps=warmup)
        train = Train(learning_rate=1, global_batch_size=1, warmup_steps=warmup)
        for steps in (1, 3, 7, 20, 100, 1000):
            assert warmup_of(train, steps) == arguments.get_warmup_steps(steps), (warmup, steps)


WITH_FLOOR = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")


@pytest.mark.parametrize(
    ("schedules", "given", "sentence"),
    [
        (WITH_FLOOR, {"min_lr": -1}, "min_lr must be a number of at least 0, not -1"),
        (WITH_FLOOR, {"min_lr": 0.5}, "min_lr = 0.5 must be at most train.learning_rate = 0.01"),
        (WITH_FLOOR, {"min_lr": "null"}, "min_lr must be a number of at least 0, not null"),
        (WITH_FLOOR, {"min_lr_rate": -1}, "min_lr_rate must be a number from 0 to 1, not -1"),
        (WITH_FLOOR, {"min_lr_rate": 1.01}, "min_lr_rate must be a number from 0 to 1, not 1.01"),
        (WITH_FLOOR, {"min_lr_rate": "x"}, "min_lr_rate must be a number from 0 to 1, not 'x'"),
        (WITH_FLOOR[1:], {"min_lr": 0, "warmup_lr_rate": -1}, "warmup_lr_rate must be a number from 0 to 1"),
        (["cosine", "cosine_with_restarts"], {"num_cycles": -1}, "num_cycles must be a number above 0"),
        (["cosine", "cosine_with_restarts"], {"num_cycles": 1e9}, "num_cycles = 1e+09 must be at most 1000"),
        (["cosine"], {"num_cycles": "null"}, "num_cycles must be a number above 0, not null"),
        (["polynomial"], {"lr_end": 0.01}, "lr_end = 0.01 must be below train.learning_rate = 0.01"),
        (["polynomial"], {"lr_end": 0, "power": -1}, "power must be a number above 0, not -1"),
        (["polynomial"], {"lr_end": 0, "power": ".nan"}, "power must be a number above 0, not nan"),
        (["inverse_sqrt"], {"timescale": 0}, "timescale must be a number above 0, not 0"),
        (["warmup_stable_decay"], {"num_decay_steps": -1}, "must be a whole number of at least 0, not -1"),
        (["warmup_stable_decay"], {"num_decay_steps": 1.5}, "must be a whole number of at least 0, not 1.5"),
        (
            ["warmup_stable_decay"],
            {"num_decay_steps": 1, "min_lr_ratio": 1e9},
            "min_lr_ratio must be a number from 0 to 1",
        ),
        (
            ["warmup_stable_decay"],
            {"num_decay_steps": 1, "decay_type": "x"},
            "decay_type must be one of linear, cosine, 1-sqrt, not 'x'",
        ),
    ],
)
def test_rates_stay_between_zero_and_the_learning_rate(started, schedules, given, sentence):
    for name in schedules:
        with pytest.raises(RequestError, match=re.escape(sentence)):
            settings = [f"train.lr_scheduler_type={name}", "train.learning_rate=0.01", kwargs(**given)]
            load_stage(started, settings, "sft")


def test_every_argument_of_a_schedule_has_a_kind():
    followed = {s.value for s in SchedulerType} - {*WITHOUT_ARGUMENTS, *BY_EVALUATION}
    assert set().union(*map(schedule_arguments, followed)) == set(ARGUMENTS)


def test_a_schedule_that_is_refused_is_not_suggested(started):
    for wrong in ("foo", "greeedy", "reduce_lr_on_plateu"):
        with pytest.raises(RequestError) as error:
            load_stage(started, [f"train.lr_scheduler_type={wrong}"], "sft")
        said = str(error.value).partition("transformers")[2]
        assert "greedy" not in said and "plateau" not in said, said


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.lr_scheduler_type=constant_with_warmup", "train.warmup_steps=0.1"],
        ["train.lr_scheduler_type=cosine_with_min_lr", kwargs(min_lr_rate=0.1)],
        ["train.lr_scheduler_type=inverse_sqrt", "train.warmup_steps=2"],
        ["train.lr_scheduler_type=warmup_stable_decay", "train.warmup_steps=0.2", kwargs(num_decay_steps=4)],
        ["train.lr_scheduler_type=polynomial", kwargs(lr_end=0, power=2)],
        ["train.lr_scheduler_type=cosine_with_min_lr", "train.learning_rate=0.01", kwargs(min_lr=0.01)],
        ["train.lr_scheduler_type=cosine_with_min_lr", kwargs(min_lr_rate=1, num_cycles=1.5)],
        ["train.lr_scheduler_type=warmup_stable_decay", kwargs(num_decay_steps=2, decay_type="1-sqrt")],
        ["train.lr_scheduler_type=warmup_stable_decay", kwargs(num_decay_steps=2, num_stable_steps=3)],
        ["train.optim=schedule_free_adamw", "train.warmup_steps=2"],
    ],
)
def test_what_is_not(started, overrides):
    load_stage(started, overrides, "sft")


@pytest.mark.parametrize("stage", ["dpo", "rlvr"])
def test_stages_that_compare_forwards_have_no_noise(started, stage):
    text = started.read_text().replace("stage: sft", f"stage: {stage}")
    sampled = "rewards: [{name: math}]\nrollout: {num_generations: 4}\n"
    started.write_text(text + sampled * (stage == "rlvr"))
    load_stage(started, ["model.lora={r: 4}"], stage)
    for override, key in (
        ("model.lora={r: 4, dropout: 0.1}", "model.lora.dropout = 0.1"),
        ("train.extra.neftune_noise_alpha=5", "train.extra.neftune_noise_alpha"),
    ):
        with pytest.raises(RequestError, match=f"{key} cannot be used here: the {stage} stage compares"):
            load_stage(started, [override], stage)


def test_names_are_those_of_transformers():
    assert integration_names() == set(INTEGRATION_TO_CALLBACK)
    assert enum_values("trainer_utils.py", "SchedulerType") == {s.value for s in SchedulerType}
    assert enum_values("training_args.py", "OptimizerNames") == {o.value for o in OptimizerNames}
    for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        code = function.__code__
        names = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
        assert schedule_arguments(kind.value) == names - given, kind
