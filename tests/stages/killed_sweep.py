"""Runs a sweep again and again, it and its runs killed with -9 at chosen moments, until it is finished.

    python -m tests.stages.killed_sweep FOLDER OUT.json

FOLDER has whole.yaml, which runs to its end first, and cut.yaml. OUT.json: for each kill what was finished
then, with its files, and what was not; and the exit codes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.stages.killed_pipeline import alive, fork, forked_stages, run


def finished(root: Path) -> list[Path]:
    """The runs that have written all: their report comes last."""
    return [file.parent for file in root.glob("*/report.html")]


def saved(root: Path) -> list[Path]:
    """The runs that are not finished and could be resumed."""
    found = {file.parents[2] for file in root.glob("*/checkpoints/step-*/COMPLETE")}
    return sorted(found - set(finished(root)))


MOMENTS: list[Callable[[Path], object]] = [
    lambda root: (root / "sweep.json").exists(),
    saved,
    finished,
    lambda root: finished(root) and saved(root),
    lambda root: len(finished(root)) >= 3 and saved(root),
]


def marks(root: Path) -> dict[str, list[int]]:
    """Inode, time and size of what a repeated run would write again, its log among it."""
    files = [file for place in finished(root) for file in place.glob("checkpoints/*/COMPLETE")]
    for place in finished(root):
        files += [place / "metrics.jsonl", root / f"{place.name}.log"]
    return {str(f.relative_to(root)): [s.st_ino, s.st_mtime_ns, s.st_size] for f in files for s in [f.stat()]}


def main(folder: str, out: str) -> None:
    forked_stages()
    root, log = Path(folder) / "cut", (Path(folder) / "run.log").open("ab")
    whole = os.waitstatus_to_exitcode(os.waitpid(fork(lambda: run(f"{folder}/whole.yaml"), log), 0)[1])
    kills = []
    for moment in MOMENTS:
        process = fork(lambda: run(f"{folder}/cut.yaml"), log)
        until = time.monotonic() + 120
        while not moment(root) and os.waitpid(process, os.WNOHANG)[0] == 0:
            assert time.monotonic() < until
            time.sleep(0.005)
        for pid in [process, *alive()]:  # the parent first: it starts nothing more
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
        while alive():
            time.sleep(0.005)
        kills.append({"finished": marks(root), "saved": [place.name for place in saved(root)]})
    code = os.waitstatus_to_exitcode(os.waitpid(fork(lambda: run(f"{folder}/cut.yaml"), log), 0)[1])
    Path(out).write_text(json.dumps({"codes": [whole, code], "kills": kills, "end": marks(root)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
