"""The RLVR stage on two processes equals one: the same rollouts token for token, advantages, losses, weights."""

from __future__ import annotations

import json

import pytest

from tests.training.preferences import far, rows, weights
from tests.training.rollouts import rollouts, train, write_recipe
from tests.training.test_rlvr import LORA, rewarded

CASES = {
    # two steps a batch of rollouts, refills of an odd number of prompts, a frozen reference
    "dapo": ["policy={beta: 0.1}", rewarded("even", sides=4), "rollout={num_generations: 2, max_new_tokens: 12, refill: 2, steps_per_generation: 2}"],
    # an adapter, also on the head; its start is the reference; checks that fail
    "grpo": ["policy={loss: grpo, beta: 0.1}", LORA, rewarded("fails"), "rollout.max_failed=0.9"],
    # two passes: ratios leave 1
    "gspo": ["policy={loss: gspo, num_iterations: 2, advantage: leave_one_out}"],
}  # fmt: skip


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, tiny):
    """One process: the recipe, and the run of every case."""
    path = write_recipe(tmp_path_factory.mktemp("wholes"), tiny)
    micro = "train.per_device_train_batch_size=4"
    return path, {name: train(path, f"name={name}", micro, "train.max_steps=4", *more) for name, more in CASES.items()}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("config", "engine"), [("cpu2.yaml", "ddp"), ("zero3.yaml", "zero3")])
def test_two_processes_equal_one(wholes, launch, tmp_path, config, engine):
    """Sizes and seeds are such that no sample lies within rounding of another token's interval; advantages are exact."""
    recipe, runs = wholes
    settings = ["train.per_device_train_batch_size=2", "train.max_steps=4", f"data.cache_dir={tmp_path}", f"output_dir={tmp_path}"]  # fmt: skip
    asked = [
        {"name": n, "stage": "rlvr", "recipe": str(recipe), "overrides": [f"name={n}", *settings, *more]}
        for n, more in CASES.items()
    ]  # fmt: skip
    results = launch(asked, config)
    for name, whole in runs.items():
        found = results[name]
        assert (found["world_size"], found["engine"]) == (2, engine)
        assert found["sharded"] or engine != "zero3", (
            "whole weights on every rank would prove nothing"
        )
        assert rollouts(found["run"]) == rollouts(whole), name
        ours, theirs = rows(found["run"]), rows(whole)
        assert len(ours) == len(theirs) == 4
        for a, b in zip(ours, theirs, strict=True):
            keys = ["loss", "entropy", "clip_ratio/high_mean", *(["kl"] if "kl" in b else [])]
            for key in keys:
                assert abs(a[key] - b[key]) <= 1e-5 * max(1.0, abs(b[key])), (name, key, a, b)
            for key in ("reward", "groups/sampled", "checks_failed", "completions/mean_length"):
                assert a.get(key) == b.get(key), (name, key)
        assert far(weights(found["run"], 4), weights(whole, 4)) <= 1e-5
        facts = [json.loads((p / "checkpoints" / "step-000004" / "checkpoint.json").read_text()) for p in (tmp_path / name, whole.path)]  # fmt: skip
        assert facts[0]["prompts"] == facts[1]["prompts"] and facts[0]["epoch"] == facts[1]["epoch"]
    sampled = [r for kept in rollouts(runs["dapo"]).values() for r in kept]
    assert {r["round"] for r in sampled} >= {0, 1}
    assert rows(runs["grpo"])[-1]["kl"] > 0 < rows(runs["grpo"])[-1]["checks_failed"]
