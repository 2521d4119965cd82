"""Runs stages in children that this process forks after one import, each ended by a signal in one phase.

    python -m tests.stages.signalled JOBS.json OUT.json

JOBS.json: [{"name", "module", "argv", "run", "signal", "at", "call"}]. The child sends itself `signal` in the
`call`-th call of the function that `at` names; without these it is the plain command. OUT.json: of each job
the exit code, stderr, and the seconds from the signal to the end.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path

from tests.stages.killed import forked


def places() -> dict[str, tuple]:
    """Of each phase a function that is called in it."""
    from posttrain.evaluate import checkpoint
    from posttrain.generation.local import TransformersGenerator
    from posttrain.report import page
    from posttrain.rewards.engine import batch
    from posttrain.rundir import checkpoints
    from posttrain.sft import SftTrainer
    from posttrain.stages import launch, prepared, train
    from posttrain.training.preference import PreferenceTrainer
    from posttrain.training.trainer import RunTrainer

    return {
        "preparing rows": (prepared, "prepare"),
        "loading the model": (train, "load_model"),
        "reference log-probabilities": (PreferenceTrainer, "log_probs"),
        "training step": (RunTrainer, "training_step"),
        "held-out loss": (SftTrainer, "heldout_metrics"),
        "saving": (checkpoints, "finish"),
        "loading to score": (checkpoint, "load_scored"),
        "generation": (TransformersGenerator, "_batch"),
        "rewards": (batch, "call"),
        "report": (launch, "write_report"),
        "report page": (page, "write_report"),
    }


def hit(job: dict) -> None:
    owner, name = places()[job["at"]]
    plain, count = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == job["call"]:
            print(f"SIGNAL {time.time():.3f}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), job["signal"])
        return plain(*args, **kwargs)

    setattr(owner, name, counted)


def run(job: dict, log: Path) -> dict:
    command = importlib.import_module(f"posttrain.{job['module']}").main
    code = forked(command, job, log, hit)
    ended, said = time.time(), log.read_text(errors="replace")
    sent = re.search(r"^SIGNAL ([\d.]+)$", said, re.M)
    file = Path(job.get("run", "")) / "run.json"
    status = json.loads(file.read_text())["status"] if file.is_file() else None
    seconds = ended - float(sent[1]) if sent else None
    return {"code": code, "stderr": said, "seconds": seconds, "status": status}


def main(jobs: str, out: str) -> None:
    for module in ("sft", "dpo", "rlvr", "cli"):
        importlib.import_module(f"posttrain.{module}")
    places()
    found = {}
    for job in json.loads(Path(jobs).read_text()):
        found[job["name"]] = run(job, Path(out).with_name(f"{len(found)}.log"))
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
