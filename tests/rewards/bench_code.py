"""Throughput of the reward `code` on HumanEval: `python tests/rewards/bench_code.py`.

The plain one is what most checkers do: program and tests in one new interpreter, verdict by exit code, no
walls. Both use as many workers as there are cores. `--rounds` repeats the 164 rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "code"), str(HERE.parents[1])]

from reference import rows  # noqa: E402

from posttrain.rewards.code import check  # noqa: E402
from posttrain.rewards.code.row import tests_of  # noqa: E402
from posttrain.rewards.code.sandbox import ladder, pool  # noqa: E402
from posttrain.types import Example  # noqa: E402


def plain(program: str, columns: dict) -> bool:
    source = f"{columns['prompt']}{program}\n{columns['test']}\ncheck({columns['entry_point']})\n"
    return subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=60).returncode == 0


def measure(run, found: list) -> tuple[float, int]:
    """(checks a second, how many passed)"""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        start = time.monotonic()
        passed = sum(threads.map(run, found))
        return len(found) / (time.monotonic() - start), passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    data = Path(os.environ.get("POSTTRAIN_DATA", HERE.parents[2] / "shared/data"))
    once = list(rows("humaneval", data))
    found = [
        (program, columns, tests_of(Example(extra=columns))) for _, program, columns in once
    ] * given.rounds
    load = os.getloadavg()[0]
    print(f"HumanEval, {len(found)} checks, {os.cpu_count()} cores, load {load:.1f} before the start")
    print(f"{'how':28} {'checks/s':>9} {'right':>7}")
    speed, passed = measure(lambda r: plain(r[0], r[1]), found[: len(once)])
    print(f"{'plain subprocess, no walls':28} {speed:9.1f} {passed:3}/{len(once)}")
    for backend in ladder.LADDER:
        if wrong := ladder.tested(backend):
            print(f"{backend:28} not here: {wrong}")
            continue
        slots, limits = pool.pool(backend), check.Limits(60.0)
        measure(lambda r, s=slots, m=limits: check.verdict_of(r[0], r[2], m, s).value == 1.0, found[:8])
        speed, passed = measure(
            lambda r, s=slots, m=limits: check.verdict_of(r[0], r[2], m, s).value == 1.0, found
        )
        print(f"{backend + ', two processes':28} {speed:9.1f} {passed:3}/{len(found)}")


if __name__ == "__main__":
    main()
