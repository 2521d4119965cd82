"""Runs a pipeline again and again, its process killed with -9 at random moments, until it is finished.

    python -m tests.stages.killed_pipeline PIPELINE.yaml KILLS SEED OUT.json

Everything is imported once; `posttrain run` and its stages are forks of this process. OUT.json: for each kill
its moment, the state of the stages then, the seconds until nothing ran any more; and the last exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil

from posttrain import dpo, pairs, sft
from posttrain.stages import child, parent, schedule

STAGES = {"posttrain.sft": sft, "posttrain.pairs": pairs, "posttrain.dpo": dpo}
PIDS = Path(os.environ.get("KILLED_PIDS", "/nonexistent"))


def fork(work, log=None, environment: dict[str, str] | None = None) -> int:
    """The child that runs `work` in a session of its own."""
    if forked := os.fork():
        return forked
    code = 99
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
        if log is not None:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os.closerange(3, 256)  # as when a program is started: the locks of the parent are its own
        os.environ.update(environment or {})
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Forked:
    """In place of `subprocess.Popen`."""

    def __init__(self, command, stdout, env, **_) -> None:
        stage = STAGES[command[-2]]
        self.pid = fork(lambda: stage.main([command[-1]]), stdout, env)
        (PIDS / str(self.pid)).touch()
        self.returncode = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def alive() -> list[int]:
    """The stages that run; a fork's environment is not to be seen from outside, so files name them."""
    found = []
    for file in PIDS.iterdir():
        with contextlib.suppress(psutil.Error):
            if psutil.Process(int(file.name)).status() != psutil.STATUS_ZOMBIE:
                found.append(int(file.name))
    return found


def run(path: str) -> int:
    from posttrain.cli import main

    return main(["run", path])


def states(root: Path) -> str:
    with contextlib.suppress(OSError):
        return " ".join(s["status"] for s in json.loads((root / "pipeline.json").read_text())["stages"])
    return "not started"


def done(root: Path) -> int:
    """Lines of metrics and scores, parts, stages started."""
    files = [*root.glob("*/metrics.jsonl"), *root.glob("*/scores.jsonl")]
    lines = sum(file.read_bytes().count(b"\n") for file in files)
    return lines + len(list(root.glob("*/parts/chunk-*"))) + len(list(PIDS.iterdir()))


def forked_stages() -> None:
    """From now on stages are forks of this process, and looked at more often."""
    child.subprocess = SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT)
    parent._orphans = lambda folder: alive()
    schedule.POLL_S = parent.POLL_S = 0.1
    PIDS.mkdir()


def main(path: str, kills: str, seed: str, out: str) -> None:
    forked_stages()
    folder, rng, table = Path(path).parent, random.Random(int(seed)), []
    log = (folder / "run.log").open("ab")
    begun = time.monotonic()
    whole = fork(lambda: run(str(folder / "whole.yaml")), log)
    code = os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1])
    span = time.monotonic() - begun
    root = folder / "cut"
    for _ in range(int(kills)):
        started = time.monotonic()
        process = fork(lambda: run(path), log)
        # after some lines, chunks and started stages: the time that they take varies too much
        goal = done(root) + rng.randint(1, 5)
        while done(root) < goal and os.waitpid(process, os.WNOHANG)[0] == 0:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        killed, at = time.monotonic(), states(root)
        # on every other kill the same command is given at once, and waits itself
        while len(table) % 2 == 0 and alive():
            time.sleep(0.01)
            assert time.monotonic() < killed + 120
        moment = round(killed - started, 2)
        table.append({"at": moment, "done": goal, "stages": at, "left": round(time.monotonic() - killed, 2)})
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
    last = fork(lambda: run(path), log)
    found = {"whole": code, "span": round(span, 2), "kills": table}
    found["code"] = os.waitstatus_to_exitcode(os.waitpid(last, 0)[1])
    Path(out).write_text(json.dumps(found | {"left": alive()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
