"""Forward + backward through the head: time and memory of every variant in `peers.VARIANTS`.

    python kernels/benchmarks/head.py                      # the shapes of this device
    python kernels/benchmarks/head.py --shapes 8192x4096x128256 --cases planted:256
    python kernels/benchmarks/head.py --toy                # seconds, to see whether it runs

All variants are timed in one process in turns, in two passes, by CUDA events on a GPU and by the host's clock
elsewhere; the table has the median after a warm-up. Peak memory is above the inputs, including gradients: of
the allocator on CUDA, of the resident set on a CPU, where each variant runs in its own child process. The
floor is the time of the three matmuls at the same shape and dtype in the same run. Before the first table
each variant's loss and gradients are compared with fp64 on a small shape. A variant that cannot run is listed
with the reason.

The result file is written again after each case.

Left out: more than one GPU, frozen heads, LoRA.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # posttrain_kernels, where not installed
import timing
from head_case import DTYPES, TOLERANCE, check, child, read_case, read_shape, run_case
from peers import VARIANTS
from problem import SEGMENT
from show import show_case, show_checks

GPU_SHAPES = (
    "8192x2048x32000",
    "8192x4096x32000",
    "8192x2048x128256",
    "8192x4096x128256",
    "8192x4096x151936",
    "8192x4096x262144",
    "16384x2048x151936",
)
CPU_SHAPES = ("4096x512x32000",)
TOY_SHAPES = ("256x64x1000",)
CASES = ("planted:256", "random:256", "planted:1")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=DTYPES, help="default: bf16 on a GPU, fp32 on a CPU")
    add("--shapes", nargs="+", metavar="TxHxV")
    add("--cases", nargs="+", default=list(CASES), metavar="INPUTS:N")
    add("--variants", nargs="+", choices=[v.name for v in VARIANTS], metavar="NAME")
    add("--repeats", type=int, help="calls per pass (default 10, 3 on a CPU)")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--keep-caches", action="store_true", help="first calls may use kernels compiled earlier")
    add("--toy", action="store_true", help="a tiny shape on the CPU")
    add("--json", type=Path, help="result file (default: results/, none for --toy)")
    add("--child", help=argparse.SUPPRESS)  # measure this variant's peak here and print it
    args = parser.parse_args()
    if args.toy:
        args.device, args.repeats, args.cases = "cpu", args.repeats or 2, ["planted:256"]
    cuda = torch.device(args.device).type == "cuda"
    args.dtype = args.dtype or ("bf16" if cuda else "fp32")
    args.repeats = args.repeats or (10 if cuda else 3)
    args.shapes = args.shapes or list(TOY_SHAPES if args.toy else GPU_SHAPES if cuda else CPU_SHAPES)
    args.variants = args.variants or [v.name for v in VARIANTS]
    try:
        for shape in args.shapes:
            read_shape(shape)
        for case in args.cases:
            read_case(case)
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse()
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.child:
        child(args, device)
        return
    settings = {
        "dtype": args.dtype,
        "repeats": args.repeats,
        "passes": timing.PASSES,
        "segment": SEGMENT,
        "reduction": "token_mean",
        "toy": args.toy,
        "cold_caches": not args.keep_caches,
        "tolerance": TOLERANCE[args.dtype],
    }
    result = timing.stamp("head", settings)
    result["variants"] = {v.name: {"kind": v.kind, "what": v.what, "exact": v.exact} for v in VARIANTS}
    result["cases"] = []
    path = args.json or (None if args.toy else timing.result_path("head", result["machine"]))
    for number, (shape, case) in enumerate((s, c) for s in args.shapes for c in args.cases):
        found = run_case(args, shape, case, device)
        timing.tidy(device)
        result["cases"].append(found)
        if number == 0:  # after the first case, so that its first calls were the first of the process
            result["checks"] = check(args, device)
            show_checks(result["checks"], settings)
        show_case(found)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(timing.clean(result), indent=1, allow_nan=False) + "\n")
    if path:
        print(f"written to {path}")


if __name__ == "__main__":
    if "--keep-caches" in sys.argv or "--child" in sys.argv:
        main()
    else:
        with timing.cold_caches():
            main()
