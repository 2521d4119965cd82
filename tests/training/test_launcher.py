"""What a launcher's config would decide without the recipe is refused, or set."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from posttrain import sft
from posttrain.errors import RequestError
from posttrain.models.head import attach_fused_head
from posttrain.recipe.schema import FromConfig, Lora, Model, Train
from posttrain.training.engines import name_own_layers, told_of_unused
from posttrain.training.launcher import (
    GATHERED,
    keep_precision,
    refuse_deepspeed,
    refuse_launcher,
    refuse_other_batch,
    refuse_sharded_family,
    refuse_unsaved_weights,
)
from tests.models.test_head import FAMILIES, model_of
from tests.tiny import RECIPE, tiny_model, write_rows


def test_a_precision_that_the_recipe_does_not_ask_for(monkeypatch):
    """accelerate's mixed_precision would otherwise train a recipe without bf16 in bf16."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    refuse_launcher(Train(1e-3, 8, bf16=True))
    with pytest.raises(RequestError, match="mixed_precision: bf16, the recipe asks for no"):
        refuse_launcher(Train(1e-3, 8))
    with pytest.raises(RequestError, match="mixed_precision: bf16, the recipe asks for fp16"):
        refuse_launcher(Train(1e-3, 8, fp16=True))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    refuse_launcher(Train(1e-3, 8))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(RequestError, match="dynamo_backend: inductor"):
        refuse_launcher(Train(1e-3, 8))


@pytest.fixture
def zero3(monkeypatch):
    """What the processes of `accelerate launch --config_file launch/zero3.yaml` are told."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true")


def experts(folder: Path) -> Path:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    return tiny_model(folder, kind="qwen3_moe", **sizes)


def test_a_family_that_zero3_cannot_have_is_refused_before_rows_are_read(tmp_path, zero3, capsys):
    """It was, once rows were tokenised and the weights loaded."""
    rows, path = write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "case.yaml"
    path.write_text(RECIPE.format(out=tmp_path, model=experts(tmp_path / "moe"), rows=rows))
    assert sft.main([str(path)]) == 2
    sentence = (
        f"model.init = {tmp_path}/moe: under ZeRO-3, the logits of qwen3_moe cannot be checked while its"
    )
    said = capsys.readouterr().err
    assert sentence in said and "use launch/zero2.yaml or launch/ddp.yaml" in said
    assert not (tmp_path / "cache").exists() and not (tmp_path / "case").exists()


def test_what_is_not_refused_under_zero3(tmp_path, zero3, monkeypatch):
    untested = Model(from_config=FromConfig("qwen3_moe"))
    with pytest.raises(RequestError, match="model.from_config.model_type: under ZeRO-3, .* of qwen3_moe"):
        refuse_sharded_family(untested)
    refuse_sharded_family(Model(from_config=FromConfig("llama")))
    refuse_sharded_family(Model(init=str(tiny_model(tmp_path / "llama"))))
    nested = experts(tmp_path / "nested")
    config = json.loads((nested / "config.json").read_text())
    (nested / "config.json").write_text(json.dumps({"model_type": "llama", "text_config": config}))
    with pytest.raises(RequestError, match=f"{nested}: under ZeRO-3, .* of qwen3_moe"):
        refuse_sharded_family(Model(init=str(nested)))
    adapter = experts(tmp_path / "adapter")
    (adapter / "adapter_config.json").touch()
    refuse_sharded_family(Model(init=str(adapter)))  # its base is merged, and measured, before it is sharded
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    refuse_sharded_family(untested)
    config = tmp_path / "deepspeed.json"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(config))
    config.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(RequestError, match="under ZeRO-3"):
        refuse_sharded_family(untested)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    refuse_sharded_family(untested)


# ---- DeepSpeed ---------------------------------------------------------------------------------------------


def filled(tmp_path, train: Train, given: dict | None = None, **plugin) -> dict:
    """The DeepSpeed config of a run as accelerate and transformers fill it in."""
    made = DeepSpeedPlugin(hf_ds_config=given, **plugin)
    made.set_mixed_precision("bf16" if train.bf16 else "no")
    arguments = TrainingArguments(
        str(tmp_path), max_grad_norm=train.max_grad_norm, bf16=train.bf16, use_cpu=True, report_to=[]
    )
    config = HfTrainerDeepSpeedConfig(made.deepspeed_config)
    config.trainer_config_process(arguments)
    return config.config


@pytest.mark.parametrize("norm", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_shipped_configs_clip_as_the_recipe_says(tmp_path, norm, bf16):
    train = Train(1e-3, 8, max_grad_norm=norm, bf16=bf16)
    for stage in (2, 3):
        config = filled(tmp_path, train, zero_stage=stage, gradient_clipping="auto")
        assert config["gradient_clipping"] == norm and config["bf16"]["enabled"] == bf16
        refuse_deepspeed(config, train)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "has no gradient_clipping, but train.max_grad_norm = 0.7; set gradient_clipping: auto"),
        ({"gradient_clipping": 1.0}, "has gradient_clipping = 1.0, but train.max_grad_norm = 0.7"),
        (
            {"gradient_clipping": "auto", "optimizer": {"type": "AdamW", "params": {}}},
            "takes the place of train.optim",
        ),
        ({"gradient_clipping": "auto", "scheduler": {"type": "WarmupLR"}}, "train.lr_scheduler_type"),
        (
            {"gradient_clipping": "auto", "bf16": {"enabled": True}},
            "bf16.enabled = True, but train.bf16 = False",
        ),
    ],
)
def test_a_config_that_overrules_the_recipe(tmp_path, more, message):
    """DeepSpeed's own clipping, where the config is silent, is 1.0 whatever the recipe says."""
    train = Train(1e-3, 8, max_grad_norm=0.7)
    given = {"zero_optimization": {"stage": 2}, "train_batch_size": "auto"} | more
    with pytest.raises(RequestError, match=message):
        refuse_deepspeed(filled(tmp_path, train, given), train)


# ---- FSDP2 -------------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    """A process group of one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(model, ours: bool = True, **changed):
    """Lets accelerate shard `model` under its bf16 policy or ours, `changed`."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_mixed_precision("bf16")
    state = SimpleNamespace(fsdp_plugin=plugin)
    if ours:
        keep_precision(SimpleNamespace(state=state), True)
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **changed)
    accelerator = SimpleNamespace(state=state, mixed_precision="bf16", is_main_process=False)
    return fsdp2_prepare_model(accelerator, model)


def fused(kind: str):
    model = model_of(kind, **FAMILIES[kind][0])
    attach_fused_head(model)
    return model


IDS = torch.arange(3, 51)[None]


def test_weights_that_train_are_fp32_under_fsdp2(alone):
    """As accelerate has it, whatever they were loaded in."""
    model = shard(fused("llama").bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("ours", [True, False])
def test_log_probabilities_of_fsdp2_are_not_rounded(alone, ours):
    """accelerate's policy for bf16 casts the outputs of the head to bf16, and sums gradients in it."""
    model = shard(fused("llama"), ours)
    hidden = []
    model.model.layers[1].register_forward_hook(lambda _, given, out: hidden.extend([given[0], out]))
    out = model(input_ids=IDS, labels=IDS, tokens={})
    wanted = torch.float32 if ours else torch.bfloat16
    assert out.log_probs.dtype == wanted, "the fixed policy is needed as long as this is bf16 without it"
    assert model._get_fsdp_state()._mp_policy.reduce_dtype == wanted
    assert [h.dtype for h in hidden] == [torch.bfloat16] * 2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("cast", [False, True])
def test_what_enters_the_head_under_fsdp2_is_not_rounded(alone, kind, cast):
    """In bf16 a normalizer of 12345 is 12352, and p = .9973 is .99609375, so that 1 - p is .00390625 for
    .0027. Python's numbers are never cast, and one process has no policy."""
    model, plain = shard(fused(kind), **({"cast_forward_inputs": True} if cast else {})), fused(kind)
    rows = {"input_ids": IDS, "labels": IDS, "segment_ids": torch.ones_like(IDS)}

    def output(of, **more):
        return of(**rows, fused={"n": 4.0, "num_segments": 1, "value": "surrogate"} | more)

    exact = output(model, normalizer=12345.0).loss.item()
    assert exact == pytest.approx(output(plain, normalizer=12345.0).loss.item(), rel=1e-2)
    loss = output(model, normalizer=torch.tensor(12345.0)).loss.item()
    assert loss == pytest.approx(exact * (12345 / 12352 if cast else 1), rel=1e-6)
    coef = output(model, p=torch.tensor([0.9973])).coef.item()
    expected = output(plain, p=torch.tensor([0.99609375 if cast else 0.9973])).coef.item()
    assert coef == pytest.approx(expected, rel=1e-5)


# ---- weights that nobody gathers ---------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """`asked(**settings)`: the environment that `accelerate launch` makes of a `deepspeed_config`."""

    def ask(**settings) -> None:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        for name, value in settings.items():
            monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name.upper()}", str(value).lower())

    return ask


REFUSED = r"no weights; set zero3_save_16bit_model: true in the accelerate config, or zero_optimization\."


@pytest.mark.parametrize("given", [{}, {"zero3_save_16bit_model": False}])
def test_zero3_as_accelerate_writes_it_is_refused(asked, given):
    asked(zero_stage=3, zero3_init=True, **given)
    with pytest.raises(RequestError, match=REFUSED):
        refuse_unsaved_weights(Model(init="m"))
    refuse_unsaved_weights(Model(init="m", lora=Lora()))


def test_zero3_that_gathers_and_other_engines_pass(asked, monkeypatch):
    refuse_unsaved_weights(Model(init="m"))
    asked(zero_stage=3, zero3_save_16bit_model=True)
    refuse_unsaved_weights(Model(init="m"))
    asked(zero_stage=2, zero3_save_16bit_model=False)
    refuse_unsaved_weights(Model(init="m"))


@pytest.mark.parametrize(
    ("zero", "refused"),
    [({}, True), ({GATHERED: False}, True), ({GATHERED: "auto"}, True), ({GATHERED: True}, False)],
)
def test_the_file_of_deepspeed_decides(asked, tmp_path, zero, refused):
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3} | zero}))
    asked(config_file=str(file))
    if not refused:
        return refuse_unsaved_weights(Model(init="m"))
    with pytest.raises(RequestError, match=REFUSED):
        refuse_unsaved_weights(Model(init="m"))


def test_a_file_that_is_not_there(asked):
    asked(config_file="nowhere.json")
    with pytest.raises(RequestError, match=r"the DeepSpeed config cannot be used: .*nowhere\.json"):
        refuse_unsaved_weights(Model(init="m"))


def test_layers_of_another_part_are_no_units_of_fsdp2(tmp_path):
    """A text model whose family also names blocks of its vision part, plain and below an adapter."""
    from peft import LoraConfig, get_peft_model

    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "head_dim": 8}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "m", kind="qwen3_5_text", **linear))
    assert "Qwen3_5VisionBlock" in model._no_split_modules
    adapted = get_peft_model(model, LoraConfig(target_modules=["down_proj"]))
    name_own_layers(adapted)
    assert set(model._no_split_modules) == set(adapted._no_split_modules) == {"Qwen3_5DecoderLayer"}


def test_a_weight_that_no_gradient_reaches_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[1](torch.ones(2)).backward()
    found = pytest.raises(RequestError, match=r"reaches 0\.weight, one of 2 such.*ddp_find_unused_parameters")
    with found, told_of_unused(model):
        raise RuntimeError("Expected to have finished reduction in the prior iteration before")
    with pytest.raises(RuntimeError, match="other"), told_of_unused(model):
        raise RuntimeError("other")


def test_a_config_that_divides_the_batch_otherwise(asked, tmp_path):
    train = SimpleNamespace(per_device_train_batch_size=2, gradient_accumulation_steps=1, world_size=2)
    file = tmp_path / "deepspeed.json"
    given = {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": "auto"}
    for more, words in (
        ({}, None),
        ({"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2}, None),
        (
            {"gradient_accumulation_steps": 4},
            r"has gradient_accumulation_steps: 4 \(which may be a default\), the recipe gives 1; write",
        ),
        ({"train_batch_size": 8}, r"train_batch_size: 8 .*, the recipe gives 4"),
    ):
        file.write_text(json.dumps(given | more))
        asked(config_file=str(file))
        with pytest.raises(RequestError, match=words) if words else nullcontext():
            refuse_other_batch(train)
