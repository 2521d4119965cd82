"""Unions of models: worked by hand, by drawing every set of attempts, and by what must hold."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluate.metrics import pass_at_k, pass_at_n
from posttrain.report.differences import Place
from posttrain.report.page import render
from posttrain.report.unions import of_last, pooled, union
from posttrain.rundir.reading import RunData
from tests.report import stages
from tests.report.test_page import Parsed
from tests.rundir.written import lines, score

EXACT = st.lists(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=3, max_size=3), min_size=2, max_size=4)


class Held:
    """What `union` reads of a run: rows of samples, and the hash of its settings."""

    def __init__(self, rows: list[dict], settings: str = "task-template") -> None:
        self.rows_, self.hash = rows, settings

    def settings(self, task: str) -> dict[str, dict]:
        return {self.hash: {}}

    def samples(self, checkpoint: str, task: str, settings: str | None = None) -> list[dict]:
        return self.rows_


def exact(*ps: float, **options) -> Place:
    return Place(Held([{"id": i, "logp": math.log(p)} for i, p in enumerate(ps)], **options), "step-000001")


def sampled(*counts: tuple[int, int], **options) -> Place:
    """(right, judged) of each problem, and one completion whose check failed."""
    rows = [
        {"id": i, "completions": [*({"value": float(j < c)} for j in range(n)), {"value": None}]}
        for i, (c, n) in enumerate(counts)
    ]
    return Place(Held(rows, **options), "step-000001")


def test_exact_by_hand():
    """p = .5 and .75 for one problem, .1 twice for the other: 1 - (.5 * .25)^(4/2), 1 - (.9 * .9)^(4/2)."""
    mean, values = union([exact(0.5, 0.1), exact(0.75, 0.1)], "t", [4])
    assert values[4] == pytest.approx({"0": 1 - (0.5 * 0.25) ** 2, "1": 1 - 0.81**2})
    assert mean[4] == pytest.approx((1 - 0.125**2 + 1 - 0.81**2) / 2)


def test_sampled_by_hand():
    """2 of 4 and 1 of 3 right. Each draws one: 1 - 2/4 * 2/3 = 2/3. Each draws two: 1 - 1/6 * 1/3 = 17/18. An
    odd number cannot be shared, and of eight the second has too few."""
    mean, values = union([sampled((2, 4)), sampled((1, 3))], "t", [1, 2, 3, 4, 8])
    assert mean == pytest.approx({2: 2 / 3, 4: 17 / 18}) and values[2] == pytest.approx({"0": 2 / 3})


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)).map(lambda x: (min(x), x[0] + x[1])), min_size=2)
    .map(lambda models: models[:3])
    .filter(lambda models: all(n >= 2 for _, n in models)),
    st.integers(1, 2),
)
def test_sampled_as_drawn(models, each):
    """The share of all ways to draw `each` completions of every model in which one is right."""
    mean, _ = union([sampled(one) for one in models], "t", [each * len(models)])
    ways = [list(itertools.combinations([i < c for i in range(n)], each)) for c, n in models]
    draws = [any(itertools.chain(*draw)) for draw in itertools.product(*ways)]
    assert mean[each * len(models)] == pytest.approx(sum(draws) / len(draws))


@given(EXACT, st.integers(1, 64))
def test_a_union_lies_between_its_models(models, n):
    """Per problem between the worst and the best; of equal models it is their pass@N; their order is none."""
    _, values = union([exact(*ps) for ps in models], "t", [n])
    for i, ps in enumerate(zip(*models, strict=True)):
        each = [float(pass_at_n(math.log(p), n)) for p in ps]
        assert min(each) - 1e-9 <= values[n][str(i)] <= max(each) + 1e-9
    alike, _ = union([exact(*models[0])] * len(models), "t", [n])
    assert alike[n] == pytest.approx(sum(pass_at_n([math.log(p) for p in models[0]], n)) / 3, abs=1e-12)
    assert union([exact(*ps) for ps in reversed(models)], "t", [n])[0] == pytest.approx(
        union([exact(*ps) for ps in models], "t", [n])[0]
    )


@given(st.integers(1, 6), st.integers(0, 6))
def test_many_samples_of_a_model_split_are_no_better_than_together(n, c):
    """Of one model counted twice, the halves are drawn with the same completions possible: 1 - q^2, where all
    k together have 1 - C(n-c, 2) / C(n, 2); equal where c is 0 or all."""
    c = min(c, n)
    mean, _ = union([sampled((c, n)), sampled((c, n))], "t", [2])
    assert mean[2] == pytest.approx(1 - (1 - c / n) ** 2)
    if n >= 2:
        assert mean[2] <= pass_at_k(c, n, 2)[0] + 1e-12


def test_only_what_all_were_asked_and_measured_alike():
    few = exact(0.5)
    assert union([exact(0.5, 0.1), few], "t", [2])[1][2].keys() == {"0"}
    other = exact(0.5, 0.1, settings="other-template")
    assert union([exact(0.5, 0.1), other], "t", [2]) == ({}, {})
    template = exact(0.5, 0.1, settings="task-another")
    assert union([exact(0.5, 0.1), template], "t", [2])[0], "the chat template belongs to the model"
    assert union([exact(0.5), sampled()], "t", [2]) == ({}, {}) == union([], "t", [2])
    _, told = of_last([exact(0.5, 0.1), few], "t", [2], problems=2)
    assert told == "dashed: union of the 2 runs, the attempts spread evenly over them, over 1 of 2 problems"
    assert of_last([few], "t", [2], 1) == ({}, "")


def test_pooled_leaves_the_start_out(tmp_path):
    probabilities = {0: (1e-9, 1e-9), 10: (0.5, 0.1), 20: (0.75, 0.1)}
    run = tmp_path / "run"
    for step, ps in probabilities.items():
        rows = [{"id": i, "logp": math.log(p)} for i, p in enumerate(ps)]
        lines(run / "samples" / f"step-{step:06d}" / "t.jsonl", rows)
    lines(run / "scores.jsonl", [score(f"step-{s:06d}", "t", "pass@4", 0.5, 2) for s in probabilities])
    values, count = pooled(RunData.load(run), "t", [4])
    assert count == 2 and values[4] == pytest.approx(((1 - (0.5 * 0.25) ** 2) + (1 - 0.81**2)) / 2)
    lines(run / "samples" / "step-000020" / "t.jsonl", [])
    assert pooled(RunData.load(run), "t", [4]) == ({}, 0)


def test_the_page_draws_the_union(tmp_path):
    """Two runs, good at different problems, are better together than either."""
    paths = [tmp_path / name for name in ("a", "b")]
    for path, table in zip(paths, ((-6.0, 4.0), (-5.0, 4.0)), strict=True):
        stages.papers(path, "sft", {"loss": {"name": "cross_entropy"}, "train": {"seed": len(path.name)}})
        stages.scored(path, {100: table})
    rows = [json.loads(line) for line in (paths[1] / "samples/step-000100/arithmetic.jsonl").open()]
    for row, logp in zip(rows, [row["logp"] for row in reversed(rows)], strict=True):
        row["logp"] = logp
    lines(paths[1] / "samples/step-000100/arithmetic.jsonl", rows)
    runs = [RunData.load(path) for path in paths]
    text = Parsed(render(runs)).text
    assert "union of the 2 runs, the attempts spread evenly over them" in text
    assert re.search(r"union of the 2\s*runs", text.replace("union of the 2 runs,", ""))
    own = [run.rows("arithmetic")["step-000100"]["pass@128"].value for run in runs]
    together, _ = union([Place(run, "step-000100") for run in runs], "arithmetic", [128])
    assert together[128] > max(own)
    assert "union of" not in Parsed(render(runs[:1])).text
