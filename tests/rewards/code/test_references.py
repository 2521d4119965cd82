"""Reference solutions of real data sets pass, empty ones fail. A sample; `reference.py` runs all."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain.rewards.code import code
from posttrain.types import Example

sys.path.insert(0, str(Path(__file__).parent))

SAMPLES = {"humaneval": 4, "humaneval_plus": 20, "mbpp": 14, "leetcode_train": 60, "leetcode_test": 12}
"""Every so many rows."""


@pytest.mark.parametrize("name", SAMPLES)
def test_references_pass_and_stubs_do_not(name, data_dir):
    from reference import rows

    picked = list(rows(name, data_dir))[:: SAMPLES[name]]
    if name == "humaneval":
        picked += [
            r for r in rows(name, data_dir) if r[0] in ("HumanEval/32", "HumanEval/38", "HumanEval/50")
        ]
    if name == "mbpp":
        picked += [r for r in rows(name, data_dir) if r[0] in (126, 367, 927)]
    with ThreadPoolExecutor(4) as threads:
        right = list(threads.map(lambda r: code(r[1], Example(extra=r[2])), picked))
        wrong = list(threads.map(lambda r: code("def nothing(): pass", Example(extra=r[2])), picked))
    assert {r[0]: v.reason for r, v in zip(picked, right, strict=True) if v.value != 1.0} == {}
    assert {
        r[0] for r, v in zip(picked, wrong, strict=True) if (v.value, v.status) != (0.0, "scored")
    } == set()
