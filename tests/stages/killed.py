"""Runs the RLVR command again and again, ended by a signal in the middle of things: the first run in this
process, which has then imported all, every other one in a child that it forks.

    python -m tests.stages.killed JOBS.json OUT.json

JOBS.json: [{"name", "argv", "run", "signal", "at", "after", "call"}]. The child sends itself `signal` when
the function that `at` names is called for the `call`-th time while the run directory has `after` files of
rollouts; without these it is the plain command. OUT.json: exit code (negative: the signal) and stderr of each
by name.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path


def places() -> dict[str, tuple]:
    """Of each place the function that is called in it."""
    import torch

    from posttrain.generation.local import TransformersGenerator
    from posttrain.rewards.engine import batch
    from posttrain.rundir import checkpoints

    return {
        "generate": (TransformersGenerator, "_batch"),
        "score": (batch, "call"),
        "step": (torch.optim.AdamW, "step"),
        "save": (checkpoints, "finish"),
    }


def hit(job: dict) -> None:
    """From now on the call that `job` names sends this process the signal first."""
    owner, name = places()[job["at"]]
    plain, folder, count = getattr(owner, name), Path(job["run"]) / "rollouts", 0

    def counted(*args, **kwargs):
        nonlocal count
        count += len(list(folder.glob("step-*"))) == job["after"]
        if count == job["call"]:
            os.kill(os.getpid(), job["signal"])
        return plain(*args, **kwargs)

    setattr(owner, name, counted)


def forked(command: Callable[[list[str]], int], job: dict, log: Path, hit: Callable[[dict], None]) -> int:
    """The exit code of a job in a child, whose errors go to `log`."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        if "at" in job:
            hit(job)
        code = command(job["argv"])
    finally:
        os._exit(code)


def main(jobs: str, out: str) -> None:
    from posttrain.rlvr import main as command

    first, *others = json.loads(Path(jobs).read_text())
    found = {first["name"]: {"code": command(first["argv"]), "stderr": ""}}
    for job in others:
        log = Path(out).with_name(f"{len(found)}.log")
        code = forked(command, job, log, hit)
        found[job["name"]] = {"code": code, "stderr": log.read_text(errors="replace")}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
