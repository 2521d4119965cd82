"""A head whose rows are split over two processes (gloo) gives the results of one process, on both of them.

One launch runs every case of `vocab_worker`; each test reads one. Left out: DTensor heads, and how a
model comes to be split.
"""

import pytest
import torch

from posttrain_kernels import LossOutput, chunked, plan
from posttrain_kernels.sharded import VocabShard
from tests.kernels.problems import distance
from tests.kernels.vocab_worker import CASES, flat, run
from tests.ranks import WORLD, run_ranks

SLICED = ("d_weight", "d_bias", "d_right")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.pt" for rank in range(WORLD)]
    meeting = folder / "meeting"
    ended = run_ranks(lambda rank: ["tests.kernels.vocab_worker", rank, meeting, outs[rank]])
    assert [code for code, _ in ended] == [0] * WORLD, ended
    found = [torch.load(out) for out in outs]
    assert [f["world"].item() for f in found] == [WORLD] * WORLD
    return found


@pytest.fixture(autouse=True)
def same_route():
    """`run` sets the constants of its case."""
    before = chunked.ACCUMULATE_ROWS, plan.CHUNK_BYTES["cpu"]
    yield
    chunked.ACCUMULATE_ROWS, plan.CHUNK_BYTES["cpu"] = before


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(map(str, c)) for c in CASES])
def test_two_ranks_equal_one(ranks, number):
    case = CASES[number]
    tol = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-3}[case.dtype]
    want = flat(run(case))
    first, second = (
        {k.split(" ", 1)[1]: v for k, v in rank.items() if k.startswith(f"{number} ")} for rank in ranks
    )
    assert first.keys() == second.keys() == want.keys()
    for name in want:
        if name in SLICED:
            assert len(first[name]) == case.split
            joined = torch.cat([first[name], second[name]])
            assert distance(joined, want[name]) <= tol, name
        else:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)
        if name in ("d_hidden", "d_left"):
            assert distance(first[name], want[name]) <= tol, name
        elif name in LossOutput._fields and name != "entropy":
            atol = 1e-4 if case.dtype == torch.bfloat16 else tol
            torch.testing.assert_close(first[name], want[name], rtol=tol, atol=atol)
    if (case.backend, case.feature) != ("torch", "masked"):  # which has NaN for it
        atol = max(tol, 2e-5) if case.dtype != torch.float64 else tol
        torch.testing.assert_close(first["entropy"], want["entropy"], rtol=tol, atol=atol)
    assert first["log_probs"].isfinite().all() and first["loss"].isfinite()


@pytest.mark.interpreter
def test_the_cases_are_what_they_say():
    by_name = {c.feature: flat(run(c)) for c in CASES if c.feature in ("far", "masked", "ties")}
    assert by_name["far"]["log_probs"][:2].tolist() == pytest.approx([-500, -500], abs=1)
    assert by_name["far"]["log_probs"][2].item() == pytest.approx(0, abs=1e-6)
    ties = by_name["ties"]
    assert torch.equal(ties["correct"], ties["log_probs"] != 0) and ties["correct"].any()
    assert not by_name["masked"]["d_weight"][:20].any()


def test_labels_of_a_shard():
    """Columns 10..14 of 20: global 12 is local 2; others are -1, which no column equals."""
    local = VocabShard(10, 20).local(torch.tensor([9, 10, 12, 14, 15, 0]), 5)
    assert local.tolist() == [-1, 0, 2, 4, -1, -1]
