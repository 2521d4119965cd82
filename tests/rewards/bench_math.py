"""Throughput of the reward `math` and of Math-Verify on one core: `python tests/rewards/bench_math.py`.

Prints checks a second on three kinds of pairs, half of them wrong (the answer of another problem), and the
ratio. Math-Verify (`pip install math-verify`) is left out of the table where it is not installed.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import time
from importlib import metadata
from pathlib import Path

from posttrain.rewards.math import math
from posttrain.rewards.math.extract import last_boxes
from posttrain.rewards.math.verdict import understand_gold
from posttrain.types import Example

DATA = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).resolve().parents[3] / "shared/data"))


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def kinds() -> dict[str, list[tuple[str, str]]]:
    """Pairs of gold and completion by kind."""
    gsm = [(r["answer"].rpartition("#### ")[2], r["answer"]) for r in rows("gsm8k/test.jsonl")]
    boxes = [(", ".join(last_boxes(r["solution"])), r["solution"]) for r in rows("math/test.jsonl")]
    plain = [(gold, rf"\boxed{{{gold}}}") for gold, _ in gsm]
    short = [(gold, rf"\boxed{{{gold}}}") for gold, _ in boxes]
    return {
        "GSM8K answers in a box": mixed(plain),
        "MATH answers in a box": mixed(short),
        "MATH solutions": mixed(boxes),
    }


def mixed(pairs: list[tuple[str, str]], n: int = 1000) -> list[tuple[str, str]]:
    draw = random.Random(0)
    chosen = draw.sample(pairs, n)
    return [p if i % 2 else (p[0], draw.choice(pairs)[1]) for i, p in enumerate(chosen)]


def ours(gold: str, completion: str) -> float:
    return math(completion, Example(answer=gold)).value or 0.0


def theirs():
    """Math-Verify with its defaults, gold in a box so that it is found."""
    try:
        from math_verify import parse, verify
    except ImportError:
        return None
    return lambda gold, completion: float(verify(parse(rf"\boxed{{{gold}}}"), parse(completion)))


def per_second(check, pairs: list[tuple[str, str]]) -> tuple[float, int]:
    """Checks a second, and how many were accepted."""
    understand_gold.cache_clear()
    for gold, completion in pairs[:20]:
        check(gold, completion)
    began = time.perf_counter()
    accepted = sum(check(gold, completion) for gold, completion in pairs)
    return len(pairs) / (time.perf_counter() - began), int(accepted)


def main() -> None:
    other = theirs()
    version = metadata.version("math-verify") if other else "not installed"
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"python {sys.version.split()[0]}, {machine}, math-verify {version}")
    for name, pairs in kinds().items():
        speed, accepted = per_second(ours, pairs)
        line = f"{name:24} ours {speed:8.0f}/s ({accepted} accepted)"
        if other:
            theirs_speed, theirs_accepted = per_second(other, pairs)
            line += f"   math-verify {theirs_speed:6.0f}/s ({theirs_accepted} accepted)"
            line += f"   {speed / theirs_speed:5.1f}x"
        print(line)


if __name__ == "__main__":
    main()
