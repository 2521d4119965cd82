"""Scores every reference solution of a data set: `python tests/rewards/code/reference.py [name ...]`.

Prints what did not pass and why, and checks a second. `--backend` picks the walls. Left out of the tests:
minutes long.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from posttrain.rewards.code import code
from posttrain.types import Example

FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "humaneval_plus": "humaneval_plus/HumanEvalPlus.jsonl.gz",
    "mbpp": "mbpp/mbpp.jsonl",
    "leetcode_train": "leetcode/LeetCodeDataset-v0.2.0-train.jsonl.gz",
    "leetcode_test": "leetcode/LeetCodeDataset-v0.2.0-test.jsonl.gz",
}
INPUTS = ("prompt", "entry_point", "base_input", "plus_input", "atol", "canonical_solution")
SECONDS = 60


def rows(name: str, data: Path):
    """(id, reference solution, the row's columns)."""
    path = data / FILES[name]
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for row in map(json.loads, file):
            if name == "mbpp":
                columns = {"tests": row["test_list"], "setup": row["test_setup_code"]}
                yield row["task_id"], row["code"], columns | {"timeout": SECONDS}
            elif name == "humaneval_plus":
                columns = {key: row[key] for key in INPUTS} | {"timeout": SECONDS}
                yield row["task_id"], row["canonical_solution"], columns
            else:
                columns = {key: row[key] for key in ("prompt", "test", "entry_point")}
                yield (
                    row["task_id"],
                    row.get("canonical_solution") or row["completion"],
                    columns | {"timeout": SECONDS},
                )


def main() -> None:
    parser = argparse.ArgumentParser(description="reference solutions through the reward `code`")
    parser.add_argument("names", nargs="*", default=list(FILES))
    parser.add_argument("--backend", default="auto")
    given = parser.parse_args()
    data = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).resolve().parents[4] / "shared/data"))
    for name in given.names:
        found = list(rows(name, data))
        start = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            verdicts = list(
                threads.map(lambda r: code(r[1], Example(extra=r[2]), backend=given.backend), found)
            )
        spent = time.monotonic() - start
        for row, verdict in zip(found, verdicts, strict=True):
            if verdict.value != 1.0:
                print(
                    f"  {row[0]}: {verdict.status} {verdict.reason[:160]} {verdict.details.get('limit', '')}"
                )
        passed = sum(v.value == 1.0 for v in verdicts)
        print(f"{name}: {passed} of {len(found)} pass, {len(found) / spent:.1f} checks/s")


if __name__ == "__main__":
    main()
