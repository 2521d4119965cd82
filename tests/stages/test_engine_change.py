"""A checkpoint is resumed where its state is restored exactly, and refused elsewhere, before any work."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.base.files import hash_of, read_jsonl
from posttrain.errors import RequestError
from posttrain.recipe import load, load_stage, recipe_hash
from posttrain.rundir.checkpoints import all_complete
from posttrain.rundir.directory import RunDir
from posttrain.rundir.proof import FACTS, MARKER
from posttrain.stages.engine_change import (
    Launch,
    OtherLaunch,
    obstacle,
    refuse,
    refuse_other_engine,
    saved_under,
)
from tests.stages.damage import edit, flip
from tests.stages.test_sharded_resume import SETTINGS
from tests.tiny import accelerate, on_cpu, tiny_model
from tests.training.rollouts import write_recipe
from tests.training.test_rlvr_ranks import CASES

ENGINES = {
    "single": (1,),
    "ddp": (2, 4),
    "zero1": (1, 2),
    "zero2": (1, 2, 4),
    "zero3": (1, 2),
    "fsdp2": (2, 4),
}
LAUNCHES = [Launch(engine, processes) for engine, sizes in ENGINES.items() for processes in sizes]
NAMES = ["one process", "DDP on 2 processes", "DDP on 4 processes", "ZeRO-1 on 1 process"]


SIZES = ["train.per_device_train_batch_size=2", "checkpoints.keep_last=null"]
SFT = [
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    "train.lr_scheduler_type=linear",
    "train.logging_steps=2",
    "checkpoints.save_steps=3",
]


@pytest.fixture
def under(monkeypatch):
    """`under(launch)`: this process as a rank of it."""

    def set_up(launch: Launch) -> None:
        zero = launch.engine.startswith("zero")
        monkeypatch.setenv("WORLD_SIZE", str(launch.processes))
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", str(zero).lower())
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", launch.engine[-1] if zero else "0")
        monkeypatch.setenv("ACCELERATE_USE_FSDP", str(launch.engine == "fsdp2").lower())

    return set_up


def facts(launch: Launch) -> dict:
    return {"step": 3, "resumable": True, "engine": launch.engine, "world_size": launch.processes}


def test_names():
    assert [str(launch) for launch in LAUNCHES[:4]] == NAMES
    assert str(Launch("fsdp2", 2)) == "FSDP2 on 2 processes"
    assert str(Launch("zero1 or zero2", 2)) == "ZeRO-1 or ZeRO-2 on 2 processes"


@pytest.mark.parametrize("now", LAUNCHES, ids=str)
@pytest.mark.parametrize("before", LAUNCHES, ids=str)
def test_every_pair_of_launches(recipe, tmp_path, under, before, now):
    """One process and DDP read each other's state, in any number; every other engine needs what it was."""
    under(now)
    plain = {"single", "ddp"}
    exact = before == now or {before.engine, now.engine} <= plain
    found = obstacle(tmp_path, facts(before), load(recipe))
    assert found == (
        None
        if exact
        else f"was saved under {before} and cannot be resumed under {now}: the state of the optimizer cannot "
        "be taken over"
    )


@pytest.mark.parametrize(
    ("overrides", "config", "noise"),
    [
        (["model.lora={}"], {}, None),
        (["model.lora={dropout: 0.1}"], {}, "model.lora.dropout"),
        (["train.extra.neftune_noise_alpha=5"], {}, "train.extra.neftune_noise_alpha"),
        ([], {"attention_dropout": 0.0, "summary_first_dropout": 0.1}, None),
        ([], {"resid_pdrop": 0.1}, "resid_pdrop of the model"),
        (["model.options={resid_pdrop: 0.0}"], {"resid_pdrop": 0.1}, None),
        ([], {"text_config": {"attention_dropout": 0.1}}, "attention_dropout of the model"),
    ],
)
def test_dropout_needs_the_same_number_of_processes(recipe, tmp_path, under, overrides, config, noise):
    """Its masks come from the state of each process; the number of ranks is that of these states."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked, before = load(recipe, overrides), Launch("ddp", 2)
    under(before)
    assert obstacle(tmp_path, facts(before), asked) is None
    for now in (Launch("single", 1), Launch("ddp", 4)):
        under(now)
        found = obstacle(tmp_path, facts(before), asked)
        assert found == (
            noise
            and f"was saved under DDP on 2 processes and cannot be resumed under {now}: {noise} draws from a "
            "random state of each process"
        )


RANKS = ["rng_state_0.pth", "rng_state_1.pth"]
STATES = [f"global_step3/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
PARTS = [f"global_step3/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in (0, 1)]
EARLIER = [
    ([], None),
    (["optimizer.pt", "rng_state.pth"], Launch("single", 1)),
    (["optimizer.pt", *RANKS], Launch("ddp", 2)),
    ([*STATES, "global_step3/mp_rank_00_model_states.pt", *RANKS], Launch("zero1 or zero2", 2)),
    ([f"global_step3/bf16_{s.partition('/')[2]}" for s in STATES] + RANKS, Launch("zero1 or zero2", 2)),
    ([*STATES, *PARTS, *RANKS], Launch("zero3", 2)),
    ([STATES[0], PARTS[0], "rng_state.pth"], Launch("zero3", 1)),
    (["optimizer.bin", "pytorch_model_fsdp.bin", *RANKS], Launch("fsdp2", 2)),
    (["global_step3/mp_rank_00_model_states.pt", *RANKS], Launch("zero0", 2)),
]


@pytest.mark.parametrize(("files", "launch"), EARLIER)
def test_a_checkpoint_of_an_earlier_version(recipe, tmp_path, under, caplog, files, launch):
    """Its files say what saved it, and so does a line of the log."""
    run, asked = RunDir(tmp_path / "run"), load(recipe)
    path = run.checkpoints / "step-000003"
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).touch()
    path.mkdir(parents=True, exist_ok=True)
    old = {"step": 3, "resumable": True, "recipe_hash": recipe_hash(asked)}
    (path / FACTS).write_text(json.dumps(old))
    (path / MARKER).touch()
    assert saved_under(path, old) == launch
    under(Launch("zero2", 2))
    caplog.set_level("INFO")
    if launch is None or "zero2" in launch.engine:
        refuse_other_engine(run, asked)
    else:
        with pytest.raises(
            RequestError, match=f"saved under {launch} and cannot be resumed under ZeRO-2 on 2"
        ):
            refuse_other_engine(run, asked)
    assert (f"by its files, {launch}" in caplog.text) == (launch is not None)
    run.update(steps=3)
    refuse_other_engine(run, asked)  # nothing is left to train


def test_an_engine_that_no_file_tells(recipe, tmp_path, under):
    """Then run.json does; where nothing does, it is not guessed."""
    run, asked = RunDir(tmp_path / "run"), load(recipe)
    path, old = run.checkpoints / "step-000003", {"step": 3, "resumable": True}
    (path / "global_step3").mkdir(parents=True)
    under(Launch("zero2", 2))
    with pytest.raises(
        OtherLaunch, match="does not say under which engine it was saved, .*under ZeRO-2 on 2"
    ):
        refuse(path, old, asked, 5)
    refuse(path, old, asked, 3)  # nothing is left to train
    run.update(engine="zero2", world_size=2)
    refuse(path, old, asked, 5)
    run.update(engine="zero3")
    with pytest.raises(OtherLaunch, match="was saved under ZeRO-3 on 2 processes and cannot"):
        refuse(path, old, asked, 5)


def test_dropout_below_an_adapter(recipe, tmp_path, under):
    """Of the model that the adapters are on in the end, and, once it is loaded, of the model itself."""
    place = tiny_model(tmp_path / "base", attention_dropout=0.1)
    for folder, base in (("first", place), ("second", tmp_path / "first")):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(place), LoraConfig(target_modules=["q_proj"])
        )
        model.save_pretrained(tmp_path / folder)
        file = tmp_path / folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
    before, lora = Launch("ddp", 2), "model.lora={r: 4}"
    under(Launch("single", 1))
    words = "attention_dropout of the model draws from a random state"
    for init in (place, tmp_path / "first", tmp_path / "second"):
        asked = load(recipe, [lora, f"model.init={init}"])
        assert words in obstacle(tmp_path / "run", facts(before), asked)
    unknown = load(recipe, [lora, f"model.init={tmp_path / 'gone'}"])
    assert obstacle(tmp_path / "run", facts(before), unknown) is None
    assert words in obstacle(tmp_path / "run", facts(before), unknown, model)
    plain = AutoModelForCausalLM.from_pretrained(place, attention_dropout=0.0)
    assert obstacle(tmp_path / "run", facts(before), unknown, plain) is None
    phi = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "phi", kind="phi", resid_pdrop=0.1))
    assert "(dropout) of the model" in obstacle(tmp_path / "run", facts(before), unknown, phi)


def written(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below `folder` but locks, when it was written, and its hash."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".lock")]
    return {str(file): (file.stat().st_mtime_ns, hash_of(file)) for file in files}


@pytest.mark.slow
def test_zero2_is_resumed_under_zero2_only(recipe, launch, root, environment, tmp_path):
    overrides = ["name=zero", *SETTINGS]
    case = {"name": "zero", "recipe": str(recipe), "overrides": overrides}
    run = Path(launch([case], "zero2.yaml")["zero"]["run"])
    last, before = run / "checkpoints" / "step-000005", run / "checkpoints" / "step-000003"
    known = json.loads((before / FACTS).read_text())
    assert (known["engine"], known["world_size"]) == ("zero2", 2)
    whole, logged = load_file(last / "model.safetensors"), read_jsonl(run / "metrics.jsonl")
    shutil.rmtree(last)
    kept = written(run)
    config, command = on_cpu(root / "launch" / "cpu2.yaml", tmp_path), ("-m", "posttrain.sft", str(recipe))
    done = accelerate(config, *command, *overrides, environment=environment, cwd=tmp_path, timeout=200)
    said, _, after = done.stderr.partition("error: ")
    assert after.splitlines()[0] == (
        f"{before} was saved under ZeRO-2 on 2 processes and cannot be resumed under DDP on 2 processes: the "
        "state of the optimizer cannot be taken over. Resume with the launch config and the number of "
        "processes that saved it; or begin a new run from its weights alone: name=... "
        f"model.init={before}"
    )
    assert "Traceback" not in said and re.search(r"exitcode\s*: 2", after)
    assert written(run) == kept

    launch([case], "zero2.yaml")
    resumed = load_file(last / "model.safetensors")
    assert max(float((resumed[k] - whole[k]).abs().max()) for k in whole) <= 1e-6
    again = read_jsonl(run / "metrics.jsonl")
    for name in ("step", "loss", "grad_norm", "learning_rate"):
        assert [row[name] for row in again] == pytest.approx([row[name] for row in logged], rel=1e-5)


@pytest.mark.slow
def test_the_one_before_a_damaged_checkpoint_is_of_another_engine(recipe, tmp_path):
    """Found once the files are read; still nothing is set aside, and no line is removed."""
    case = {"stage": "sft", "recipe": str(recipe), "overrides": ["name=mixed", *SIZES, *SFT]}
    run = alone(case)
    edit(run / "checkpoints" / "step-000003", True, engine="zero2", world_size=2)
    flip(run / "checkpoints" / "step-000005" / "model.safetensors", 0.5)
    kept = written(run)
    with pytest.raises(RequestError, match="step-000003 was saved under ZeRO-2 on 2 .* under one process"):
        alone(case)
    assert written(run) == kept


@pytest.mark.slow
def test_a_trained_run_lacks_what_another_engine_would_measure(recipe, caplog):
    heldout = "evaluate.heldout={share: 0.25, every_steps: 3}"
    overrides = ["name=ended", "train.max_steps=4", heldout, *SIZES]
    case = {"stage": "sft", "recipe": str(recipe), "overrides": overrides}
    run = alone(case)
    (run / "metrics.jsonl").unlink()
    edit(run / "checkpoints" / "step-000004", True, engine="zero2", world_size=2)
    alone(case)
    assert "held-out loss of step-000004 is not measured: it was saved under ZeRO-2" in caplog.text
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_one_process_and_ddp_resume_each_other(recipe, launch, tiny, tmp_path):
    """SFT and RLVR begun by one process and ended by two, and the reverse, equal the run of one process."""
    (tmp_path / "sampled").mkdir()
    sampled = write_recipe(tmp_path / "sampled", tiny)
    parts = [("sft", recipe, SFT), ("rlvr", sampled, [*CASES["dapo"], "train.max_steps=4"])]
    cases, wholes = [], {}
    for stage, path, settings in parts:
        for name in (f"{stage}-one", f"{stage}-two"):
            overrides = [f"name={name}", f"output_dir={tmp_path}", *SIZES, *settings]
            cases.append({"name": name, "stage": stage, "recipe": str(path), "overrides": overrides})
        run = alone(cases[-2])
        last = all_complete(run / "checkpoints")[-1].path
        wholes[stage] = (load_file(last / "model.safetensors"), read_jsonl(run / "metrics.jsonl"))
        shutil.rmtree(last)
    launch(cases, "cpu2.yaml")
    for case in cases:
        run = tmp_path / case["name"]
        if case["name"].endswith("two"):
            shutil.rmtree(all_complete(run / "checkpoints")[-1].path)
            alone(case)
        before, last = all_complete(run / "checkpoints")[-2:]
        sizes = [c.facts()["world_size"] for c in (before, last)]
        assert sizes == ([2, 1] if case["name"].endswith("two") else [1, 2])
        weights, logged = wholes[case["stage"]]
        ended = load_file(last.path / "model.safetensors")
        assert max(float((ended[k] - weights[k]).abs().max()) for k in weights) <= 1e-5
        rows = read_jsonl(run / "metrics.jsonl")
        for name in ("step", "loss", "grad_norm", "learning_rate"):
            assert [row[name] for row in rows] == pytest.approx([row[name] for row in logged], rel=1e-4)


def alone(case: dict) -> Path:
    """Trains `case` in this process; its run."""
    stage = importlib.import_module(f"posttrain.{case['stage']}")
    return stage.train(load_stage(case["recipe"], case["overrides"], case["stage"]), None).path
