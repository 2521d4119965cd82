"""A stage on several ranks of which one is lost: in a launcher, or with forked ranks after one import.

    accelerate launch --config_file ... tests/stages/lost.py RECIPE [key=value ...]
    python -m tests.stages.lost CASES.json OUT.json

`LOSE=kill:step` says how the last rank ends (a key of `ENDS`), and where. CASES.json: [{"name", "argv",
"lose", "at", "launcher"}]; `launcher`: the other ranks get SIGTERM as soon as one has ended, as from torch's.
OUT.json: of each case the exit codes, what was said, and the seconds between the first end and the last.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

WORLD = 2


def _raise(error: BaseException):
    raise error


def _request():
    from posttrain.errors import RequestError

    raise RequestError("only here")


ENDS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "memory": lambda: _raise(MemoryError()),
    "request": _request,
    "bug": lambda: _raise(KeyError("x")),
    "disk": lambda: _raise(OSError(errno.ENOSPC, "No space left on device", "/x")),
}


def lose(how: str, at: str) -> None:
    """From now on the last rank ends by `how` in its third call of `at`."""
    if int(os.environ["RANK"]) != int(os.environ["WORLD_SIZE"]) - 1:
        return
    from posttrain.models import load
    from posttrain.stages import train
    from posttrain.training.trainer import RunTrainer

    owner, name, after = {
        "step": (RunTrainer, "training_step", 3),
        "save": (RunTrainer, "_write_weights", 1),
        "load": (train, "load_model", 1),
        "score": (load, "load_scored", 1),
    }[at]
    plain, count = getattr(owner, name), 0

    def counted(*args, **options):
        nonlocal count
        count += 1
        if count == after:
            print(f"LOST {time.time():.3f}", file=sys.stderr, flush=True)
            ENDS[how]()
        return plain(*args, **options)

    setattr(owner, name, counted)


def stage(argv: list[str], how: str, at: str) -> int:
    from posttrain.sft import main

    lose(how, at)
    return main(argv)


def fork(case: dict, rank: int, port: int, log: Path) -> int:
    if child := os.fork():
        return child
    code = 99
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(2, 1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = stage(case["argv"], case["lose"], case["at"])
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(case: dict, log: Path) -> dict:
    port = free_port()
    left = {fork(case, rank, port, log): rank for rank in range(WORLD)}
    pids = {rank: pid for pid, rank in left.items()}
    codes, times = {}, []
    while left:
        pid, status = os.wait()
        codes[left.pop(pid)] = os.waitstatus_to_exitcode(status)
        times.append(time.monotonic())
        for other in left if case.get("launcher") else ():
            os.kill(other, signal.SIGTERM)
    said = log.read_text(errors="replace")
    return {"codes": codes, "pids": pids, "said": said, "seconds": times[-1] - times[0]}


def main(cases: str, out: str) -> None:
    import posttrain.sft  # noqa: F401  (once, before the forks)

    found = {}
    for case in json.loads(Path(cases).read_text()):
        found[case["name"]] = run(case, Path(out).with_name(f"{len(found)}.log"))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    if "LOSE" in os.environ:
        sys.exit(stage(sys.argv[1:], *os.environ["LOSE"].split(":")))
    main(*sys.argv[1:])
