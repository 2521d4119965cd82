"""Largest errors against the fp64 reference on the same numbers: back-end x dtype x feature.

    PYTHONPATH=.:kernels python tests/kernels/parity_table.py [--rows 127]

Natively on a GPU, else in Triton's interpreter (about two minutes). Columns: the largest |d log p|;
F where it is above 1e-4, and F given this back-end's own log p of the segment, relative; the loss,
relative; each gradient, |d| / |g|. For bf16 and fp16 also the largest ratio of the errors of dX and
dW to those of plain torch: `tc` rounds the logits' gradient as tensor cores need it, `fp32` does
not. Left out: bounds (the tests have them) and time.
"""

import argparse
import functools
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.kernels.features import FEATURES
from tests.kernels.problems import remember_builtins, solve
from tests.kernels.protocol import LOW, errors, plain_torch

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, **LOW}
SHOWN = (
    "confidence",
    "N = 65536",
    "dft",
    "focal 2.0",
    "maxrl 16",
    "external p, weights, length_mean",
    "segment weights",
    "bias",
    "LoRA on the head",
    "softcap, scale, temperature, LoRA",
    "z-loss",
    "skipping",
    "chunks of 9, long segments",
)
COLUMNS = ("log p", "F", "F given s", "loss", "dX", "dW", "d bias, U, B", "ratio tc", "ratio fp32")


def measure(backend: str, dtype: str, feature: str, rows: int) -> list[float | None]:
    problem, options = FEATURES[feature].build(rows, vocab=1000, width=72)
    problem = problem.to(DTYPES[dtype])
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    here = {k: v.to(device) if torch.is_tensor(v) else v for k, v in options.items()}
    got = solve(problem.to(device), backend=backend, **here)
    want = solve(problem.to(torch.float64), backend="reference", **options)
    found = errors(got, want, options)
    others = [v for k, v in found.gradients.items() if k not in ("d_hidden", "d_weight")]
    numbers = [*found[:4], found.gradients.get("d_hidden"), found.gradients.get("d_weight")]
    numbers.append(max(others, default=None))
    for plain in (plain_torch, functools.partial(solve, backend="reference")):
        numbers.append(None)
        if dtype in LOW:
            theirs = errors(plain(problem, **options), want, options).gradients
            both = found.gradients.keys() & {"d_hidden", "d_weight"}
            numbers[-1] = max(found.gradients[k] / theirs[k] for k in both)
    return numbers


def shown(column: str, number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.2f}" if column.startswith("ratio") else f"{number:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=127)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    where = "interpreter"
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        remember_builtins()
    print(f"T = {rows}, V = 1000, H = 72, N = 8 unless named; Triton: {where}\n")
    print(f"| back-end | dtype | feature | {' | '.join(COLUMNS)} |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for backend in ("torch", "triton"):
        for dtype in DTYPES if backend == "torch" else list(DTYPES)[1:]:
            for feature in SHOWN:
                numbers = measure(backend, dtype, feature, rows)
                cells = [shown(c, x) for c, x in zip(COLUMNS, numbers, strict=True)]
                print(f"| {backend} | {dtype} | {feature} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
