"""Mode B over two gloo processes: a head split by vocabulary, and heads that FSDP2 shards, grouped
with the root, as a unit of its own, and called outside any forward. All equal one process.

Left out: ZeRO-3 and whole models (`tests/training`).
"""

import json

import pytest
import torch

from tests.kernels.tokens_worker import TOLERANCE, UNITS, VOCAB
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, float]:
    """All cases in one launch: starting processes costs more than the cases."""
    folder = tmp_path_factory.mktemp("ranks")
    meeting, out = folder / "meeting", folder / "out.json"
    # Gloo works on CPU tensors, and Triton on those only in its interpreter.
    ended = run_ranks(
        lambda rank: ["tests.kernels.tokens_worker", rank, meeting, out], {"TRITON_INTERPRET": "1"}
    )
    assert out.exists(), ended
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", VOCAB)
def test_vocabulary_shards_equal_the_whole_head(found, case):
    assert found[case] <= TOLERANCE[VOCAB[case].get("dtype", torch.float64)]


@pytest.mark.parametrize("unit", UNITS)
def test_fsdp2_equals_one_process(found, unit):
    assert found[unit] <= 1e-11
