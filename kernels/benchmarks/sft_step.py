"""Complete SFT steps: tokens/s, peak memory and model FLOP utilisation, compared with TRL's SFTTrainer.

    python kernels/benchmarks/sft_step.py                # llama-1b on a GPU, small on a CPU
    python kernels/benchmarks/sft_step.py --toy          # seconds, to see whether it runs

Both trainers are in one process, with the same weights (a copy), the same rows in the same order and the same
arguments (a copy), and train in turns, a block of steps each. A step is timed from the end of the one before
to its own end: data, forward, backward, clipping, optimizer. The first step of a block only warms up. Ours is
the trainer that `posttrain sft` builds, with all its callbacks; TRL's is `trl.SFTTrainer` with its defaults,
so its fused head takes the path that TRL takes on this device.

The gain is compared with what the head alone predicts: both heads are timed on the hidden states of this
model, after each pair of blocks, and step / (step - TRL's head + our head) is the gain if nothing else
differed.

Left out: several GPUs, padding, accumulation, logging (every tenth step in both trainers).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL's trainer would report its use
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve()
sys.path[1:1] = [str(HERE.parents[2]), str(HERE.parents[1])]  # posttrain and its kernels
import timing  # noqa: E402
import torch  # noqa: E402
from sft_case import CASES, describe  # noqa: E402
from sft_run import run  # noqa: E402
from show import show_steps  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--case", choices=CASES, default="llama-1b" if cuda else "small")
    add("--n", type=float, default=1.0, help="N of our loss; 1 is the cross-entropy that TRL computes")
    add("--blocks", type=int, default=4, help="blocks per trainer")
    add("--steps", type=int, default=6, help="steps per block; the first one is not timed")
    add("--repeats", type=int, default=3, help="calls of each head after each block")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--toy", action="store_true", help="a tiny model, few steps")
    add("--json", type=Path, help="result file (default: results/, none for --toy)")
    args = parser.parse_args()
    if args.toy:
        args.case, args.blocks, args.steps, args.repeats = "toy", 2, 3, 2
    if args.steps < 2 or args.blocks < timing.PASSES:
        parser.error(f"--steps must be 2 or more and --blocks {timing.PASSES} or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    case = CASES[args.case]
    settings = {name: getattr(args, name) for name in ("n", "blocks", "steps", "repeats", "toy")}
    result = timing.stamp("sft-step", settings) | {"case": describe(case)}
    with tempfile.TemporaryDirectory(prefix="sft-step-") as folder:
        result |= run(case, args, Path(folder))
    show_steps(result)
    path = args.json or (None if args.toy else timing.result_path("sft-step", result["machine"]))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(timing.clean(result), indent=1, allow_nan=False) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
