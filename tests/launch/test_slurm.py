"""launch/slurm.sh under a real Slurm with two nodes: what each node runs, a whole run, a typo, a stop."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from posttrain.base.files import read_jsonl
from posttrain.rundir import checkpoints as ckpt
from tests.launch.conftest import wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def echo(tmp_path) -> str:
    """A stand-in for python that prints its arguments and succeeds."""
    path = tmp_path / "echo"
    path.write_text('#!/bin/bash\necho called: "node=$SLURM_NODEID" "${@@Q}"\n')
    path.chmod(0o755)
    return str(path)


def launches(text: str) -> list[dict[str, str]]:
    """Options of each `accelerate launch` line of the log, by node."""
    found = []
    for line in text.splitlines():
        words = shlex.split(line)
        if "accelerate.commands.accelerate_cli" in words:
            options = {a: b for a, b in zip(words, words[1:], strict=False) if a.startswith("--")}
            found.append(options | {"node": words[1], "last": words[-1]})
    return sorted(found, key=lambda options: options["node"])


def test_every_node_is_told_its_own_rank(cluster, echo):
    """Two nodes of two GPUs: 4 processes, machine ranks 0 and 1, one address, the arguments unchanged."""
    job = cluster.submit("a recipe.yaml", "name=two words", options=("--gpus-per-node=2",), PYTHON=echo)
    assert job.wait(30) == ("COMPLETED", "0:0"), job.text()
    assert "check --ranks 4 a recipe.yaml name=two words" not in job.text()  # its output is not logged
    both = launches(job.text())
    assert [o["node"] for o in both] == ["node=0", "node=1"], job.text()
    assert [o["--machine_rank"] for o in both] == ["0", "1"]
    assert {o["--num_machines"] for o in both} == {"2"}
    assert {o["--num_processes"] for o in both} == {"4"}
    assert {o["--main_process_ip"] for o in both} == {cluster.nodes[0]}
    assert len({o["--main_process_port"] for o in both}) == 1
    assert {o["last"] for o in both} == {"name=two words"}


def test_processes_by_node(cluster, echo):
    """Without GPUs one process per node; PROCESSES_PER_NODE decides where it is set."""
    jobs = {
        "2": cluster.submit("recipe.yaml", PYTHON=echo),
        "6": cluster.submit("recipe.yaml", PYTHON=echo, PROCESSES_PER_NODE="3"),
    }
    for expected, job in jobs.items():
        assert job.wait(30) == ("COMPLETED", "0:0"), job.text()
        assert {o["--num_processes"] for o in launches(job.text())} == {expected}


@pytest.mark.slow
def test_a_run_over_two_nodes(cluster, tiny_recipe):
    job = cluster.submit(str(tiny_recipe), "name=whole", "train.log_samples=true")
    assert job.wait(90) == ("COMPLETED", "0:0"), job.text()
    run = tiny_recipe.parent / "whole"
    info = json.loads((run / "run.json").read_text())
    assert (info["status"], info["world_size"], info["engine"]) == ("finished", 2, "ddp")
    rows = read_jsonl(run / "samples.jsonl")
    seen = {(r["step"], r["rank"]): {tuple(i) for i in r["ids"]} for r in rows}
    assert set(seen) == {(step, rank) for step in (1, 2, 3, 4) for rank in (0, 1)}
    for step in (1, 2, 3, 4):  # each rank had its own half of the global batch
        assert len(seen[step, 0]) == len(seen[step, 1]) == 4 and not seen[step, 0] & seen[step, 1]
    assert "whole: step 4/4" in job.text()


@pytest.mark.slow
def test_usr1_saves_and_stops(cluster, tiny_recipe):
    """The signal that Slurm sends before the time limit reaches training on every node."""
    job = cluster.submit(str(tiny_recipe), "name=stopped", "train.max_steps=100000", "train.log_samples=true")
    run: Path = tiny_recipe.parent / "stopped"
    wait_until((run / "samples.jsonl").exists, 60, lambda: f"{job.facts()}\n{job.text()[-3000:]}")
    cluster.run("scancel", "--signal=USR1", job.id)
    state, code = job.wait(60)
    assert state == "FAILED" and code != "0:0", job.text()
    assert "User defined signal" not in job.text()
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "stopped", info
    last = ckpt.all_complete(run / "checkpoints")[-1]
    assert 0 < last.step < 100000 and last.facts()["resumable"]
    assert f"stopped after step {last.step} of 100000; run the same command to resume" in job.text()


REFUSED = [
    ("{recipe} train.learning_rat=1e-3", {}, r"train.learning_rat\b.*learning_rate"),
    ("{recipe} train.global_batch_size=7 train.per_device_train_batch_size=7", {}, "global_batch_size"),
    ("", {}, "usage: sbatch .* RECIPE"),
    ("{recipe}", {"ACCELERATE_CONFIG": "launch/ddq.yaml"}, "ACCELERATE_CONFIG=launch/ddq.yaml: no such file"),
    ("{recipe}", {"PYTHON": "/no/python"}, "/no/python: No such file"),
]


def test_bad_requests_end_in_one_sentence_before_the_nodes_start(cluster, tiny_recipe):
    jobs = [
        cluster.submit(*line.format(recipe=tiny_recipe).split(), **variables)
        for line, variables, _ in REFUSED
    ]
    for job, (line, _, expected) in zip(jobs, REFUSED, strict=True):
        state, code = job.wait(60)
        assert state == "FAILED" and code in ("2:0", "127:0"), (line, code, job.text())
        assert re.search(expected, job.text()), job.text()
        assert len(job.text().splitlines()) == 1, job.text()
