"""Two processes of every engine score their checkpoints as one process does, and so do reward models: what is
scored, or scores, is loaded whole beside the sharded model that trains. Adapters and experts are resumed so,
too.

Under ZeRO-3 every weight is sharded: see `tests.tiny.on_cpu`.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from posttrain.base.files import read_jsonl
from posttrain.recipe import load_stage
from posttrain.stages.launch import scorer_for
from tests.rewards.test_reward_model import make
from tests.tiny import RECIPE, accelerate, tiny_model
from tests.training import rollouts
from tests.training.preferences import far, weights

SETTINGS = [
    "train.max_steps=2",
    "train.per_device_train_batch_size=4",
    "checkpoints.save_steps=1",
    "checkpoints.keep_last=null",
]
TASK = {"name": "arithmetic", "options": {"digits": 1, "train_size": 40, "test_size": 5}}
SCORED = ["evaluate.at_start=true", f"evaluate.tasks={json.dumps([TASK])}"]
LORA = ["model.lora={r: 4, target_modules: [q_proj, lm_head]}", "train.learning_rate=0.05"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory, tiny, rows_file) -> tuple[dict, dict[str, Path]]:
    """Name -> (stage, recipe, overrides), and the run of one process."""
    folder = tmp_path_factory.mktemp("scored")
    sft = folder / "sft.yaml"
    sft.write_text(RECIPE.format(out=folder, model=tiny, rows=rows_file))
    sampled = rollouts.write_recipe(folder, tiny)
    judged = {"name": "reward_model", "options": {"model": make(folder / "reward"), "squash": False}}
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    experts = tiny_model(folder / "experts", kind="qwen3_moe", **shape)
    even = {"name": "tests.training.rewards_for_rlvr:even", "label": "even"}
    cases = {
        "full": ("sft", sft, [*SETTINGS, *SCORED]),
        "lora": ("sft", sft, [*SETTINGS, *SCORED, *LORA]),
        "moe": ("sft", sft, [*SETTINGS, f"model.init={experts}", "train.learning_rate=0.2"]),
        "rewarded": ("rlvr", sampled, [*SETTINGS, f"rewards={json.dumps([even, judged])}"]),
    }
    whole = {}
    for name, (stage, recipe, overrides) in cases.items():
        asked = load_stage(recipe, [f"name={name}", *overrides], stage)
        whole[name] = importlib.import_module(f"posttrain.{stage}").train(asked, scorer_for).path
    return cases, whole


def scores(run: Path) -> dict[tuple, float]:
    return {(r["checkpoint"], r["task"], r["metric"]): r["value"] for r in read_jsonl(run / "scores.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=pytest.mark.exhaustive), "zero3"])
def test_two_processes_score_as_one(cases, launch, tmp_path, engine):
    asked = [
        {
            "name": name,
            "stage": stage,
            "recipe": str(recipe),
            "overrides": [
                f"name={name}",
                *overrides,
                "train.per_device_train_batch_size=2",
                f"output_dir={tmp_path}",
            ],
            "again": name in ("lora", "moe"),
        }
        for name, (stage, recipe, overrides) in cases[0].items()
        if (name, engine) != ("moe", "zero3")  # refused
    ]
    results = launch(asked, {"ddp": "cpu2.yaml"}.get(engine, f"{engine}.yaml"))
    for name, found in results.items():
        whole = cases[1][name]
        assert (found["world_size"], found["engine"]) == (2, engine)
        assert found["sharded"] == (engine == "zero3")
        run = Path(found["run"])
        assert far(weights(run, 2), weights(whole, 2)) <= 1e-5
        if name == "rewarded":
            assert rollouts.rollouts(run) == rollouts.rollouts(whole)
        if name in ("rewarded", "moe"):
            continue
        ours, theirs = scores(run), scores(whole)
        assert {key[0] for key in ours} == {"step-000000", "step-000001", "step-000002"}
        assert ours == pytest.approx(theirs, rel=1e-5), name
        assert not (run / "unscored.jsonl").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_scoring_that_fails_on_every_checkpoint_fails_the_run(root, recipe, environment):
    """On both ranks, with the exit code and the sentence of a failed run."""
    folder = recipe.parent
    problem = {"question": "Count. " * 600, "answer": "#### 7"}  # longer than the model
    (folder / "long.jsonl").write_text(json.dumps(problem) + "\n")
    task = {"name": "gsm8k", "path": str(folder / "long.jsonl")}
    settings = [*SETTINGS, "train.per_device_train_batch_size=2", f"evaluate.tasks={json.dumps([task])}"]
    config, command = root / "launch" / "cpu2.yaml", ("-m", "posttrain.sft", str(recipe), *settings)
    done = accelerate(config, *command, environment=environment, cwd=folder, timeout=200)
    assert done.returncode == 1
    assert "error: trained to the end; scoring of step-000002 on gsm8k failed: " in done.stderr
    info = json.loads((folder / "case" / "run.json").read_text())
    assert info["status"] == "failed" and "2 more failed" in info["error"]
    assert not (folder / "case" / "scores.jsonl").exists()
