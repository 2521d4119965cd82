"""Hard pairs of reference and answer, in both directions: `right.txt` and `wrong.txt`, a pair a line.

They were written before the checker was tuned, from the failures that other graders are known for: values
that underflow, dropped base subscripts, chains like 7=42, prose in the box, copied integrals, lists whose
first item is right; and right answers in unusual clothes.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from posttrain.rewards.math import check_gold, math
from posttrain.types import Example

HERE = Path(__file__).parent


def pairs(name: str) -> list:
    found, category = [], ""
    for line in (HERE / name).read_text("utf-8").splitlines():
        if line.startswith("# "):
            category = line[2:]
        else:
            gold, answer = line.split(" ~ " if not line.endswith(" ~ ") else " ~", 1)
            found.append(pytest.param(gold, answer.strip(), id=f"{category}: {gold} ~ {answer}"))
    return found


def judge(gold: str, answer: str, **options):
    check_gold(Example(answer=gold), **options)
    began = time.process_time()
    verdict = math(f"Therefore $\\boxed{{{answer}}}$.", Example(answer=gold), **options)
    assert time.process_time() - began < 1.5
    assert verdict.status in ("scored", "unparseable")
    return verdict


@pytest.mark.parametrize(("gold", "answer"), pairs("right.txt"))
def test_right_answers_are_accepted(gold, answer):
    verdict = judge(gold, answer)
    assert (verdict.value, verdict.reason) == (1.0, "")


@pytest.mark.parametrize(("gold", "answer"), pairs("wrong.txt"))
def test_wrong_answers_are_rejected(gold, answer):
    verdict = judge(gold, answer)
    assert verdict.value == 0.0 and verdict.reason


@pytest.mark.parametrize(("gold", "answer"), pairs("right.txt"))
def test_every_gold_and_every_answer_equals_itself(gold, answer):
    assert judge(gold, gold).value == 1.0
    assert judge(answer, answer).value == 1.0


def test_the_tables_are_large_enough():
    assert len(pairs("right.txt")) > 200 and len(pairs("wrong.txt")) > 200
