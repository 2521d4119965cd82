"""The table of library fields: well-formed, and one truth with the recipe's keys and with `train.extra`."""

from __future__ import annotations

import json
import re
import typing
from dataclasses import is_dataclass

import pytest

from posttrain.errors import RequestError
from posttrain.recipe import load_stage
from posttrain.recipe.library_fields import STAGES, fixed, refused, table
from posttrain.recipe.library_source import config_fields, lora_fields
from posttrain.recipe.recipes import STAGES as RECIPES
from posttrain.recipe.schema import Lora, Train
from posttrain.recipe.values import KINDS
from tests.training.settings_page import own_fields


def keys(cls: type, path: str = "") -> set[str]:
    """Every key that a recipe of class `cls` may have, by path."""
    found = set()
    for name, kind in typing.get_type_hints(cls).items():
        found.add(path + name)
        for option in (kind, *typing.get_args(kind)):
            if is_dataclass(option):
                found |= keys(option, f"{path}{name}.")
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_recipe_decides_is_a_key_of_it(stage):
    known = keys(RECIPES[stage])
    for name, row in table()[STAGES[stage]].items():
        if row.kind == "recipe":
            assert row.value in known, f"{STAGES[stage]}.{name}: {row.value}"


def test_keys_of_the_adapter():
    assert {r.value for r in table()["LoraConfig"].values() if r.kind == "recipe"} == {
        f"model.lora.{name}" for name in Lora.__dataclass_fields__ if name != "options"
    }


@pytest.mark.parametrize("class_name", [*STAGES.values(), "LoraConfig"])
def test_a_field_may_be_set_by_the_user_or_says_why_not(class_name):
    for name, row in table()[class_name].items():
        assert row.open or row.reason, f"{class_name}.{name}"
        assert not (row.open and row.refuse), f"{class_name}.{name}"
        assert row.kind == "recipe" or (row.why if row.kind == "set" else row.value), f"{class_name}.{name}"


@pytest.mark.parametrize("stage", STAGES)
def test_train_extra_takes_what_the_table_leaves_open(started, tmp_path, stage):
    """And refuses every other field, with the table's words."""
    text = started.read_text().replace("stage: sft", f"stage: {stage}")
    if stage == "rlvr":
        text += "rewards: [{name: math}]\nrollout: {num_generations: 4}\n"
    started.write_text(text)
    words = refused(STAGES[stage])
    for name in config_fields(stage) - set(Train.__dataclass_fields__):
        if name not in words:
            continue
        with pytest.raises(RequestError) as error:
            load_stage(started, [f"train.extra.{name}=null"], stage)
        assert f"train.extra.{name} is not allowed: {words[name]}" in str(error.value)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("use_cache", "a training forward keeps no cache"),
        ("average_tokens_across_devices", "counts cover all ranks; our losses count by themselves"),
        ("do_train", "for scripts; the trainer does not read it"),
        ("eval_steps", "held-out rows are measured by our own loop; see evaluate.heldout"),
        ("padding_free", "use data.padding_free instead"),
        ("torch_compile", "it is not tested with the fused head"),
        ("debug", "it cannot read what the fused head returns; guard.on_nan and guard.on_spike watch every"),
    ],
)
def test_the_reason_is_the_fields_own(started, field, reason):
    """A section of the recipe that has no key like it is no reason."""
    with pytest.raises(RequestError, match=re.escape(f"train.extra.{field} is not allowed: {reason}")):
        load_stage(started, [f"train.extra.{field}=1"], "sft")


def test_lora_options(started):
    assert set(refused("LoraConfig")) <= lora_fields()
    for key, message in (
        ("r", "model.lora.options.r is not allowed: use model.lora.r instead"),
        ("use_rlora", "has no field 'use_rlora' (did you mean 'use_rslora'?)"),
        ("inference_mode", "the adapter is trained"),
        (
            "lora_bias",
            "model.lora.options.lora_bias is not allowed: loading the saved adapter with it is not",
        ),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            load_stage(started, ["model.lora={r: 4}", f"model.lora.options.{key}=1"], "sft")


def load_with(started, stage, at, field, value):
    text = started.read_text().replace("stage: sft", f"stage: {stage}")
    if stage == "rlvr" and "rewards:" not in text:
        text += "rewards: [{name: math}]\nrollout: {num_generations: 4}\n"
    started.write_text(text)
    lora = ["model.lora={r: 4}"] * at.startswith("model")
    return load_stage(started, [*lora, f"{at}.{field}={json.dumps(value)}"], stage)


@pytest.mark.parametrize("stage", ["LoraConfig", *STAGES])
def test_values_of_open_fields(started, stage):
    """The libraries' defaults are accepted; of what no field can be, each field says what it takes."""
    at = "model.lora.options" if stage == "LoraConfig" else "train.extra"
    of = "sft" if stage == "LoraConfig" else stage
    for field, row in table()[STAGES.get(stage, stage)].items():
        if not row.open:
            continue
        load_with(started, of, at, field, row.default)
        for wrong in (-7, [[]], {"a": {"b": -1}}):
            if isinstance(wrong, dict) and "a mapping" in row.takes:
                continue
            with pytest.raises(RequestError, match=re.escape(f"{at}.{field} must be ")):
                load_with(started, of, at, field, wrong)


@pytest.mark.parametrize(
    ("stage", "key", "value", "kinds"),
    [
        ("sft", "model.lora.options.use_dora", "zzz", "true or false"),
        ("sft", "model.lora.options.use_rslora", "false", "true or false"),
        ("sft", "model.lora.options.bias", None, "one of none, all, lora_only"),
        ("sft", "model.lora.options.bias", "some", "one of none, all, lora_only"),
        ("sft", "model.lora.options.rank_pattern", {"q_proj": 0}, "a mapping of names to whole numbers"),
        ("sft", "model.lora.options.rank_pattern", None, "a mapping of names to whole numbers"),
        ("sft", "model.lora.options.alpha_pattern", {"q_proj": "x"}, "a mapping of names to numbers above 0"),
        ("sft", "model.lora.options.exclude_modules", True, "text or a list of text or null"),
        ("sft", "model.lora.options.target_parameters", [1], "a list of text or null"),
        ("sft", "model.lora.options.trainable_token_indices", 1e30, "a list of whole numbers"),
        ("sft", "train.extra.log_level", "zzz", "one of detail, debug"),
        ("sft", "train.extra.neftune_noise_alpha", -1, "a number of at least 0 or null"),
        ("sft", "train.extra.gradient_checkpointing_kwargs", 3, "a mapping or null"),
        ("sft", "train.extra.per_device_eval_batch_size", 0, "a whole number of at least 1"),
        ("sft", "train.extra.ddp_timeout", "x", "a whole number of at least 1"),
        ("sft", "train.extra.optim_args", "zzz", "text like a=1,b=2 or null"),
        ("rlvr", "train.extra.delta", "zzz", "a number above 1 or null"),
        ("rlvr", "train.extra.entropy_coef", None, "a number of at least 0"),
        ("rlvr", "train.extra.off_policy_mask_threshold", -1, "a number above 0 or null"),
        ("rlvr", "train.extra.top_entropy_quantile", {}, "a number from 0 to 1"),
    ],
)
def test_a_value_of_the_wrong_kind(started, stage, key, value, kinds):
    """A run would end in a traceback, or take text for true."""
    at, _, field = key.rpartition(".")
    with pytest.raises(RequestError, match=re.escape(f"{key} must be {kinds}")):
        load_with(started, stage, at, field, value)


def test_an_adapter_that_trains_nothing(started):
    with pytest.raises(RequestError, match="model.lora.alpha = 0 must be above 0"):
        load_stage(started, ["model.lora={r: 4, alpha: 0}"], "sft")
    with pytest.raises(RequestError, match="model.lora.target_modules is empty: nothing would be trained"):
        load_stage(started, ["model.lora={r: 4, target_modules: []}"], "sft")


def test_kinds_of_the_table_are_known():
    rows = [row for fields in table().values() for row in fields.values() if row.open]
    kinds = {kind for row in rows for kind in ([row.takes] if isinstance(row.takes, str) else row.takes)}
    assert {kind for kind in kinds if not kind.startswith("one of ")} <= set(KINDS)


def test_names_of_lora_fields_equal_the_real_class():
    from peft import LoraConfig

    assert lora_fields() == {f for f, d in LoraConfig.__dataclass_fields__.items() if d.init}


def test_a_class_inherits_decisions_and_may_have_another_default():
    rows = table()["SFTConfig"]
    assert rows["learning_rate"].value == "train.learning_rate" and rows["learning_rate"].default == 2e-5
    assert table()["TrainingArguments"]["learning_rate"].default == 5e-5
    assert "learning_rate" not in own_fields("SFTConfig") and "max_length" in own_fields("SFTConfig")
    assert rows["gradient_checkpointing"].since == "", "TRL's own default has no earlier version"


def test_values_are_given_as_copies():
    fixed("SFTConfig")["dataset_kwargs"]["skip_prepare_dataset"] = False
    assert fixed("SFTConfig")["dataset_kwargs"] == {"skip_prepare_dataset": True}
