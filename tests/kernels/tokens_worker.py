"""Mode B on one of two gloo processes, beside one process that has everything; see `test_tokens_ranks`.

    python -m tests.kernels.tokens_worker RANK MEETING_FILE OUT.json

Rank 0 writes {case: largest relative distance over both ranks}.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from posttrain_kernels import VocabShard, token_log_probs
from tests.kernels.problems import Problem, distance, random_problem
from tests.kernels.token_cases import CARRIERS, random_upstream, solve_tokens

CUT = 23  # of 37 columns: shards of unequal size

VOCAB = {
    "shards": {},
    "shards in slices": {"chunk_rows": 4},
    "shards, softcap and scale": {"softcap": 3.0, "logit_scale": 0.5, "temperature": 0.7},
    "shards, frozen hidden states": {"frozen": ("hidden", "left")},
    "shards on triton": {"backend": "triton", "dtype": torch.float32},
    "shards on triton in fp16": {"backend": "triton", "dtype": torch.float16},
}
UNITS = ("root", "own", "outside")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3}


def vocabulary(rank: int, dtype=torch.float64, backend="torch", **options) -> float:
    """Of outputs, gradients of the rows, and gradients of this rank's part of the head."""
    problem = random_problem(24, bias=True, rank=2, dtype=dtype)
    want = solve_tokens(
        problem.to(torch.float64),
        backend="reference",
        **{k: v for k, v in options.items() if k != "chunk_rows"},
    )
    mine = slice(0, CUT) if rank == 0 else slice(CUT, None)
    heads = ("weight", "bias", "right")
    shard = problem._replace(**{name: getattr(problem, name)[mine] for name in heads})
    vocab = VocabShard(mine.start, 37)
    got = solve_tokens(shard, vocab=vocab, backend=backend, **options)
    assert torch.equal(got.output.correct, want.output.correct)
    assert got.gradients.keys() == want.gradients.keys()
    worst = [distance(getattr(got.output, n), getattr(want.output, n)) for n in CARRIERS]
    for name, grad in want.gradients.items():
        worst.append(distance(got.gradients[name], grad[mine] if name in heads else grad))
    return max(worst)


class Head(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, hidden, labels):
        return token_log_probs(hidden, self.weight, labels, chunk_rows=4, backend="torch")


class Model(nn.Module):
    def __init__(self, problem: Problem):
        super().__init__()
        width = problem.hidden.shape[1]
        self.body = nn.Linear(width, width, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.body.weight.copy_(problem.weight[:width])
        self.head = Head(problem.weight)

    def forward(self, hidden, labels, inside=True):
        hidden = self.body(hidden)
        return self.head(hidden, labels) if inside else hidden


def sharded(rank: int, unit: str) -> float:
    """Of the gradients of head and body, after a backward on 12 rows a rank."""
    problem = random_problem(24)
    upstream = random_upstream(24).double()

    def loss(out, rows):
        ups = zip(CARRIERS, upstream[:, rows], strict=True)
        return sum((getattr(out, name) * up).sum() for name, up in ups)

    alone = Model(problem)
    (loss(alone(problem.hidden, problem.labels), slice(0, 24)) / 2).backward()

    mesh = init_device_mesh("cpu", (2,))
    model = Model(problem)
    if unit == "own":
        fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model.head.weight, DTensor)
    rows = slice(12 * rank, 12 * rank + 12)
    hidden, labels = problem.hidden[rows], problem.labels[rows]
    if unit == "outside":  # the root's forward is over and its weights are shards again
        hidden = model(hidden, labels, inside=False)
        model.reshard()
        out = token_log_probs(hidden, model.head.weight, labels, backend="torch")
    else:
        out = model(hidden, labels)
    loss(out, rows).backward()
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    return max(distance(a.grad.full_tensor(), b.grad) for a, b in pairs)


def main() -> None:
    rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {name: vocabulary(rank, **options) for name, options in VOCAB.items()}
    found |= {unit: sharded(rank, unit) for unit in UNITS}
    worst = torch.tensor(list(found.values()), dtype=torch.float64)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    if rank == 0:
        with open(out, "w") as file:
            json.dump(dict(zip(found, worst.tolist(), strict=True)), file)


if __name__ == "__main__":
    main()
