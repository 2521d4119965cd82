"""Strict loading: every mistake is reported with file and line or "command line", path and nearest
spelling."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from posttrain.recipe import STAGES, Pipeline, SftRecipe, diff, load, recipe_hash, to_dict, to_yaml
from tests.recipe.minimal import MINIMAL, fails


def test_a_minimal_recipe_loads_with_defaults(recipe):
    loaded = load(recipe)
    assert isinstance(loaded, SftRecipe)
    assert loaded.train.learning_rate == 1e-3, "1e-3 without a dot is a number, not text"
    assert loaded.loss.name == "cross_entropy" and loaded.data.max_length == 2048


@pytest.mark.parametrize(
    ("line", "wrong", "expected"),
    [
        (
            "  learning_rate: 1e-3",
            "  learning_rat: 1e-3",
            "small.yaml:9: train.learning_rat: unknown key 'learning_rat' (did you mean 'learning_rate'?)",
        ),
        (
            "      path: a.jsonl",
            "      pth: a.jsonl",
            "small.yaml:7: data.sources[0].pth: unknown key 'pth' (did you mean 'path'?)",
        ),
        ("stage: sft", "stage: reward", "reward-model training is not supported yet"),
        ("stage: sft", "stage: stf", "stage = 'stf' (did you mean 'sft'?)"),
        (
            "  global_batch_size: 8",
            "  global_batch_size: eight",
            "small.yaml:10: train.global_batch_size must be a whole number, not 'eight'",
        ),
        ("  global_batch_size: 8", "  global_batch_size: 8.5", "must be a whole number, not 8.5"),
        ("name: small", "name: 7", "name must be text, not 7 (in quotes: '7')"),
        ("  max_steps: 10", "  max_steps: true", "train.max_steps must be a whole number, not true"),
    ],
)
def test_mistakes_are_named_with_file_line_and_spelling(recipe, line, wrong, expected):
    assert line in MINIMAL
    recipe.write_text(MINIMAL.replace(line, wrong))
    assert expected in fails(recipe)


def test_all_mistakes_come_at_once(recipe):
    recipe.write_text(
        MINIMAL.replace("learning_rate", "lerning_rate").replace("max_steps: 10", "max_steps: x")
    )
    message = fails(recipe)
    assert (
        "lerning_rate" in message and "max_steps" in message and "train.learning_rate is missing" in message
    )


def test_missing_sections_are_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("stage: sft\nname: x\n")
    message = fails(path)
    for key in ("model", "data", "train"):
        assert f"{key} is missing" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.warmup_stesp=3",
            "command line: train.warmup_stesp: unknown key 'warmup_stesp' (did you mean 'warmup_steps'?)",
        ),
        ("data.sources.0.wieght=3", "command line: data.sources[0].wieght: unknown key"),
        ("data.sources[0].wieght=3", "command line: data.sources[0].wieght: unknown key"),
        ("data.sources.4.weight=3", "data.sources.4.weight=3"),
        (
            "train.extra.neftune_noise=5",
            "TRL's config has no field 'neftune_noise' (did you mean 'neftune_noise_alpha'?)",
        ),
        ("train.extra.learning_rate=5", "write train.learning_rate"),
        ("train.extra.packing=true", "data.padding_free"),
        (
            "model.from_config.options.hiden_size=5",
            "llama has no field 'hiden_size' (did you mean 'hidden_size'?)",
        ),
        ("model.from_config.model_type=lama", "no model type 'lama' (did you mean 'llama'?)"),
        ("loss.name=confidense_limited", "did you mean 'confidence_limited'?"),
        ("nonsense", "an override is written key=value"),
    ],
)
def test_override_mistakes_are_named(recipe, override, expected):
    assert expected in fails(recipe, override)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-5", ("train", "learning_rate"), 1e-5),
        ("data.sources.0.weight=3", ("data", "sources", 0, "weight"), 3.0),
        ("data.sources[0].weight=.5", ("data", "sources", 0, "weight"), 0.5),
        ("train.report_to=[]", ("train", "report_to"), []),
        ("loss.step_delimiter=': '", ("loss", "step_delimiter"), ": "),
        ("evaluate.heldout={share: 0.1}", ("evaluate", "heldout", "share"), 0.1),
        ("train.extra.neftune_noise_alpha=5", ("train", "extra", "neftune_noise_alpha"), 5),
    ],
)
def test_overrides_reach_every_depth(recipe, override, path, value):
    found = to_dict(load(recipe, [override]))
    for key in path:
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["loss.segment=answer"], "loss.segment = answer needs loss.answer_marker"),
        (["loss.answer_marker='#### '"], "used only with loss.segment = answer, not completion"),
        (["data.sources.0.weight=0"], "sum to zero"),
        (["data.sources.0.weight=-1"], "at least 0"),
        (["data.sources.0.generator=multiplication"], "exactly one of path and generator"),
        (
            ["loss.p=external", "loss.name=confidence_limited", "loss.n=4"],
            "loss.p = external needs loss.value = surrogate",
        ),
        (["loss.name=confidence_limited", "loss.n=0.5"], "loss.n = 0.5 must be at least 1"),
        (["loss.name=confidence_limited", "loss.n=.inf"], "loss.n = inf"),
        (["loss.n=4"], "loss.n = 4 is used only with loss.name = confidence_limited, not cross_entropy"),
        (["loss.name=focal"], "needs loss.exponent"),
        (["loss.name=maxrl", "loss.exponent=1.5"], "a whole number"),
        (["train.num_train_epochs=1"], "exactly one of num_train_epochs and max_steps"),
        (["train.max_steps=null"], "exactly one of num_train_epochs and max_steps"),
        (["train.per_device_train_batch_size=3"], "not a multiple"),
        (["train.bf16=true", "train.fp16=true"], "cannot both be true"),
        (["train.learning_rate=0"], "above 0"),
        (["train.learning_rate=.nan"], "finite and above 0"),
        (["model.init=gpt2"], "exactly one of init"),
        (["model.tokenizer=null"], "model.tokenizer is needed"),
        (["model.tokenizer=builtin:byts"], "did you mean 'builtin:bytes'?"),
        (
            [
                "model.from_config=null",
                "model.init=x",
                "model.lora={target_modules: [q_proj, lm_head], options: {use_dora: true}}",
            ],
            "model.lora.options.use_dora is not supported for an adapter on the output head",
        ),
        (
            [
                "model.from_config=null",
                "model.init=x",
                "model.lora={target_modules: [lm_head], modules_to_save: [lm_head]}",
            ],
            "lm_head is listed in both model.lora.target_modules and model.lora.modules_to_save",
        ),
        (
            [
                "model.from_config=null",
                "model.init=x",
                "model.lora={options: {init_lora_weights: pissa_niter_4}}",
            ],
            "init_lora_weights = 'pissa_niter_4' is not supported; choose one of True, False, gaussian",
        ),
        (
            ["model.from_config=null", "model.init=x", "model.lora={options: {use_dra: true}}"],
            "peft's LoraConfig has no field 'use_dra' (did you mean 'use_dora'?)",
        ),
        (
            ["model.from_config=null", "model.init=x", "model.lora={options: {lora_alpha: 3}}"],
            "model.lora.options.lora_alpha is not allowed: use model.lora.alpha instead",
        ),
        (["loss.z_loss=-1"], "loss.z_loss = -1.0 must be at least 0"),
        (["loss.z_loss=.nan"], "loss.z_loss = nan must be finite and at least 0"),
        (["loss.chunk_rows=0"], "loss.chunk_rows = 0 must be above 0"),
        (["loss.name=dft", "loss.skip_below=-0.1"], "loss.skip_below = -0.1 must be at least 0"),
        (["loss.name=dft", "loss.skip_below=1"], "would skip every token"),
        (
            ["loss.name=dft", "loss.skip_below=0", "loss.z_loss=1e-4"],
            "loss.skip_below cannot be used with loss.z_loss",
        ),
        (
            ["loss.name=dft", "loss.skip_below=0", "loss.entropy_bonus=0.01"],
            "loss.skip_below cannot be used with loss.entropy_bonus: skipped tokens would lose their entropy",
        ),
        (["loss.entropy_bonus=-1"], "loss.entropy_bonus = -1.0 must be at least 0"),
        (["loss.label_smoothing=1.5"], "loss.label_smoothing = 1.5 must be at least 0 and below 1"),
        (["loss.label_smoothing=1"], "loss.label_smoothing = 1.0 must be at least 0 and below 1"),
        (["loss.label_smoothing=.nan"], "loss.label_smoothing = nan must be at least 0 and below 1"),
        (
            ["loss.name=confidence_limited", "loss.n=4", "loss.label_smoothing=0.1"],
            "loss.label_smoothing is used only with loss.name = cross_entropy, not confidence_limited; for "
            "other losses there is loss.entropy_bonus",
        ),
        (
            ["loss.label_smoothing=0.1", "loss.backend=triton"],
            "loss.backend = triton has no kernel for loss.label_smoothing; use torch, or auto, which takes",
        ),
        (["loss.entropy_bonus=0.1", "loss.backend=triton"], "has no kernel for loss.entropy_bonus"),
        (
            ["train.extra.label_smoothing_factor=0.1"],
            "train.extra.label_smoothing_factor is not allowed: use loss.label_smoothing (sft)",
        ),
        (["loss.skip_below=0"], "does nothing for cross_entropy without p_below or weight_above"),
        (["loss.backend=tritn"], "did you mean 'triton'?"),
        (["model.from_config=null", "model.init=x", "model.quantization={}"], "it needs model.lora"),
        (["evaluate.heldout={}"], "exactly one of share and source"),
        (["evaluate.heldout={share: 1.5}"], "above 0 and below 1"),
        (["checkpoints.keep_best={task: gsm8k, metric: pass@1}"], "is not one of evaluate.tasks"),
        (["evaluate.tasks=[{name: gsm8k}, {name: gsm8k, limit: 5}]"], "'gsm8k' is listed twice"),
        (["name=a/b"], "folder name"),
        (["data.sources=[]"], "data.sources is empty"),
    ],
)
def test_impossible_combinations(recipe, overrides, expected):
    assert expected in fails(recipe, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.from_config=null", "model.init=x", "model.lora={target_modules: [q_proj, lm_head]}"],
        ["loss.name=dft", "loss.skip_below=0"],
        ["loss.p_below=0.9", "loss.skip_below=0"],
        ["loss.z_loss=1e-4", "loss.chunk_rows=128", "loss.backend=triton"],
        ["loss.label_smoothing=0.1", "loss.entropy_bonus=0.01", "loss.z_loss=1e-4", "loss.backend=torch"],
        ["loss.label_smoothing=0.1", "loss.p_below=0.9", "loss.skip_below=0"],
        ["loss.name=confidence_limited", "loss.n=4", "loss.entropy_bonus=0.01"],
    ],
)
def test_possible_combinations(recipe, overrides):
    load(recipe, overrides)


def test_files_that_cannot_be_recipes(tmp_path):
    (tmp_path / "gsm8k-sft.yaml").write_text(MINIMAL)
    assert "did you mean 'gsm8k-sft.yaml'?" in fails(tmp_path / "gsm8k-stf.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("stage: sft\nname: [x\n")
    assert "broken.yaml:3" in fails(broken)
    broken.write_text("")
    assert "a recipe is a mapping" in fails(broken)
    broken.write_text("- a\n- b\n")
    assert "a recipe is a mapping" in fails(broken)
    broken.write_bytes(b"stage: \xff\xfe")
    assert "cannot be read" in fails(broken)
    broken.write_text(MINIMAL + "name: again\n")
    assert "duplicate" in fails(broken).lower()


def test_interpolation_that_leads_nowhere(recipe, monkeypatch):
    recipe.write_text(MINIMAL.replace("a.jsonl", "${oc.env:SOME_UNSET_PLACE}/a.jsonl"))
    assert "SOME_UNSET_PLACE" in fails(recipe)
    monkeypatch.setenv("SOME_UNSET_PLACE", "/somewhere")
    assert load(recipe).data.sources[0].path == "/somewhere/a.jsonl"


def test_the_resolved_recipe_is_the_same_recipe(recipe, tmp_path):
    first = load(recipe, ["loss.name=confidence_limited", "loss.n=256", "train.learning_rate=5e-06"])
    saved = tmp_path / "resolved.yaml"
    saved.write_text(to_yaml(first))
    assert load(saved) == first


def test_hash_follows_what_is_learned_only(recipe):
    base = recipe_hash(load(recipe))
    same = [
        "name=other",
        "train.logging_steps=3",
        "checkpoints.keep_last=1",
        "evaluate.tasks=[{name: gsm8k}]",
        "loss.label_smoothing=0",
        "loss.entropy_bonus=0",
    ]
    assert {recipe_hash(load(recipe, [o])) for o in same} == {base}
    other = ["train.seed=1", "loss.reduction=sum", "data.max_length=64", "evaluate.heldout={share: 0.1}"]
    other += ["loss.label_smoothing=0.1", "loss.entropy_bonus=0.1"]
    assert base not in {recipe_hash(load(recipe, [o])) for o in other}


def test_diff_names_leaves(recipe):
    changed = diff(
        to_dict(load(recipe)), to_dict(load(recipe, ["data.sources.0.path=b.jsonl", "train.seed=1"]))
    )
    assert changed == {"data.sources[0].path": ("a.jsonl", "b.jsonl"), "train.seed": (42, 1)}


def test_every_recipe_in_the_tree_loads(root, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(root))
    files = sorted((root / "recipes").rglob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        loaded = load(file)
        kind = "pipeline" if isinstance(loaded, Pipeline) else loaded.stage
        assert kind in yaml.safe_load(file.read_text()).get("stage", "pipeline")


def test_pipeline_mistakes(tmp_path, recipe):
    path = tmp_path / "p.yaml"
    path.write_text("pipeline: p\nstages:\n  - {name: a, recipe: smal.yaml}\n")
    assert "did you mean 'small.yaml'?" in fails(path)
    path.write_text(
        "pipeline: p\nstages:\n"
        "  - {name: a, recipe: small.yaml, after: [b]}\n"
        "  - {name: b, recipe: small.yaml}\n"
    )
    assert "stages[0].after = 'b' is not an earlier stage" in fails(path)
    path.write_text("pipeline: p\nstages: []\n")
    assert "stages is empty" in fails(path)


SPECIFIC = {
    "sft": ["loss"],
    "dpo": ["preference"],
    "rlvr": ["rewards", "success", "rollout", "policy"],
    "pairs": ["rewards", "success", "rollout", "pairing", "max_prompts", "seed", "output_dir"],
    "pass_rate": ["rewards", "success", "rollout", "keep", "max_prompts", "seed", "output_dir"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_order_of_keys_does_not_depend_on_the_class_that_declares_them(stage):
    start, end = ["stage", "name", "model", "data"], []
    if stage in ("sft", "dpo", "rlvr"):
        start, end = [*start, "train"], ["checkpoints", "evaluate", "guard", "output_dir"]
    assert [f.name for f in dataclasses.fields(STAGES[stage])] == [*start, *SPECIFIC[stage], *end]


def test_a_tilde_is_the_home_folder(recipe, monkeypatch):
    """A shell does not expand one inside a file, nor after `output_dir=`."""
    monkeypatch.setenv("HOME", "/home/me")
    before = recipe_hash(load(recipe))
    for written, place in (("~/runs", "/home/me/runs"), ("./~/runs", "./~/runs"), ("runs/", "runs/")):
        loaded = load(recipe, [f"output_dir={written}"])
        assert loaded.output_dir == place and recipe_hash(loaded) == before
