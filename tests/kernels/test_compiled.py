"""The kernels compiled for sm_90 without a GPU: registers, spills, width of loads, read from the SASS.

    pytest -s tests/kernels/test_compiled.py                  prints the table
    pytest -s -m exhaustive tests/kernels/test_compiled.py    of every variant

The compiler is whichever Triton is installed (3.6 and 3.9 have been tried). Left out: speed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from posttrain_kernels.family import MEMBERS
from posttrain_kernels.rows_triton import CONFIGS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
REGISTERS = 65536  # of a multiprocessor of an H100 or H200
RESIDENT_WARPS = 16
"""A row of 8 warps has a tile of 16 KiB in flight. Two such rows on each of 132 multiprocessors are
4 MB; HBM at 4.8 TB/s and 600 ns needs 3."""
COLUMNS = ("registers", "stack", "spills", "loads", "wide loads", "barriers", "shared")


def answers(*options) -> list:
    """The JSON lines of `aot`."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'kernels'}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.aot", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def compiled(*options) -> list[dict]:
    *variants, version = answers(*options)
    print(f"\nsm_90, Triton {version['triton']}")
    print(f"| {'kernel':14} | {'variant':33} | {' | '.join(COLUMNS)} |")
    for v in variants:
        numbers = " | ".join(str(v[c]).rjust(len(c)) for c in COLUMNS)
        print(f"| {v['kernel']:14} | {v['variant']:33} | {numbers} |")
    return variants


def judge(v: dict) -> None:
    assert v["stack"] == 0 and v["spills"] == 0, v
    # The register file is handed out to warps in blocks of 8 a thread.
    warp = 32 * -(-v["registers"] // 8) * 8
    programs = REGISTERS // (warp * v["warps"])
    assert programs * v["warps"] >= RESIDENT_WARPS, v
    if v["kernel"] == "close_segments":
        return
    # One element at a time only for the target and, in `row_delta`, its label and statistics.
    assert v["loads"] - v["wide loads"] <= 3, v
    passes = 2 if v["kernel"] == "row_loss" else 1
    assert v["wide loads"] == passes * v["tile"] // (4 * 32 * v["warps"]), v
    if v["kernel"] != "row_partial":
        assert v["wide stores"] >= 1 and v["barriers"] >= 1, v


@pytest.fixture(scope="module")
def usual():
    return compiled()


@pytest.mark.parametrize("kernel", ["row_loss", "row_partial", "row_delta", "close_segments"])
def test_no_spills_few_registers_wide_loads(usual, kernel):
    variants = [v for v in usual if v["kernel"] == kernel]
    assert len(variants) >= 2
    for variant in variants:
        judge(variant)


def test_every_tile_and_member_is_there(usual):
    names = {v["variant"] for v in usual}
    for block, warps in CONFIGS:
        assert f"tile {block}, {warps} warps, bf16" in names
    for member in MEMBERS:
        assert f"{member}, every option" in names


def test_pass_two_waits_for_all_loads_of_a_tile(usual):
    """D of a tile is written where other warps still read. Without a softcap `row_delta` has no reduction,
    so any barrier in it is that one; the interpreter cannot show that it is missing."""
    deltas = [v for v in usual if v["kernel"] == "row_delta"]
    assert deltas and all(v["barriers"] >= 1 for v in deltas)


def test_a_member_without_a_branch_stops_the_compilation():
    (message,) = answers("--refused")
    assert "MEMBER has no branch in segments_triton._value_and_weight" in message


@pytest.mark.exhaustive
def test_every_variant():
    variants = compiled("--all")
    assert len(variants) == 30 + 30 + 10 + 2 * len(MEMBERS)
    for variant in variants:
        judge(variant)
