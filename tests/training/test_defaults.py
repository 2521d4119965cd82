"""The installed libraries against the table of their fields: whatever an upgrade adds, removes or moves fails
here by name."""

from __future__ import annotations

import dataclasses
import logging

import peft
import pytest
import trl

from posttrain.errors import RequestError
from posttrain.models.adapters import lora_config
from posttrain.recipe import load_stage
from posttrain.recipe.library_fields import STAGES, fixed, table
from posttrain.recipe.schema import Lora, Train
from posttrain.rundir.directory import RunDir
from posttrain.training import defaults
from posttrain.training.arguments import trainer_arguments
from posttrain.training.defaults import MODULES, differences, plain, refuse_moved_defaults, used_classes
from tests.conftest import ROOT
from tests.training.settings_page import page

HOW = """
The table posttrain/recipe/library_fields.yaml differs from the installed libraries. Read what the field does,
write a line for it (the file's head says how), and the page: python -m tests.training.settings_page
"""


@pytest.mark.parametrize("class_name", MODULES)
def test_every_field_and_default_is_in_the_table(class_name):
    found = differences(class_name)
    assert not found, "\n".join([HOW, *map(str, found)])


def test_every_class_of_the_table_is_compared():
    assert set(MODULES) == set(table())
    assert {*used_classes("SFTConfig"), *defaults.DEEPSPEED} == set(MODULES) - {
        "TrainingArguments",
        "DPOConfig",
        "GRPOConfig",
    }


def test_the_page_is_the_table():
    written = (ROOT / "posttrain" / "training" / "README.md").read_text()
    assert written == page(), "write it: python -m tests.training.settings_page"


# ---- an upgrade --------------------------------------------------------------------------------------------


@pytest.fixture
def upgraded(monkeypatch):
    """`upgraded(class_name, field=default, ...)`: as if the library had these; `defaults.ABSENT` removes."""
    plain_installed = defaults.installed

    def change(class_name: str, **fields):
        def installed(name: str):
            found = plain_installed(name)
            changed = {k: v for k, v in (found | fields).items() if v is not defaults.ABSENT}
            return changed if name == class_name else found

        monkeypatch.setattr(defaults, "installed", installed)
        return [class_name]

    return change


@pytest.mark.parametrize(
    ("class_name", "change", "message"),
    [
        (
            "GradScalerKwargs",
            {"growth_interval": 1000},
            "accelerate .*GradScalerKwargs.growth_interval: default 1000, in the table default 2000",
        ),
        (
            "DistributedDataParallelKwargs",
            {"comm_hook": defaults.ABSENT},
            "comm_hook: no such field, in the table default 'no'",
        ),
        ("SFTConfig", {"packing": 1}, None),
        (
            "SFTConfig",
            {"logging_nan_inf_filter": defaults.ABSENT},
            "transformers .*logging_nan_inf_filter: no such field",
        ),
        ("GRPOConfig", {"delta": defaults.ABSENT}, None),
        (
            "GRPOConfig",
            {"disable_dropout": defaults.ABSENT},
            "trl .*disable_dropout: no such field, in the table default False",
        ),
        ("LoraConfig", {"use_rslora": True}, None),
    ],
)
def test_what_an_upgrade_moves(upgraded, class_name, change, message):
    """It is named; a run is refused only where it would compute something else."""
    names = upgraded(class_name, **change)
    (found,) = differences(class_name)
    assert found.field == next(iter(change)) and found.class_name == class_name
    if message is None:
        refuse_moved_defaults(names)
        return
    with pytest.raises(RequestError, match=f"a default that the run relies on has moved: .*{message}"):
        refuse_moved_defaults(names)


def test_new_fields_are_named_in_one_warning(upgraded, caplog):
    names = upgraded("SFTConfig", loss_scale=0.5, smooth=True)
    with caplog.at_level(logging.WARNING):
        refuse_moved_defaults(names)
    (record,) = caplog.records
    assert (
        "SFTConfig.loss_scale = 0.5 (trl " in record.message and "SFTConfig.smooth = True" in record.message
    )


def test_a_run_is_refused_before_its_rows_are_prepared(recipe, tmp_path, upgraded):
    from posttrain.sft import train

    upgraded("AcceleratorConfig", split_batches=True)
    with pytest.raises(RequestError, match="AcceleratorConfig.split_batches: default True"):
        train(load_stage(recipe, [], "sft"))
    assert not (tmp_path / "cache").exists()


def test_an_earlier_version_has_earlier_defaults(monkeypatch, upgraded):
    monkeypatch.setattr(defaults, "version", lambda name: "5.17.0")
    gone = {"activation_checkpointing": defaults.ABSENT, "activation_checkpointing_kwargs": defaults.ABSENT}
    upgraded("TrainingArguments", **gone, gradient_checkpointing=False)
    assert differences("TrainingArguments") == []
    upgraded("TrainingArguments", **gone, gradient_checkpointing=None)
    (found,) = differences("TrainingArguments")
    text = (
        "transformers 5.17.0: TrainingArguments.gradient_checkpointing: default None, in the table default "
    )
    assert str(found) == text + "False"


# ---- what a run is given -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_values_reach_the_trainer_whatever_the_defaults(tmp_path, stage):
    """Every default of the class is moved; what the table sets is as the table says."""
    real = getattr(trl, STAGES[stage])
    fields = {f.name for f in dataclasses.fields(real)}
    values = {name: value for name, value in fixed(STAGES[stage]).items() if name in fields}
    moved = {name: not value for name, value in values.items() if isinstance(value, bool)}

    def build(**given):
        return real(**(moved | given))

    build.__name__, build.__dataclass_fields__ = STAGES[stage], real.__dataclass_fields__
    arguments = trainer_arguments(build, Train(1e-3, 8), RunDir(tmp_path), 3, {})
    for name, value in values.items():
        if name != "accelerator_config":  # None becomes an object
            assert plain(getattr(arguments, name)) == value, name


def test_values_reach_the_adapter(monkeypatch):
    given = {}
    monkeypatch.setattr(
        "posttrain.models.adapters.LoraConfig", kept := type("LoraConfig", (peft.LoraConfig,), {})
    )
    plain_init = peft.LoraConfig.__init__
    monkeypatch.setattr(
        kept, "__init__", lambda self, **values: given.update(values) or plain_init(self, **values)
    )
    lora_config(Lora(r=4, alpha=8, dropout=0.1, options={"use_rslora": True}), None)
    mattering = {name for name, row in table()["LoraConfig"].items() if row.kind != "none"}
    assert set(given) == mattering
    assert given["use_rslora"] is True and given["lora_alpha"] == 8 and given["bias"] == "none"
