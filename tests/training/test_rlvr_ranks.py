"""The RLVR stage on two processes equals one: the same rollouts token for token, advantages, losses,
weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.rundir.checkpoints import all_complete
from tests.training.preferences import far, rows, weights
from tests.training.rollouts import rollouts, train, write_recipe
from tests.training.test_rlvr import LORA, rewarded

CASES = {
    # two steps a batch of rollouts, refills of an odd number of prompts, a frozen reference
    "dapo": [
        "policy={beta: 0.1}",
        rewarded("even", sides=4),
        "rollout={num_generations: 2, max_new_tokens: 6, refill: 2, steps_per_generation: 2}",
        "checkpoints.save_steps=2",
        "checkpoints.keep_last=null",
    ],
    # an adapter, also on the head; its start is the reference; checks that fail
    "grpo": [
        "policy={loss: grpo, beta: 0.1}",
        LORA,
        rewarded("fails"),
        "rollout={num_generations: 4, max_new_tokens: 6, max_failed: 0.9}",
    ],
    # two passes: ratios leave 1
    "gspo": [
        "policy={loss: gspo, num_iterations: 2, advantage: leave_one_out}",
        "rollout={num_generations: 4, max_new_tokens: 6}",
    ],
}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, tiny):
    """One process: the recipe, and the run of every case."""
    path = write_recipe(tmp_path_factory.mktemp("wholes"), tiny)
    micro = "train.per_device_train_batch_size=4"
    return path, {
        name: train(path, f"name={name}", micro, "train.max_steps=4", *more) for name, more in CASES.items()
    }


def asked(recipe: Path, folder: Path, cases: dict[str, list[str]], again: str = "") -> list[dict]:
    """`cases` for two processes; runs go below `folder`. The one named `again` resumes from its last
    checkpoint but one."""
    settings = [
        "train.per_device_train_batch_size=2",
        "train.max_steps=4",
        f"data.cache_dir={folder}",
        f"output_dir={folder}",
    ]
    return [
        {
            "name": n,
            "stage": "rlvr",
            "recipe": str(recipe),
            "overrides": [f"name={n}", *settings, *more],
            "again": n == again,
        }
        for n, more in cases.items()
    ]


def equal(run: Path, whole: Path, steps: int = 4) -> None:
    """Rollouts token for token with their advantages, losses and weights to 1e-5, the same place to go on
    from."""
    assert rollouts(run) == rollouts(whole)
    ours, theirs = ({row["step"]: row for row in rows(p)} for p in (run, whole))
    assert ours.keys() == theirs.keys() == set(range(1, steps + 1))
    for step, b in theirs.items():
        for key in ("loss", "entropy", "clip_ratio/high_mean", "kl"):
            assert key in b or key == "kl"
            near = abs(ours[step].get(key, 0) - b.get(key, 0)) <= 1e-5 * max(1.0, abs(b.get(key, 0)))
            assert near, (run.name, key, ours[step], b)
        for key in ("reward", "groups/sampled", "checks_failed", "completions/mean_length"):
            assert ours[step].get(key) == b.get(key), (run.name, step, key)
    assert far(weights(run, steps), weights(whole, steps)) <= 1e-5
    a, b = (all_complete(p / "checkpoints")[-1].facts() for p in (run, whole))
    assert (a["prompts"], a["epoch"]) == (b["prompts"], b["epoch"])


@pytest.mark.slow
@pytest.mark.parametrize(("config", "engine"), [("cpu2.yaml", "ddp"), ("zero3.yaml", "zero3")])
def test_two_processes_equal_one(wholes, launch, tmp_path, config, engine):
    """A sample flips where its number lies within rounding of the border of two tokens (estimated: 1 in
    20,000 tokens), so completions are short. The first case also loses its last checkpoint and resumes."""
    recipe, runs = wholes
    cases = {n: more for n, more in CASES.items() if engine == "ddp" or n != "gspo"}  # time
    results = launch(asked(recipe, tmp_path, cases, again="dapo"), config)
    assert results.keys() == cases.keys()
    for name, found in results.items():
        whole = runs[name]
        assert (found["world_size"], found["engine"]) == (2, engine)
        assert found["sharded"] or engine != "zero3", "whole weights on every rank would prove nothing"
        equal(Path(found["run"]), whole.path)
    again = tmp_path / "dapo"
    assert [row["step"] for row in rows(again)] == [1, 2, 3, 4]
    assert far(weights(again, 4), load_file(again / "first.safetensors")) <= 1e-6
    sampled = [r for kept in rollouts(again).values() for r in kept]
    assert {r["round"] for r in sampled} >= {0, 1}
    assert rows(runs["grpo"])[-1]["kl"] > 0 < rows(runs["grpo"])[-1]["checks_failed"]
