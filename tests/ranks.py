"""Starts a test's worker module as processes that meet over gloo; for all files that compare ranks with one
process.

Left out: accelerate's launcher (`tests/tiny.py`), and what the workers compute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

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
            [sys.executable, "-m", *map(str, arguments(rank))],
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
