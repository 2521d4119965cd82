"""Mode B's kernels compiled ahead of time for sm_90: registers, spills and instructions in the
machine code. `pytest -s` prints the table. No GPU is needed, and none is asked how fast it is."""

import json
import os
import subprocess
import sys

import pytest

# Threads * registers * programs fill the 65536 registers of a multiprocessor. The gradient kernel
# has 128 threads: 64 registers let 8 programs share one. A tiled program of 256 threads has one to
# itself whatever it takes, so that only a spill costs something.
MOST_REGISTERS = {"gradient": 64, "tiled": 255, "tiled bf16 softcap": 192}


@pytest.fixture(scope="module")
def table(tmp_path_factory, root) -> dict[str, dict[str, int]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")]),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.tokens_aot"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    table = json.loads(done.stdout.splitlines()[-1])
    columns = list(next(iter(table.values())))
    print("\n" + " " * 32 + "".join(f"{c:>14}" for c in columns))
    for name, found in table.items():
        print(f"{name:32}" + "".join(f"{found[c]:14}" for c in columns))
    return table


@pytest.mark.slow
def test_nothing_spills(table):
    assert {name: found["spills"] for name, found in table.items() if found["spills"]} == {}
    for name, found in table.items():
        most = MOST_REGISTERS.get(name, MOST_REGISTERS[name.split()[0]])
        assert 16 <= found["registers"] <= most, name


@pytest.mark.slow
def test_gradient_kernel_moves_16_bytes_at_a_time(table):
    """16 logits a thread are four loads; nothing waits for another thread; rows are 64-bit."""
    for name, found in table.items():
        if name.startswith("gradient"):
            assert found["wide_loads"] == 4 and found["barriers"] == 0, name
            assert found["wide_products"] >= 2, name


@pytest.mark.slow
def test_tiles_go_through_the_tensor_cores(table):
    """A step of 64 in depth is four HGMMA, each 16 deep. Shared memory fits one multiprocessor's
    227 KiB; under TMA it holds the stages, and unaligned pointers cannot be loaded ahead."""
    for name, found in table.items():
        if name.startswith("tiled"):
            assert found["tensor_core"] == 4, name
            tma = "pointers" not in name
            assert (found["bulk_loads"] >= 4) == tma, name
            assert 3 * 32 * 1024 * tma <= found["shared"] <= 227 * 1024, name
            assert found["wide_products"] >= 1, name
