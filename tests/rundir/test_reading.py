"""Reading run directories: what wins, what is tolerated, what is refused."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import RequestError
from posttrain.recipe.build import shown
from posttrain.rundir.reading import PipelineData, RunData, step_of
from posttrain.rundir.rows import pass_k


def test_last_line_of_a_step_and_split_wins(tmp_path, tables):
    """A run stopped at 20 and resumed from 10 wrote step 20 twice; held-out lines are their own."""
    rows = [
        {"step": 10, "split": "train", "loss": 3.0},
        {"step": 20, "split": "train", "loss": 2.0},
        {"step": 20, "split": "heldout", "loss": 9.0},
        {"step": 20, "split": "train", "loss": 1.0},
    ]
    tables["lines"](tmp_path / "run" / "metrics.jsonl", rows)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "split": "tr')  # torn
    run = RunData.load(tmp_path / "run")
    assert [(r["step"], r["loss"]) for r in run.metrics["train"]] == [(10, 3.0), (20, 1.0)]
    assert [r["loss"] for r in run.metrics["heldout"]] == [9.0]


def test_last_score_wins_and_settings_are_counted(tmp_path, tables):
    score = tables["score"]
    rows = [score("step-000010", "t", "pass@1", v, 5) for v in (0.1, 0.4)]
    rows[1]["settings"] = "s2"
    rows.append({"checkpoint": "step-000010", "task": "t"})
    rows.append(score("step-000020", "t", "pass@1", 0.5, 5) | {"value": None})
    tables["lines"](tmp_path / "run" / "scores.jsonl", rows)
    run = RunData.load(tmp_path / "run")
    assert [s.value for s in run.scores] == [0.1, 0.4]
    assert run.settings("t") == {"s1": {}, "s2": {}}, "of as many checkpoints: the one written first"
    assert run.rows("t")["step-000010"]["pass@1"].value == 0.1
    assert len(run.unread) == 2, "the row without a value and the row with a null one"


def test_what_differs_never_is_the_face_of_a_run(tmp_path, tables):
    """Scored once by the recipe, then twice hotter, and on fewer problems: the recipe's own stays."""
    score = tables["score"]
    rows = [score("step-000010", "t", "pass@1", 0.1, 5)]
    rows += [
        score(f"step-{step:06d}", "t", "pass@1", 0.4, 5) | {"settings": s, "differs": differs}
        for step in (10, 20)
        for s, differs in (("s2", {"temperature": 1.5}), ("s3", {"limit": 2}))
    ]
    tables["lines"](tmp_path / "run" / "scores.jsonl", rows)
    sample = {"id": "a", "logp": -1.0, "logp_at": {"1.0": -1.0, "1.5": -2.0}}
    tables["lines"](tmp_path / "run" / "samples" / "step-000010" / "t.jsonl", [sample])
    tables["lines"](tmp_path / "run" / "samples" / "step-000010" / "t.s3.jsonl", [{"id": "b", "logp": -3.0}])
    run = RunData.load(tmp_path / "run")
    assert run.settings("t") == {"s1": {}, "s2": {"temperature": 1.5}, "s3": {"limit": 2}}
    assert [*run.rows("t")] == ["step-000010"] and [*run.rows("t", "s3")] == ["step-000010", "step-000020"]
    found = [run.samples("step-000010", "t", s)[0] for s in (None, "s1", "s2", "s3")]
    assert [row["logp"] for row in found] == [-1.0, -1.0, -2.0, -3.0]
    assert run.samples("step-000020", "t", "s2") == [] == run.samples("step-000020", "t", "s3")


def test_rows_follow_steps_not_the_order_of_writing(tmp_path, tables):
    """Scoring workers finish in any order."""
    rows = [tables["score"](f"step-{s:06d}", "t", "pass@1", s / 1000, 5) for s in (300, 0, 100)]
    tables["lines"](tmp_path / "run" / "scores.jsonl", rows)
    assert list(RunData.load(tmp_path / "run").rows("t")) == ["step-000000", "step-000100", "step-000300"]


@pytest.mark.parametrize("content", ["[1, 2]", "{", "null", '"x"', "\xff"])
def test_broken_parts_are_named_not_fatal(tmp_path, content):
    for name in ("run.json", "mixture.json", "recipe.yaml"):
        (tmp_path / name).write_text(content, encoding="latin-1")
    (tmp_path / "scores.jsonl").write_text("{]\n[1]\n{}\n")
    run = RunData.load(tmp_path)
    assert {text.split(":")[0].rpartition("/")[2] for text in run.unread} >= {"run.json", "scores.jsonl"}
    assert (run.run, run.mixture, run.recipe, run.scores) == ({}, {}, {}, [])


def test_checkpoints_complete_and_partial(runs):
    states = {c.name: (c.step, c.complete) for c in runs[0].checkpoints}
    assert states["step-001800"] == (1800, True) and states["step-001500"] == (1500, False)


def test_no_run_names_the_nearest(pair):
    folder = pair[0].parent
    with pytest.raises(RequestError, match=r"cl-265: no such run \(did you mean 'cl-256'\?\)"):
        RunData.load(folder / "cl-265")
    with pytest.raises(
        RequestError, match="contains runs but is not a run itself; choose one of: ce, cl-256"
    ):
        RunData.load(folder)
    with pytest.raises(RequestError, match="not a run directory"):
        RunData.load(pair[0] / "checkpoints" / "step-000000")


def test_no_run_names_the_nearest_in_sweeps_too(tmp_path, monkeypatch):
    for name in ("runs/ns/n-16_seed-0", "runs/ns/n-16_seed-1", "runs/try", "data"):
        (tmp_path / name).mkdir(parents=True)
    for run in ("ns/n-16_seed-0", "ns/n-16_seed-1", "try"):
        (tmp_path / "runs" / run / "run.json").write_text("{}")
    (tmp_path / "runs/ns/pipeline.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for wrong, near in {
        "runs/n-16_seed-1": "ns/n-16_seed-1",
        "runs/ns/n16_seed-1": "n-16_seed-1",
        "runs/nss": "ns",
        "runs/nss/n-16_seed-1": "ns/n-16_seed-1",
        "rusn/try": "runs/try",
        "try": "runs/try",
        "n-16_seed-0": "runs/ns/n-16_seed-0",
    }.items():
        for load in (RunData.load, PipelineData.load):
            with pytest.raises(RequestError) as caught:
                load(wrong)
            assert str(caught.value) == f"{wrong}: no such run (did you mean {near!r}?)"
    with pytest.raises(RequestError, match=r"choose one of: ns, try$"):
        RunData.load("runs")
    with pytest.raises(RequestError, match=r"runs/zzzzzz: no such run \(one of: ns, try\)"):
        RunData.load("runs/zzzzzz")
    with pytest.raises(RequestError, match=r"none/zzzzzz: no such run$"):
        RunData.load("none/zzzzzz")


def test_pipeline_holds_the_stages_that_started(pipeline):
    data = PipelineData.load(pipeline)
    assert data.name == "quickstart" and [r.name for r in data.runs] == ["ce", "cl-256"]
    assert data.failures == ["Stage third failed: disk full."]
    crossed = [{"name": "ce", "run": "cl-256"}, {"name": "third"}]
    (pipeline / "pipeline.json").rename(pipeline / "kept")
    (pipeline / "pipeline.json").write_text(json.dumps({"stages": crossed}))
    assert [r.name for r in PipelineData.load(pipeline).runs] == ["cl-256"], "`run` before `name`"
    (pipeline / "kept").replace(pipeline / "pipeline.json")
    with pytest.raises(RequestError, match="contains runs|no such run|not a run directory"):
        PipelineData.load(pipeline.parent)
    (pipeline.parent / "broken").mkdir(exist_ok=True)
    (pipeline.parent / "broken" / "pipeline.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        PipelineData.load(pipeline.parent / "broken")


def test_a_pipeline_reads_no_run_outside_of_its_folder(pipeline):
    """`run` and `name` alike; the others are read."""
    outside = ["..", ".", "../ce", str((pipeline / "ce").resolve()), "ce/", "a/../ce"]
    stages = [{"name": "ce"}, *({"run": name, "name": "third"} for name in outside), {"name": "../ce"}]
    (pipeline / "pipeline.json").write_text(json.dumps({"stages": stages}))
    data = PipelineData.load(pipeline)
    assert [run.name for run in data.runs] == ["ce"]
    assert data.unread == [
        f"pipeline.json: stages[{i}] names {shown(name)}, which is not a folder in {pipeline}"
        for i, name in enumerate([*outside, "../ce"], start=1)
    ]


def test_names_of_stages_that_are_none(pipeline):
    """Said by their place in the file; the others are read, and none is looked for on disk."""
    odd = [{"name": None}, {}, 7, None, [{"name": "ce"}]]
    named = [3, ["ce"], {"a": 1}, True, "", "x" * 300, "ß" * 128]
    stages = [
        *odd,
        *({"name": name} for name in named),
        {"run": 0, "name": "cl-256"},
        {"run": None, "name": "ce"},
    ]
    (pipeline / "pipeline.json").write_text(json.dumps({"stages": stages}))
    data = PipelineData.load(pipeline)
    assert [run.name for run in data.runs] == ["cl-256", "ce"]
    texts = ["3", "['ce']", "{'a': 1}", "true", "''", f"'{'x' * 56}...", f"'{'ß' * 56}...", "0"]
    assert data.unread == [
        *(f"pipeline.json: stages[{i}] is not a stage with a name" for i in range(5)),
        *(
            f"pipeline.json: stages[{i}] names {text}, which is not a folder in {pipeline}"
            for i, text in enumerate(texts, start=5)
        ),
    ]
    assert len(data.stages) == 9


def test_names():
    assert [pass_k(m) for m in ("pass@16", "pass@", "maj@4", "xpass@1")] == [16, None, None, None]
    assert [step_of(c) for c in ("step-000400", "final")] == [400, None]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"value": "0.5"}, 'value is "0.5", no finite number'),
        ({"value": True}, "value is true, no finite number"),
        ({"value": 5.0}, "value is 5.0, not between 0 and 1"),
        ({"metric": "truncated", "value": 40.0}, "value is 40.0, not between 0 and 1"),
        ({"metric": "maj@8", "value": -3.0}, "value is -3.0, not between 0 and 1"),
        ({"metric": "accuracy", "value": 1e300}, "value is 1e+300, not between 0 and 1"),
        ({"value": 10**400}, f"value is 1{'0' * 38}…, no finite number"),
        ({"value": float("nan")}, "value is NaN, no finite number"),
        ({"n": float("inf")}, "n is Infinity, no integer from 1 to 2^53"),
        ({"n": 0}, "n is 0, no integer from 1 to 2^53"),
        ({"n": 2.5}, "n is 2.5, no integer from 1 to 2^53"),
        ({"n": 2**53}, "n is 9007199254740992, no integer from 1 to 2^53"),
        ({"step": float("inf")}, "step is Infinity, no integer from 0 to 2^53"),
        ({"step": 10**30}, f"step is 1{'0' * 30}, no integer from 0 to 2^53"),
        ({"step": 9.5}, "step is 9.5, no integer from 0 to 2^53"),
        ({"step": -4}, "step is -4, no integer from 0 to 2^53"),
        ({"low": 0.9, "high": 0.1}, "value is 0.5, not within its interval [0.9, 0.1]"),
        ({"low": 0.6, "high": 0.7}, "value is 0.5, not within its interval [0.6, 0.7]"),
        ({"settings": ["s"]}, "must be texts"),
    ],
)
def test_a_score_that_cannot_be_is_unread(tmp_path, tables, wrong, said):
    good = tables["score"]("step-000010", "t", "pass@1", 0.5, 5)
    tables["lines"](tmp_path / "run" / "scores.jsonl", [good | {"metric": "pass@2"} | wrong, good])
    run = RunData.load(tmp_path / "run")
    assert [s.metric for s in run.scores] == ["pass@1"]
    (text,) = run.unread
    assert text.startswith("scores.jsonl: ") and text.endswith(said), text


def test_bounds_hold_up_to_rounding_and_for_shares_alone(tmp_path, tables):
    rows = [tables["score"]("step-000010", "t", m, v, 5) for m, v in (("pass@1", 1 + 1e-9), ("nll", 7.5))]
    rows[0] |= {"low": 0.9, "high": 1.0, "step": 10.0}
    tables["lines"](tmp_path / "run" / "scores.jsonl", rows)
    run = RunData.load(tmp_path / "run")
    assert [(s.metric, s.step) for s in run.scores] == [("pass@1", 10), ("nll", 10)] and run.unread == []


@pytest.mark.parametrize("line", ["[1]", '"x"', "null", "5"])
def test_lines_that_are_no_objects_are_named(tmp_path, tables, line):
    score = json.dumps(tables["score"]("step-000010", "t", "pass@1", 0.5, 5))
    for file, good in (("scores.jsonl", score), ("samples/step-000010/t.jsonl", '{"id": "a", "logp": -1.0}')):
        path = tmp_path / "run" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{good}\n{line}\n")
    run = RunData.load(tmp_path / "run")
    assert len(run.samples("step-000010", "t")) == len(run.scores) == 1
    said = f"1 of 2 rows are damaged: {line} is no object"
    assert run.unread == [f"scores.jsonl: {said}", f"samples/step-000010/t.jsonl: {said}"]


def test_a_step_of_metrics_that_cannot_be_is_unread(tmp_path, tables):
    rows = [{"step": step, "split": "train", "loss": 1.0} for step in (10, 10**30, True)]
    tables["lines"](tmp_path / "run" / "metrics.jsonl", rows)
    run = RunData.load(tmp_path / "run")
    assert [row["step"] for row in run.metrics["train"]] == [10]
    said = f"2 of 3 rows are damaged: step is {10**30}, no integer from 0 to 2^53"
    assert run.unread == [f"metrics.jsonl: {said}"]


@pytest.mark.parametrize("low, high", [(float("nan"), 0.9), ("x", None), (0.1, None), (10**400, 0.9)])
def test_bounds_that_are_no_numbers_are_unknown(tmp_path, tables, low, high):
    row = tables["score"]("step-000010", "t", "pass@1", 0.5, 5) | {"low": low, "high": high}
    tables["lines"](tmp_path / "run" / "scores.jsonl", [row])
    (score,) = RunData.load(tmp_path / "run").scores
    assert (score.low, score.high) == (None, None)


@pytest.mark.parametrize(
    "damaged, said",
    [
        ({"logp": float("nan")}, "a logp is NaN"),
        ({"logp": -(10**400)}, f"a logp is -1{'0' * 37}…"),
        ({"logp": 5.0}, "a logp is 5.0"),
        ({"logp": "x"}, 'a logp is "x"'),
        ({"logp_at": {"1.5": "x"}}, 'a logp is "x"'),
        ({"logp_at": [1]}, "logp_at is [1]"),
        ({"completions": "abc"}, 'completions is "abc"'),
        ({"completions": [1]}, "completions is [1]"),
        ({"completions": [{"value": [1]}]}, "a value is [1]"),
    ],
)
def test_samples_that_are_none_are_left_out(tmp_path, tables, damaged, said):
    tables["lines"](
        tmp_path / "run" / "scores.jsonl", [tables["score"]("step-000010", "t", "pass@1", 0.5, 5)]
    )
    rows = [{"id": "a", "logp": -1.0}, {"id": "b"} | damaged, {"id": "c", "completions": [{"value": None}]}]
    tables["lines"](tmp_path / "run" / "samples" / "step-000010" / "t.jsonl", rows)
    run = RunData.load(tmp_path / "run")
    assert [row["id"] for row in run.samples("step-000010", "t")] == ["a", "c"]
    assert run.unread == [f"samples/step-000010/t.jsonl: 1 of 3 rows are damaged: {said}"]
