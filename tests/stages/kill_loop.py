"""Runs a command in forks of this process, which has imported all, and kills them with -9 at random moments.

    python -m tests.stages.kill_loop JOB.json OUT.json

JOB.json: {"module", "argv", "kills", "seed", "ranks"}; "{name}" in argv is the name of the run. The run
`whole` is never killed. Others are started again by the same command until they end; after `kills` kills the
last one may end, too. OUT.json, renewed after each run: {"runs": names, "kills": [{"run", "seconds", "place",
"late"}], "errors", "orphans", "seconds" of a run that is not killed}.

Left out: comparing the runs (test_kill_loops.py).
"""

from __future__ import annotations

import functools
import importlib
import json
import mmap
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
from accelerate.state import AcceleratorState

HANGS_S = 120.0
"""Seconds after which a command that should have ended counts as hanging."""
LAUNCHER_S = 30.0
"""Seconds that torchrun leaves the other ranks."""
MARK = "KILL_LOOP"
"""Variable by which processes are known that a killed command has left."""
PLACES = {
    "preparing rows": ("posttrain.stages.prepared:prepare", "posttrain.stages.sample:prepare_prompts"),
    "loading": ("posttrain.stages.train:load_model", "posttrain.stages.sample:load_generator"),
    "recording the start": ("posttrain.stages.train:_record_start", "posttrain.stages.sample:_record_start"),
    "resuming": ("posttrain.stages.train:take_up",),
    "training": ("transformers:Trainer.train",),
    "sampling": (
        "posttrain.generation.local:TransformersGenerator.generate",
        "posttrain.stages.sample:sample",
    ),
    "checking": ("posttrain.rewards.compose:Composite.grade", "posttrain.stages.sample:score"),
    "a file of a chunk": ("posttrain.stages.chunks:Chunks.write",),
    "saving": ("posttrain.training.saving:CheckpointWriter._write_whole",),
    "naming": ("posttrain.rundir.checkpoints:finish",),
    "rotating": ("posttrain.training.callbacks:ScoreCallback.rotate",),
    "scoring": ("posttrain.stages.launch:score_checkpoint",),
    "products": ("posttrain.pairs:PairsStage.finish",),
    "card and report": ("posttrain.stages.launch:model_card", "posttrain.stages.launch:write_report"),
}
"""Where a kill fell: the innermost of these functions that ran."""
NAMES = ["between", *PLACES]


def without_figures() -> None:
    """Reports have no figures from now on, which take as long as the training of a tiny model."""
    from matplotlib.figure import Figure

    from posttrain.report import svg

    Figure.savefig = lambda *args, **kwargs: None
    svg.inline = lambda *args: ""


def watch(place: mmap.mmap, rank: int) -> None:
    """From now on `place[rank]` is the index of the name in `NAMES` of what this process does."""
    for number, (_, functions) in enumerate(PLACES.items(), 1):
        for path in functions:
            module, _, name = path.partition(":")
            *owners, name = name.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            setattr(owner, name, _watched(getattr(owner, name), number, place, rank))


def _watched(plain: Callable, number: int, place: mmap.mmap, rank: int) -> Callable:
    @functools.wraps(plain)
    def watched(*args, **kwargs):
        before, place[rank] = place[rank], number
        try:
            return plain(*args, **kwargs)
        finally:
            place[rank] = before

    return watched


def start(
    command: Callable, argv: list[str], log: Path, seconds: float | None, ranks: int = 1, victim: int = 0
) -> tuple[int, float, str]:
    """Runs the command in a fork for each rank; `victim` is killed after `seconds`, and then the others are
    ended as torchrun does it: SIGTERM, `LAUNCHER_S` later SIGKILL.

    Exit code of the victim (negative: the signal), how long all of it took, the place where the victim ended.
    """
    place, begun = mmap.mmap(-1, ranks), time.monotonic()
    port = str(_free_port())
    children = []
    for rank in range(ranks):
        if child := os.fork():
            children.append(child)
            continue
        code = 99
        try:
            os.dup2(os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            if ranks > 1:
                os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
                os.environ |= {name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            watch(place, rank)
            code = command(argv)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = _end(children[victim], HANGS_S if seconds is None else seconds, signal.SIGKILL)
    for child in children[:victim] + children[victim + 1 :]:
        other = _end(child, HANGS_S if code == 0 else 0, signal.SIGTERM, LAUNCHER_S)
        code = code or other
    return code, time.monotonic() - begun, NAMES[place[victim]]


def _end(child: int, seconds: float, number: int, more: float | None = None) -> int:
    """The exit code of `child`, which after `seconds` gets the signal `number`, `more` later SIGKILL."""
    handle = os.pidfd_open(child)
    if not select.select([handle], [], [], seconds)[0]:
        os.kill(child, number)
        if more is not None and not select.select([handle], [], [], more)[0]:
            os.kill(child, signal.SIGKILL)
    os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def orphans() -> list[str]:
    """Processes that a killed command has left and that do not end by themselves; they are killed.

    A worker of a reward that was still importing ends once it sees that its parent is gone. Those of this
    process, which has run the command as well, stay.
    """
    until = time.monotonic() + 10
    while found := [p for p in psutil.process_iter() if _marked(p)]:
        if time.monotonic() > until:
            said = [" ".join(p.cmdline()) for p in found]
            for process in found:
                process.kill()
            return said
        time.sleep(0.02)
    return []


def _marked(process: psutil.Process) -> bool:
    try:
        if os.getpid() in (process.pid, process.ppid()):
            return False
        return process.environ().get(MARK) == os.environ[MARK]
    except psutil.Error:
        return False


def loop(job: dict, out: Path) -> None:
    command, ranks = importlib.import_module(job["module"]).main, job["ranks"]
    log, dice = out.with_name("log"), random.Random(job["seed"])

    def run(name: str, seconds: float | None = None) -> tuple[int, float, str]:
        argv = [part.replace("{name}", name) for part in job["argv"]]
        return start(command, argv, log, seconds, ranks, dice.randrange(ranks))

    said = lambda: {rank: Path(f"{log}.{rank}").read_text()[-2000:] for rank in range(ranks)}  # noqa: E731
    assert command([part.replace("{name}", "whole" if ranks == 1 else "alone") for part in job["argv"]]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("again",) if ranks == 1 else ("whole", "again"):
        code, whole_s, _ = run(name)
        assert code == 0, said()
    found = {"runs": ["again"], "kills": [], "errors": [], "orphans": [], "seconds": whole_s}
    while len(found["kills"]) < job["kills"] and not found["errors"]:
        name = f"killed-{len(found['runs'])}"
        found["runs"].append(name)
        while True:
            left = job["kills"] - len(found["kills"])
            moment = dice.random() * whole_s if left else None
            code, seconds, place = run(name, moment)
            found["orphans"] += orphans()
            if code == 0:
                break
            if code != -signal.SIGKILL or not left:
                found["errors"].append({"run": name, "code": code, "said": said()})
                break
            late = seconds - moment if ranks > 1 else 0
            found["kills"].append({"run": name, "seconds": moment, "place": place, "late": late})
        out.write_text(json.dumps(found))


def main(job: str, out: str) -> None:
    without_figures()
    loop(json.loads(Path(job).read_text()), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
