"""One case of the head benchmark: errors, times and peak memory of every variant at one shape.

Left out: the command line and the result file (`head.py`).
"""

import subprocess
import sys
from pathlib import Path

import timing
import torch
from peers import VARIANTS, Loss, Variant
from problem import INPUTS, Floor, Problem, errors, head_flops, make_problem, mean_weight, reference

CHECK_SHAPE = (512, 256, 4096)  # multiples of a tile, which some peers need
HEAD = str(Path(__file__).with_name("head.py"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {"fp32": 3e-5, "bf16": 3e-2, "fp16": 1e-2}
"""Relative errors up to which two variants count as computing the same thing: those of rounded logits, which
cost about 1e-2 of the gradient in bf16. The errors themselves are in the table."""


def read_shape(text: str) -> tuple[int, int, int]:
    """(T, H, V) of --shapes. Raises ValueError."""
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise ValueError(f"--shapes: {text!r} is not TxHxV, such as 8192x4096x128256")
    return tuple(int(size) for size in sizes)


def read_case(text: str) -> tuple[str, float]:
    """(kind of inputs, N) of --cases. Raises ValueError."""
    inputs, _, n = text.partition(":")
    if inputs not in INPUTS or not n.isdigit() or int(n) < 1:
        raise ValueError(f"--cases: {text!r} is not INPUTS:N, such as planted:256 or random:1")
    return inputs, float(n)


def stepper(loss: Loss, problem: Problem):
    """Forward + backward with new gradients; the step returns the loss."""

    def step() -> torch.Tensor:
        problem.forget()
        value = loss(problem)
        value.backward()
        return value.detach()

    return step


def why(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]


def prepare(args, device) -> tuple[dict[Variant, Loss], dict[str, str]]:
    """The loss functions that can run here, and the reason for each one that cannot."""
    ready, missing = {}, {}
    for variant in VARIANTS:
        reason = variant.reason_not(device, args.toy)
        if variant.name not in args.variants:
            reason = "not selected"
        if reason is None:
            try:
                ready[variant] = variant.make()
                continue
            except Exception as error:  # another package may raise anything on import
                reason = why(error)
        missing[variant.name] = reason
    return ready, missing


def check(args, device) -> list[dict]:
    """Errors of each variant against fp64 on a small planted problem, N = 256 (ceilings: N = 1)."""
    rows = []
    ready, missing = prepare(args, device)
    truths = {}
    for variant, loss in ready.items():
        n = 1.0 if variant.kind == "ceiling" else 256.0
        problem = make_problem(*CHECK_SHAPE, DTYPES[args.dtype], device, "planted", n)
        if n not in truths:
            truths[n] = reference(problem)
        try:
            value = stepper(loss, problem)()
            found = errors(problem, value, truths[n])
        except Exception as error:
            missing[variant.name] = why(error)
            continue
        same = all(gap <= TOLERANCE[args.dtype] for gap in found.values())
        rows.append({"variant": variant.name, "n": n, "errors": found, "same": same})
    return rows + [{"variant": name, "reason": reason} for name, reason in missing.items()]


def run_case(args, shape: str, case: str, device) -> dict:
    """The entry of the result file for one shape and one kind of inputs."""
    tokens, hidden_size, vocab = read_shape(shape)
    inputs, n = read_case(case)
    problem = make_problem(tokens, hidden_size, vocab, DTYPES[args.dtype], device, inputs, n)
    steps, rows, missing = _first_calls(args, shape, case, problem, device)
    base = _time(args, problem, steps, rows, device)
    itemsize = DTYPES[args.dtype].itemsize
    return {
        "tokens": tokens,
        "hidden": hidden_size,
        "vocab": vocab,
        "dtype": args.dtype,
        "inputs": inputs,
        "n": n,
        "mean_f": mean_weight(problem),
        "gradients_mib": itemsize * hidden_size * (tokens + vocab) / timing.MIB,
        "fp32_dw_mib": 4 * hidden_size * vocab / timing.MIB,
        "floor": base,
        "rows": sorted(rows.values(), key=lambda row: row["ms"]),
        "missing": missing,
    }


def _first_calls(args, shape, case, problem: Problem, device) -> tuple[dict, dict, dict]:
    """Steps and rows of the variants that run, with the time of their first call and their peak; reasons of
    the others."""
    ready, missing = prepare(args, device)
    steps, rows = {}, {}
    for variant, loss in ready.items():
        step = stepper(loss, problem)
        timing.tidy(device)
        try:
            first = timing.wall(step, device)
            problem.forget()
            rows[variant.name] = {
                "variant": variant.name,
                "kind": variant.kind,
                "first_call_ms": 1e3 * first,
                "peak_mib": peak_mib(args, variant, shape, case, step, problem, device),
            }
            steps[variant.name] = step
        except Exception as error:  # including out of memory, which is a result
            missing[variant.name] = why(error)
            problem.forget()
    return steps, rows, missing


def _time(args, problem: Problem, steps: dict, rows: dict, device) -> dict:
    """Times the variants and the floor in turns, and adds their times to `rows`; returns those of the
    floor."""
    floor = Floor(problem)
    floor()  # warm
    found = timing.interleave({"floor": floor, **steps}, args.repeats, device)
    problem.forget()
    base = timing.summary(found.pop("floor"))
    flops = head_flops(*problem.shape)
    base["tflops"] = flops / base["ms"] / 1e9
    for name, passes in found.items():
        row = rows[name]
        row |= timing.summary(passes)
        row["tflops"] = flops / row["ms"] / 1e9
        row["of_floor_rate"] = base["ms"] / row["ms"]
        row["over_floor"] = row["ms"] / base["ms"]
    for row in rows.values():
        if row["kind"] == "ours":  # how many times faster than each other variant
            row["faster_than"] = {o: r["ms"] / row["ms"] for o, r in rows.items() if o != row["variant"]}
    return base


def peak_mib(args, variant, shape, case, step, problem, device) -> float | None:
    """Above the inputs, including gradients; on a CPU measured in a child process. None where it cannot be
    measured."""
    if not timing.Peak.known(device):
        return None
    if device.type == "cuda":
        return measure_peak(step, problem, device)
    if args.toy and variant.package != "torch":  # its import alone takes longer than the run
        return None
    key = (variant.name, shape, problem.n)  # inputs change no size
    if key not in _peaks:
        _peaks[key] = _child_peak(args, variant, shape, case)
    return _peaks[key]


_peaks: dict[tuple, float] = {}


def _child_peak(args, variant, shape, case) -> float:
    command = [sys.executable, HEAD, "--child", variant.name, "--shapes", shape, "--cases", case]
    command += ["--device", args.device, "--dtype", args.dtype]
    if args.threads:
        command += ["--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=timing.child_environment())
    if done.returncode or not done.stdout:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the child that measures memory ended with {done.returncode}: {last}")
    return float(done.stdout.split()[-1])


def measure_peak(step, problem: Problem, device) -> float:
    """Of a call after the first one, so that what is compiled or cached once is in the base."""
    problem.forget()
    timing.tidy(device)
    peak = timing.Peak(device)
    peak.start()
    step()
    timing.settle(device)
    found = peak.mib()
    problem.forget()
    return found


def child(args, device) -> None:
    """The child process of `peak_mib`: prints the peak of one variant."""
    variant = next(v for v in VARIANTS if v.name == args.child)
    inputs, n = read_case(args.cases[0])
    sizes = read_shape(args.shapes[0])
    problem = make_problem(*sizes, DTYPES[args.dtype], device, inputs, n)
    step = stepper(variant.make(), problem)
    step()
    print(measure_peak(step, problem, device))
