"""Mode B over two gloo processes: a head split by vocabulary, and heads that FSDP2 shards, grouped
with the root, as a unit of its own, and called outside any forward. All equal one process.

Left out: ZeRO-3 and whole models (`tests/training`).
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.kernels.tokens_worker import TOLERANCE, UNITS, VOCAB


@pytest.fixture(scope="module")
def found(tmp_path_factory, root) -> dict[str, float]:
    """All cases in one launch: starting processes costs more than the cases."""
    folder = tmp_path_factory.mktemp("ranks")
    meeting, out = folder / "meeting", folder / "out.json"
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    # Gloo works on CPU tensors, and Triton on those only in its interpreter.
    environment = os.environ | {
        "PYTHONPATH": paths, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.tokens_worker", str(rank), meeting, out],
            cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=240)[0][-3000:] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert out.exists(), "\n".join(said)
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", VOCAB)
def test_vocabulary_shards_equal_the_whole_head(found, case):
    assert found[case] <= TOLERANCE[VOCAB[case].get("dtype", torch.float64)]


@pytest.mark.parametrize("unit", UNITS)
def test_fsdp2_equals_one_process(found, unit):
    assert found[unit] <= 1e-11
