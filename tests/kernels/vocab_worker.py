"""One of two processes that hold a head between them: every case on this rank's rows of it.

    python -m tests.kernels.vocab_worker RANK MEETING_FILE OUT.pt

Writes what the rank got: {case: {field: tensor}}, and the world size. Left out: judging it, and the
same problem on one process (`test_vocab`).
"""

import math
import os
import sys
from typing import NamedTuple

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from posttrain_kernels import LossOutput, VocabShard, chunked, plan
from tests.kernels.features import FEATURES, SHAPED
from tests.kernels.problems import Problem, Result, random_problem, remember_builtins, solve
from tests.ranks import WORLD

VOCAB = 37
FP64, FP32, BF16 = torch.float64, torch.float32, torch.bfloat16


class Case(NamedTuple):
    backend: str
    dtype: torch.dtype
    split: int  # rank 0 has columns 0..split
    feature: str
    accumulate: int = chunked.ACCUMULATE_ROWS
    budget: int = plan.CHUNK_BYTES["cpu"]  # bytes of logits at once

    def build(self) -> tuple[Problem, dict]:
        make = SPECIAL.get(self.feature)
        if make is not None:
            return make().to(self.dtype), {"n": 8.0}
        return (FEATURES | SHAPED)[self.feature].build(24, self.dtype)

    @property
    def device(self) -> str:
        return "cuda" if self.backend == "triton" and torch.cuda.is_available() else "cpu"


def far() -> Problem:
    """Rows 0-3: the target 500 or 80 nats under or over everything, in one shard or the other."""
    problem = random_problem(8, VOCAB, 8, bias=True)
    weight, hidden = problem.weight.clone() * 0.01, problem.hidden.clone()
    hidden[:4] = torch.eye(4, 8, dtype=FP64)
    labels = torch.tensor([0, VOCAB - 1, VOCAB - 1, 2, 5, 30, -100, 7])
    for token, (column, gap) in enumerate(((36, 500.0), (0, 500.0), (36, 80.0), (1, -80.0))):
        weight[column, token] = gap
    weight[2, 3] = 0.0
    return problem._replace(weight=weight, hidden=hidden, labels=labels)


def masked() -> Problem:
    """A bias of -inf on every column of rank 0's shard, whatever the split up to 20."""
    problem = random_problem(8, VOCAB, 8, bias=True)
    problem.bias[:20] = -math.inf
    return problem._replace(labels=problem.labels.clamp_min(0) % 17 + 20)


def ties() -> Problem:
    """All logits equal: every label ties with the maximum of the other shard."""
    problem = random_problem(8, VOCAB, 8)
    return problem._replace(weight=torch.zeros_like(problem.weight))


SPECIAL = {"far": far, "masked": masked, "ties": ties}
EVERYTHING = "softcap, scale, temperature, LoRA"
Z_LOSS = "z-loss, length_mean, softcap, LoRA"
LONG = "chunks of 9, long segments"
CASES = [
    Case("torch", FP64, 20, "confidence"),
    Case("torch", FP32, 3, "confidence"),
    Case("torch", FP64, 36, EVERYTHING),
    Case("torch", FP64, 5, Z_LOSS),
    Case("torch", FP64, 20, "skipping zero weights"),
    Case("torch", FP64, 20, "frozen hidden states"),
    Case("torch", FP64, 7, "external p, weights, length_mean"),
    Case("torch", FP64, 20, LONG),
    Case("torch", FP64, 20, LONG, accumulate=0),
    # 5 rows of the 19 columns of an even split: ranks of 3 and 34 columns must cut alike.
    Case("torch", FP64, 3, "confidence", budget=5 * 19 * 8),
    Case("torch", FP64, 5, "both, z-loss, softcap, LoRA"),
    Case("torch", FP32, 36, "both, z-loss, LoRA"),
    Case("torch", FP64, 20, "smoothing, p gate, skipping"),
    Case("torch", FP64, 3, "bonus, long segments", budget=5 * 19 * 8),
    Case("torch", FP32, 20, "far"),
    Case("torch", FP64, 20, "masked"),
    Case("torch", FP64, 20, "ties"),
    Case("triton", FP32, 3, "confidence"),
    Case("triton", FP32, 20, EVERYTHING),
    Case("triton", FP32, 36, Z_LOSS),
    Case("triton", FP32, 20, LONG, accumulate=0),
    Case("triton", FP32, 20, "far"),
    Case("triton", FP32, 20, "masked"),
    Case("triton", BF16, 20, "bias"),
]


def flat(result: Result) -> dict[str, torch.Tensor]:
    named = dict(zip(LossOutput._fields, result.output, strict=True)) | result._asdict()
    return {k: v.detach().cpu() for k, v in named.items() if isinstance(v, torch.Tensor)}


def shard(problem: Problem, rank: int, split: int) -> Problem:
    columns = slice(0, split) if rank == 0 else slice(split, None)
    names = ("weight", "bias", "right")
    here = {k: getattr(problem, k) for k in names if getattr(problem, k) is not None}
    return problem._replace(**{k: t[columns] for k, t in here.items()})


def run(case: Case, **options) -> Result:
    """The case on one process, or on this rank's shard with `vocab` among the options."""
    problem, asked = case.build()
    if "vocab" in options:
        problem = shard(problem, dist.get_rank(), case.split)
    asked = {k: v.to(case.device) if torch.is_tensor(v) else v for k, v in asked.items()}
    chunked.ACCUMULATE_ROWS = case.accumulate
    plan.CHUNK_BYTES["cpu"] = case.budget
    return solve(problem.to(case.device), backend=case.backend, **asked, **options)


def main(rank: int, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        remember_builtins()
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=WORLD)
    found = {"world": torch.tensor(dist.get_world_size())}
    for number, case in enumerate(CASES):
        vocab = VocabShard(0 if rank == 0 else case.split, VOCAB, dist.group.WORLD)
        for name, tensor in flat(run(case, vocab=vocab)).items():
            found[f"{number} {name}"] = tensor
    torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
