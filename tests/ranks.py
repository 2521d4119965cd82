"""Starts a test's worker module as processes that meet over gloo; for all files that compare ranks with one
process.

    python -m tests.ranks MODULE ARGUMENT...

is one rank. Left out: accelerate's launcher (`tests/tiny.py`), and what the workers compute.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable

import torch.distributed as dist

from tests.conftest import ROOT

WORLD = 2


def run_ranks(
    arguments: Callable[[int], list], environment: dict[str, str] | None = None, timeout: float = 300
) -> list[tuple[int, str]]:
    """`python -m *arguments(rank)` for every rank, on CPUs: exit codes and the tail of what was said."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    shared = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(WORLD)} | (environment or {})
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", *map(str, arguments(rank))],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [rank.communicate(timeout=timeout)[0][-4000:] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def main() -> None:
    """Runs the module as `python -m` does, then ends the process group on purpose: left to the interpreter's
    exit, its threads may abort a rank that has done all its work."""
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
