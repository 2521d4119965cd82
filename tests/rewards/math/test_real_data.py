"""Real references: accepted in other forms, distinguished from each other; published verdicts reproduced."""

from __future__ import annotations

import json
import random
import re

import pytest

from posttrain.rewards.math import check_gold, math
from posttrain.rewards.math.extract import last_boxes
from posttrain.types import Example


def value(completion: str, answer: str, **options) -> float | None:
    return math(completion, Example(answer=answer), **options).value


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_math_500_solutions_against_their_answers(data_dir):
    found = rows(data_dir / "math/math500_test.jsonl")
    assert len(found) == 500
    assert [r["answer"] for r in found if value(r["solution"], r["answer"]) != 1.0] == []


def test_math_solutions_against_their_last_box(data_dir):
    found = [
        (r["solution"], ", ".join(last_boxes(r["solution"]))) for r in rows(data_dir / "math/test.jsonl")
    ]
    assert len(found) == 5000 and all(box for _, box in found)
    assert [box for solution, box in found if value(solution, box) != 1.0] == []


@pytest.mark.parametrize("extract", ["any", "last_number"])
def test_every_rationale_of_gsm8k_is_right_about_itself(data_dir, extract):
    found = rows(data_dir / "gsm8k/test.jsonl")
    assert len(found) == 1319
    options = {"mode": "gsm8k", "extract": extract}
    assert [r["answer"] for r in found if value(r["answer"], r["answer"], **options) != 1.0] == []


def test_all_verdicts_agree_with_the_published_ones(data_dir):
    """4 model solutions a question with OpenAI's own `is_correct`: 5,276, of which 2,001 are correct."""
    counts: dict = {}
    for row in rows(data_dir / "gsm8k/example_model_solutions.jsonl"):
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        for solution in (v for v in row.values() if isinstance(v, dict)):
            key = (solution["is_correct"], value(solution["solution"], gold, mode="gsm8k"))
            counts[key] = counts.get(key, 0) + 1
    assert counts == {(True, 1.0): 2001, (False, 0.0): 3275}


def math_answers(data_dir) -> list[str]:
    boxes = [", ".join(last_boxes(r["solution"])) for r in rows(data_dir / "math/test.jsonl")]
    train = json.loads((data_dir / "math/train_answers.json").read_text("utf-8"))
    return boxes + [r["answer"] for r in train if r["answer"]]


EQUAL = [("5", "x=5"), ("4", r"\$4"), ("40", r"40\text{ min}")]
"""Kinds of pairs among shuffled answers that are equal by our policies: a name or unit is missing."""


def without_clothes(text: str) -> str:
    """Drops what the policies let an answer leave out: names, units, currency, percent and degree signs."""
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text.strip().strip("$. "))
    text = re.sub(
        r"\\(?:text|mbox|textnormal)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?\.?$", "", text.replace(r"\$", "")
    )
    text = re.sub(r"\^\{?\\circ\}?$|\\%$", "", text.strip())
    text = re.sub(
        r"\\[dt]frac", r"\\frac", re.sub(r"\\left|\\right|\\!|\\,|[\s{}]|(?<=\d),(?=\d{3})", "", text)
    )
    return "1" if text == "100" else text.replace("(", "").replace(")", "")  # 100% is 1


def test_shuffled_answers_are_told_apart(data_dir):
    """5,000 pairs of answers to different problems: what is accepted is the same text without its clothes."""
    answers = math_answers(data_dir)
    draw = random.Random(4)
    pairs = [(a, b) for a, b in (draw.sample(answers, 2) for _ in range(6000)) if a.strip() != b.strip()][
        :5000
    ]
    accepted = [(a, b) for a, b in pairs if value(rf"\boxed{{{b}}}", a)]
    assert len(pairs) == 5000
    assert [pair for pair in accepted if without_clothes(pair[0]) != without_clothes(pair[1])] == []


def test_every_reference_of_math_is_accepted_at_load_time_and_by_itself(data_dir):
    for answer in math_answers(data_dir):
        if answer.strip():
            check_gold(Example(answer=answer))
            assert value(rf"\boxed{{{answer}}}", answer) == 1.0, answer


def rewrites(gold: str, draw: random.Random) -> list[str]:
    """Other ways to write a reference: spacing, fractions, decimals, order of sets and lists, names."""
    forms = [
        gold.replace("$", ""),
        f"${gold.replace('$', '')}$",
        re.sub(r"(?<=[,+=<>])|(?=[+=<>])", r"\\, ", gold.replace("$", "")),
    ]
    forms.append(gold.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", r"\right)"))
    forms.append(re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"{(\1)/(\2)}", gold))
    forms.append(re.sub(r"\^\{(\w)\}", r"^\1", gold).replace(" ", "  "))
    whole = re.fullmatch(r"\$?(-?\d{1,9})\$?", gold)
    if whole:
        n = int(whole[1])
        forms += [
            f"{n}.0",
            f"{n:,}",
            f"{n:,}".replace(",", r"\,"),
            f"{n:,}".replace(",", "{,}"),
            rf"\frac{{{3 * n}}}{{3}}",
            f"x = {n}",
            rf"\text{{{n}}}",
            rf"{n} \text{{ apples}}",
            rf"\fbox{{{n}}}",
            f"{n}e0",
            rf"{n} \times 10^{{0}}",
        ]
    decimal = re.fullmatch(r"\$?(-?)(\d+)\.(\d{1,6})\$?", gold)
    if decimal:
        sign, before, after = decimal.groups()
        top = int(before + after)
        forms += [
            rf"{sign}\frac{{{top}}}{{{10 ** len(after)}}}",
            f"{sign}{before}.{after}00",
            f"{sign}{top}e-{len(after)}",
        ]
    members = gold.replace("$", "").split(",")
    if len(members) > 1 and not re.search(r"[()\[\]{}=]", gold):
        draw.shuffle(members)
        forms += [
            ", ".join(members),
            r"\{" + ",".join(members) + r"\}",
            " and ".join(members),
            "x=" + " or x=".join(members),
        ]
    return forms


def test_olympiadbench_golds_in_other_forms_and_told_apart(data_dir):
    draw = random.Random(3)
    golds = [
        a for r in rows(data_dir / "olympiadbench/test.jsonl") for a in r["final_answer"] if "where" not in a
    ]
    assert len(golds) >= 600
    refused, forms = [], 0
    for gold in golds:
        check_gold(Example(answer=gold))
        for form in rewrites(gold, draw):
            forms += 1
            if value(rf"\boxed{{{form}}}", gold) != 1.0:
                refused.append((gold, form))
    assert forms > 5000 and refused == []
    shuffled = golds[:]
    draw.shuffle(shuffled)
    accepted = [
        (a, b) for a, b in zip(golds, shuffled, strict=True) if a != b and value(rf"\boxed{{{b}}}", a)
    ]
    assert [
        p
        for p in accepted
        if without_clothes(p[0].replace("$", "")) != without_clothes(p[1].replace("$", ""))
    ] == []


def test_theoremqa_golds_in_other_forms_and_told_apart(data_dir):
    found = json.loads((data_dir / "theoremqa/theoremqa_test.json").read_text("utf-8"))
    golds = [str(r["Answer"]) for r in found]
    assert len(golds) == 800
    draw = random.Random(5)
    refused = []
    for row, gold in zip(found, golds, strict=True):
        check_gold(Example(answer=gold))
        forms = rewrites(gold, draw) if row["Answer_type"] in ("integer", "float") else [gold, f"${gold}$"]
        if row["Answer_type"] == "bool":
            forms += [rf"\text{{{gold}}}", gold.lower()]
        if row["Answer_type"] == "option":
            forms += [gold.strip("()"), rf"\text{{{gold}}}"]
        refused += [(gold, form) for form in forms if value(rf"\boxed{{{form}}}", gold) != 1.0]
    assert refused == []
    shuffled = golds[:]
    draw.shuffle(shuffled)
    accepted = [
        (a, b) for a, b in zip(golds, shuffled, strict=True) if a != b and value(rf"\boxed{{{b}}}", a)
    ]
    assert [p for p in accepted if float(p[0].strip("[]")) != float(p[1].strip("[]"))] == []
