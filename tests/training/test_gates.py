"""Gates: the judgement by hand-worked numbers, what it does to the best checkpoint, and whole runs that are
marked, stopped, continued."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.base.files import append_jsonl, read_jsonl
from posttrain.errors import RequestError, WorkError
from posttrain.recipe.sections import Gate
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.gates import gated, record
from posttrain.training.gates import GateFailed, check, enforce
from tests.ranks import run_ranks


def write(run: Path, values: dict[int, float], metric: str = "m", settings: str = "s") -> Path:
    """scores.jsonl rows of task `t`, by step."""
    run.mkdir(exist_ok=True)
    with (run / "scores.jsonl").open("a") as file:
        for step, value in values.items():
            row = {"checkpoint": ckpt.name_of(step), "step": step, "task": "t", "metric": metric}
            file.write(json.dumps(row | {"value": value, "settings": settings}) + "\n")
    return run


def failed(run: Path, *gates: Gate) -> list[int]:
    return [row["step"] for row in check(run, gates).failures]


# ---- the judgement -----------------------------------------------------------------------------------------


def test_against_the_start_by_hand(tmp_path):
    """0.8 at the start, 0.1 allowed: 0.7 is just allowed (0.8 - 0.7 is 0.10000000000000009), 0.69 is not."""
    run = write(tmp_path, {0: 0.8, 10: 0.9, 20: 0.7, 30: 0.69, 40: 0.71})
    found = check(run, [Gate("t", "m", 0.1)])
    (row,) = found.failures
    assert row.pop("drop") == pytest.approx(0.11)
    assert row == {
        "checkpoint": "step-000030",
        "step": 30,
        "task": "t",
        "metric": "m",
        "value": 0.69,
        "against": "start",
        "reference": 0.8,
        "max_drop": 0.1,
        "action": "mark",
    }
    assert found.passed == "step-000040" and not found.stop and not found.missing
    assert found.sentences == [
        "gate failed: t/m of step-000030 is 0.69, 0.11 below the start (0.8); "
        "evaluate.gates[0].max_drop is 0.1"
    ]


def test_against_the_best_by_hand(tmp_path):
    """The best so far: 0.8, 0.9, 0.9, 0.9; what comes later does not count."""
    run = write(tmp_path, {0: 0.8, 10: 0.9, 20: 0.7, 30: 0.85, 40: 1.0})
    assert failed(run, Gate("t", "m", 0.1, "best")) == [20]
    assert failed(run, Gate("t", "m", 0.04, "best")) == [20, 30]
    assert check(run, [Gate("t", "m", 0.1, "best")]).failures[0]["reference"] == 0.9
    assert failed(run, Gate("t", "m", 0.0)) == [20]  # against the start 0.85 and 0.9 are gains


def test_a_score_that_is_better_when_lower(tmp_path):
    run = write(tmp_path, {0: 2.0, 10: 1.5, 20: 1.9, 30: 2.2}, "nll")
    assert failed(run, Gate("t", "nll", 0.1, greater_is_better=False)) == [30]
    assert failed(run, Gate("t", "nll", 0.1, "best", greater_is_better=False)) == [20, 30]
    said = check(run, [Gate("t", "nll", 0.1, greater_is_better=False)]).sentences[0]
    assert "is 2.2, 0.2 above the start (2)" in said


def test_every_gate_must_be_passed(tmp_path):
    run = write(
        write(tmp_path, {0: 0.5, 10: 0.6, 20: 0.2, 30: 0.6}), {0: 1.0, 10: 1.0, 20: 1.0, 30: 0.1}, "n"
    )
    found = check(run, [Gate("t", "m", 0.1), Gate("t", "n", 0.5)])
    assert [(r["step"], r["metric"]) for r in found.failures] == [(20, "m"), (30, "n")]
    assert found.passed == "step-000010"
    both = check(run, [Gate("t", "m", 0.1), Gate("t", "m", 0.2, action="stop")])
    assert [(r["step"], r["action"]) for r in both.failures] == [(20, "mark"), (20, "stop")]


def test_the_newest_score_decides_whether_the_run_stops(tmp_path):
    gate = Gate("t", "m", 0.1, action="stop")
    run = write(tmp_path, {0: 0.5, 10: 0.5, 20: 0.1})
    assert check(run, [gate]).stop == (
        "gate failed: t/m of step-000020 is 0.1, 0.4 below the start (0.5); "
        "evaluate.gates[0].max_drop is 0.1. "
        "The last checkpoint that passed is step-000010. The run stops here until evaluate.gates is changed"
    )
    write(run, {30: 0.5})
    recovered = check(run, [gate])
    assert recovered.stop == "" and [r["step"] for r in recovered.failures] == [20]
    none = write(tmp_path / "n", {0: 0.5, 10: 0.1})
    write(none, {10: 0.5}, "other")
    hard = check(none, [gate, Gate("t", "other", 0.1, "best")])
    assert "No checkpoint passed" in hard.stop  # step 0 has no score of the second gate


def test_missing_scores_are_said_and_fail_nothing(tmp_path):
    gate = Gate("t", "m", 0.0, action="stop")
    nothing = check(tmp_path, [gate], "step-000010")
    assert nothing.missing == ["evaluate.gates[0]: t/m of step-000010 was not checked: it has no score"]
    run = write(tmp_path, {10: 0.5})
    assert "the start has no score under the same settings" in check(run, [gate], "step-000010").missing[0]
    assert check(run, [Gate("t", "m", 0.0, "best")], "step-000010").missing == []
    write(run, {0: 0.9})
    later = check(run, [gate], "step-000020")
    assert later.missing and later.stop  # the newest score is still that of step 10
    append_jsonl(
        run / "scores.jsonl",
        {"checkpoint": "step-000020", "step": 20, "task": "t", "metric": "m", "value": None, "settings": "s"},
    )
    assert check(run, [gate], "step-000020").missing


def test_only_scores_measured_alike_are_compared(tmp_path):
    """A later evaluation on five problems gives step 20 0.0 and the start 1.0: another measurement."""
    run = write(tmp_path, {0: 0.5, 10: 0.5, 20: 0.5})
    write(run, {20: 0.0, 0: 1.0}, settings="limit=5")
    assert failed(run, Gate("t", "m", 0.1)) == failed(run, Gate("t", "m", 0.1, "best")) == []
    write(run, {30: 0.2}, settings="limit=5")
    assert failed(run, Gate("t", "m", 0.1)) == [30]  # only there can step 30 be compared
    write(run, {30: 0.9}, settings="alone")
    assert failed(run, Gate("t", "m", 0.1)) == [30]


def test_of_a_checkpoint_that_was_made_twice_the_last_score_counts(tmp_path):
    run = write(write(tmp_path, {0: 0.5, 10: 0.1}), {10: 0.5})
    assert failed(run, Gate("t", "m", 0.1)) == []


@given(
    values=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    limit=st.integers(0, 10),
    against=st.sampled_from(["start", "best"]),
)
def test_failures_are_those_of_the_definition(tmp_path_factory, values, limit, against):
    """In twentieths, so that the oracle is exact; mirrored values under the mirrored gate fail alike."""
    reference = [values[0] if against == "start" else max(values[: i + 1]) for i in range(len(values))]
    expected = [i for i, v in enumerate(values) if reference[i] - v > limit]
    for sign in (1, -1):
        run = write(tmp_path_factory.mktemp("g"), {i: sign * v / 20 for i, v in enumerate(values)})
        gate = Gate("t", "m", limit / 20, against, greater_is_better=sign > 0)
        assert failed(run, gate) == expected
        assert set(failed(run, Gate("t", "m", limit / 20 + 0.05, against, "mark", sign > 0))) <= set(expected)


# ---- the file, and the best checkpoint ---------------------------------------------------------------------


def test_the_file_says_the_failures_of_today(tmp_path):
    run = write(tmp_path, {0: 0.5, 10: 0.1, 20: 0.3})
    tight, loose = (check(run, [Gate("t", "m", limit)]).failures for limit in (0.1, 0.3))
    assert record(run, []) == [] and not (run / "gates.jsonl").exists()
    assert record(run, loose) == [True] and record(run, tight) == [True, True]
    stamp = (run / "gates.jsonl").stat().st_mtime_ns
    assert record(run, tight) == [False, False]
    assert (run / "gates.jsonl").stat().st_mtime_ns == stamp and read_jsonl(run / "gates.jsonl") == tight
    assert record(run, []) == [] and gated(run) == set()


def test_a_marked_checkpoint_is_never_the_best(tmp_path):
    run = write(tmp_path / "a", {0: 0.5, 10: 0.6, 20: 0.9})
    for step in (0, 10, 20):
        folder = run / "checkpoints" / ckpt.name_of(step)
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text("{}")
        (folder / "COMPLETE").touch()
    assert ckpt.best(run, "t", "m") == "step-000020"
    append_jsonl(run / "gates.jsonl", {"checkpoint": "step-000020"})
    assert ckpt.best(run, "t", "m") == "step-000010"
    assert ckpt.best(run, "t", "m", among={"step-000020"}) is None
    assert Path(ckpt.resolve(f"{run}@best:t/m")[0]).name == "step-000010"
    assert Path(ckpt.resolve(f"{run}@step-000020")[0]).name == "step-000020"  # by name it can be had
    for name in ("step-000000", "step-000010"):
        append_jsonl(run / "gates.jsonl", {"checkpoint": name})
    with pytest.raises(RequestError, match=r"every checkpoint with a score t/m failed a gate"):
        ckpt.resolve(f"{run}@best:t/m")


def test_a_damaged_file_of_scores_fails_no_run(tmp_path, caplog):
    write(tmp_path, {0: 0.5, 10: 0.1})
    broken = tmp_path / "scores.jsonl"
    broken.write_text("{oops\n" + broken.read_text())
    with caplog.at_level(logging.ERROR):
        assert enforce(tmp_path, [Gate("t", "m", 0.1, action="stop")], "step-000010", True) == ""
    assert "the gates were not checked" in caplog.text and "scores.jsonl:1" in caplog.text


def test_every_rank_is_told(tmp_path):
    """Two processes over gloo, of which only the first sees the scores."""
    for name in ("stops", "passes", "damaged"):
        write(tmp_path / name, {0: 0.5, 2: 0.5 if name == "passes" else 0.1})
    (tmp_path / "damaged" / "scores.jsonl").write_text("{oops\n{}\n")
    ended = run_ranks(
        lambda rank: ["tests.training.gates_worker", rank, tmp_path / "meeting", tmp_path, tmp_path]
    )
    assert [code for code, _ in ended] == [0, 0], ended
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first[1:] == ["", ""]
    assert "t/m of step-000002 is 0.1" in first[0]


# ---- runs --------------------------------------------------------------------------------------------------


def scorer(values: dict[str, dict[int, float]]):
    """A factory of scorers that write `values` (metric -> step -> value) and keep the steps they were asked
    for."""
    asked: list[int] = []

    def factory(loaded, run, template):
        def score(path: Path, step: int) -> None:
            asked.append(step)
            known = {(r["step"], r["metric"]) for r in read_jsonl(run.scores)}
            for metric, by_step in values.items():
                if (step, metric) not in known:
                    append_jsonl(
                        run.scores,
                        {
                            "checkpoint": path.name,
                            "step": step,
                            "task": "arithmetic",
                            "metric": metric,
                            "value": by_step[step],
                            "settings": "s",
                        },
                    )

        return score

    return factory, asked


def go(recipe: Path, factory, *overrides: str) -> Path:
    from posttrain.recipe import load_stage
    from posttrain.sft import train

    always = ["evaluate.tasks=[{name: arithmetic}]", "train.max_steps=4", "checkpoints.save_steps=1"]
    return train(load_stage(recipe, [*always, *overrides], "sft"), factory).path


def gate(max_drop: float, action: str) -> str:
    return f"evaluate.gates=[{{task: arithmetic, metric: accuracy, max_drop: {max_drop}, action: {action}}}]"


@pytest.mark.slow
def test_a_marked_checkpoint_is_passed_over_by_keep_best(recipe, caplog):
    """pass@1 is best at step 2, whose accuracy fell from 0.8 to 0.6; of what passed, step 3 is the best."""
    factory, _ = scorer(
        {
            "pass@1": {0: 0.1, 1: 0.2, 2: 0.9, 3: 0.3, 4: 0.4},
            "accuracy": {0: 0.8, 1: 0.7, 2: 0.6, 3: 0.75, 4: 0.5},
        }
    )
    keep = ["checkpoints.keep_last=1", "checkpoints.keep_best={task: arithmetic, metric: pass@1}"]
    with caplog.at_level(logging.WARNING):
        run = go(recipe, factory, *keep, gate(0.1, "mark"))
    rows = read_jsonl(run / "gates.jsonl")
    assert [(r["checkpoint"], r["value"], r["reference"]) for r in rows] == [
        ("step-000002", 0.6, 0.8),
        ("step-000004", 0.5, 0.8),
    ]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert [c.step for c in ckpt.all_complete(run / "checkpoints")] == [3, 4]
    assert Path(ckpt.resolve(f"{run}@best:arithmetic/pass@1")[0]).name == "step-000003"
    loud = "accuracy of step-000002 is 0.6, 0.2 below the start (0.8)"
    assert caplog.text.count(loud) == 1 and "cannot be chosen as the best" in caplog.text
    before = (run / "gates.jsonl").read_text()
    go(recipe, factory, *keep, gate(0.1, "mark"))
    assert (run / "gates.jsonl").read_text() == before and caplog.text.count(loud) == 1


@pytest.mark.slow
def test_without_keep_best_one_that_passed_stays(recipe):
    """Steps 2 to 4 fail; keep_last = 1 alone would leave step 4 only."""
    factory, _ = scorer({"accuracy": {0: 0.8, 1: 0.8, 2: 0.1, 3: 0.1, 4: 0.1}})
    run = go(recipe, factory, "checkpoints.keep_last=1", gate(0.1, "mark"))
    assert [c.step for c in ckpt.all_complete(run / "checkpoints")] == [1, 4]


@pytest.mark.slow
def test_a_stopped_run_stops_again_until_the_gate_is_changed(recipe):
    """Accuracy 0.8, 0.8, 0.6, 0.8, 0.4 at steps 0 to 4: 0.1 stops at step 2, 0.3 at the last step, 0.5
    nowhere."""
    factory, asked = scorer({"accuracy": {0: 0.8, 1: 0.8, 2: 0.6, 3: 0.8, 4: 0.4}})
    run = recipe.parent / "case"

    def stops(max_drop: float) -> str:
        with pytest.raises(GateFailed) as caught:
            go(recipe, factory, "checkpoints.keep_last=1", gate(max_drop, "stop"))
        assert isinstance(caught.value, WorkError) and caught.value.exit_code == 1
        info = json.loads((run / "run.json").read_text())
        assert (info["status"], info["error"]) == ("stopped", str(caught.value))
        return str(caught.value)

    def trained() -> list[int]:
        return [r["step"] for r in read_jsonl(run / "metrics.jsonl") if r["split"] == "train"]

    first = stops(0.1)
    assert "accuracy of step-000002 is 0.6, 0.2 below the start (0.8)" in first
    assert "The last checkpoint that passed is step-000001" in first
    assert [c.step for c in ckpt.all_complete(run / "checkpoints")] == [1, 2] and asked[-1] == 2
    assert trained() == [1, 2]
    assert stops(0.1) == first and trained() == [1, 2]
    last = stops(0.3)
    assert "accuracy of step-000004 is 0.4" in last and trained() == [1, 2, 3, 4]
    assert stops(0.3) == last and trained() == [1, 2, 3, 4]
    go(recipe, factory, "checkpoints.keep_last=1", gate(0.5, "stop"))
    info = json.loads((run / "run.json").read_text())
    assert (info["status"], info["error"]) == ("finished", None)
    assert read_jsonl(run / "gates.jsonl") == []
