"""The table of a sweep: means over seeds, their spread, the best of a column."""

from __future__ import annotations

import json
import math
from statistics import mean, stdev

import numpy as np
import pytest
import yaml

from posttrain.evaluate.seeds import over_seeds
from posttrain.report.side_tables import side_table
from posttrain.report.sides import sides
from posttrain.report.text import share
from posttrain.rundir.reading import RunData


@pytest.fixture
def run(tmp_path, tables):
    """run(n, seed, probabilities) -> a run of the confidence-limited loss with this N."""

    def make(n: float, seed: int, ps: list[float]) -> RunData:
        path = tmp_path / f"n-{n:g}_seed-{seed}"
        rows = [{"id": str(i), "logp": math.log(p)} for i, p in enumerate(ps)]
        tables["lines"](path / "samples" / "step-000009" / "t.jsonl", rows)
        at = {k: float(np.mean(1 - (1 - np.array(ps)) ** k)) for k in (1, 16)}
        scores = [tables["score"]("step-000009", "t", f"pass@{k}", v, len(ps), 0.01) for k, v in at.items()]
        tables["lines"](path / "scores.jsonl", scores)
        (path / "run.json").write_text(json.dumps({"name": path.name, "status": "finished", "stage": "sft"}))
        recipe = {"loss": {"name": "confidence_limited", "n": n}, "train": {"seed": seed}}
        (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return RunData.load(path)

    return make


def test_means_spread_and_the_best(run):
    rng = np.random.default_rng(0)
    drawn = {(n, s): [*rng.beta(2 + n, 20, 40)] for n in (1, 4) for s in range(3)}
    table = side_table(sides([run(n, s, ps) for (n, s), ps in drawn.items()]), "t")
    assert table.columns == ["pass@1", "pass@16"] and [row.step for row in table.rows] == [9, 9]
    assert [row.side.title for row in table.rows] == [
        "Confidence-limited N = 1 (3 seeds)",
        "Confidence-limited N = 4 (3 seeds)",
    ]
    for n, row in zip((1, 4), table.rows, strict=True):
        each = np.array([drawn[n, s] for s in range(3)])
        means, cell = [mean(ps) for ps in each], row.cells[0]
        found = over_seeds(each)
        assert (cell.text, cell.spread) == (share(mean(means)), f"± {share(stdev(means))}")
        assert cell.interval == f"{share(found.low)}–{share(found.high)}"
    assert [[cell.best for cell in row.cells] for row in table.rows] == [[False, False], [True, True]]
    assert "chosen among 2 on the problems shown, which flatters it" in table.note
    assert "95 % interval over problems and seeds" in table.note


def test_all_that_print_as_the_best_are_bold(run):
    table = side_table(sides([run(n, 0, [p, 0.2, 0.3]) for n, p in ((1, 0.1), (4, 0.1005), (16, 0.05))]), "t")
    assert [row.cells[0].text for row in table.rows] == [".200", ".200", ".183"]
    assert [row.cells[0].best for row in table.rows] == [True, True, False]


def test_one_seed_a_side_has_no_spread(run):
    table = side_table(sides([run(n, 0, [0.1, 0.2, 0.3]) for n in (1, 4)]), "t")
    assert {cell.spread for row in table.rows for cell in row.cells} == {""}
    assert table.rows[0].cells[0].interval == ".190–.210", "that of the score"
    assert not any(cell.best for row in table.rows for cell in row.cells), "a tie has no best"
    assert "over the problems of one run each" in table.note
    assert side_table(sides([run(1, 0, [0.1])]), "t") is None, "nothing to compare"
