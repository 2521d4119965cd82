"""Peak memory and time of one forward + backward through the head, each variant in its own process.

    python kernels/benchmarks/head_memory.py
    python kernels/benchmarks/head_memory.py --tokens 4096 --vocab 32000 --json out.json

Variants: `plain` is logits = hidden @ W.T, torch cross-entropy, backward. `torch` and `reference`
are the back-ends of this package: `ce` with N = 1, `dco` with N = 256 over segments of 16 tokens.
Peak is the largest resident set less the one just before the call (inputs and a warm-up on 8 rows
included in the base), so it counts gradients. On CUDA it is the allocator's peak less what was
allocated before.

Left out: other people's kernels, low precision, more than one GPU.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = ("plain", "torch-ce", "torch-dco", "reference-dco")


def resident_peak() -> int:
    """Highest resident set of this process in bytes (VmHWM: Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measure(args: argparse.Namespace) -> dict:
    import torch
    import torch.nn.functional as F

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from posttrain_kernels import confidence_limited

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    hidden = torch.randn(args.tokens, args.hidden, device=device).requires_grad_()
    weight = (torch.randn(args.vocab, args.hidden, device=device) * 0.02).requires_grad_()
    labels = torch.randint(args.vocab, (args.tokens,), device=device)
    segment_ids = torch.arange(args.tokens, device=device) // 16 + 1
    backend, _, kind = args.variant.partition("-")

    def step(rows: int) -> None:
        hidden.grad = weight.grad = None
        if backend == "plain":
            loss = F.cross_entropy(hidden[:rows] @ weight.t(), labels[:rows])
        else:
            n = 256.0 if kind == "dco" else 1.0
            loss = confidence_limited(
                hidden[:rows], weight, labels[:rows], segment_ids[:rows], n, backend=backend
            ).loss
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step(8)  # thread pools, lazy imports
    hidden.grad = weight.grad = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(args.tokens)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := the resident set of now
        before = resident_peak()
        step(args.tokens)
        peak = resident_peak() - before
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        step(args.tokens)
        times.append(time.perf_counter() - start)
    return {
        "variant": args.variant,
        "peak_mib": round(peak / 2**20, 1),
        "median_s": round(statistics.median(times), 3),
        "min_s": round(min(times), 3),
        "torch": torch.__version__,
        "threads": args.threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)  # the child's own
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args)))
        return

    rows = []
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant]
        for name in ("tokens", "vocab", "hidden", "threads", "repeats", "device"):
            command += [f"--{name}", str(getattr(args, name))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{variant} failed:\n{done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    plain = rows[0]
    where = f"{platform.machine()}, torch {plain['torch']}, {args.threads} threads, {args.device}"
    print(f"T={args.tokens} V={args.vocab} H={args.hidden} fp32, forward + backward; {where}")
    print(
        f"{'variant':<15}{'peak MiB':>10}{'of plain':>10}"
        f"{'median s':>10}{'min s':>8}{'of plain':>10}"
    )
    for row in rows:
        memory, seconds = row["peak_mib"] / plain["peak_mib"], row["median_s"] / plain["median_s"]
        print(
            f"{row['variant']:<15}{row['peak_mib']:>10.0f}{memory:>10.2f}"
            f"{row['median_s']:>10.2f}{row['min_s']:>8.2f}{seconds:>10.2f}"
        )
    if args.json:
        shape = {name: getattr(args, name) for name in ("tokens", "vocab", "hidden", "device")}
        args.json.write_text(json.dumps({"shape": shape, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
