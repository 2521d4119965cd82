"""The score store: one row a measurement, whatever is killed, repeated or done at the same time."""

from __future__ import annotations

import json
import multiprocessing

import pytest

from posttrain.errors import WorkError
from posttrain.rundir.reading import RunData
from posttrain.rundir.scores import ScoreStore
from tests.rundir.written import stored as made


def test_a_measurement_is_stored_once(tmp_path):
    store = ScoreStore(tmp_path / "run")
    assert store.rows() == []
    assert store.append([made(1), made(1, "nll", 2.0)]) == 2
    assert store.append([made(1, value=0.9), made(2)]) == 1  # the first value of a key stays
    assert store.append([made(3), made(3)]) == 1
    assert store.append([made(1, settings="other", value=0.7)]) == 1
    assert [(r["step"], r["metric"], r["value"]) for r in store.rows()] == [
        (1, "pass@1", 0.5),
        (1, "nll", 2.0),
        (2, "pass@1", 0.5),
        (3, "pass@1", 0.5),
        (1, "pass@1", 0.7),
    ]
    table = RunData.load(tmp_path / "run").rows("arithmetic")
    assert list(table) == ["step-000001", "step-000002", "step-000003"]
    assert table["step-000001"]["pass@1"].value == 0.5, "other settings stand beside"


def test_the_same_weights_under_another_name_are_the_same_measurement(tmp_path):
    store = ScoreStore(tmp_path)
    assert store.append([made(1, digest="same")]) == 1
    assert store.append([made(2, digest="same")]) == 0
    assert store.append([made(3, digest=""), made(4, digest="")]) == 2  # unknown content: by name


def test_a_torn_last_line_is_forgotten_and_repaired(tmp_path):
    store = ScoreStore(tmp_path)
    store.append([made(1), made(2)])
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-9])
    assert [r["step"] for r in store.rows()] == [1]
    assert store.append([made(1), made(2)]) == 1
    assert store.path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    store = ScoreStore(tmp_path)
    store.append([made(1), made(2)])
    store.path.write_text("garbage\n" + store.path.read_text())
    with pytest.raises(WorkError, match=r"scores\.jsonl:1"):
        store.rows()


def test_a_value_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(WorkError, match="arithmetic/pass@1 of step-000001 is not a finite number"):
        ScoreStore(tmp_path).append([made(1, value=float("nan"))])


def _append(folder, barrier, steps):
    store = ScoreStore(folder)
    barrier.wait()
    for step in steps:
        store.append([made(step), made(step, "nll")])


@pytest.mark.slow
def test_processes_write_at_the_same_time(tmp_path):
    """Three writers with overlapping checkpoints: each measurement stands once, every line is whole."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    steps = [range(0, 8), range(4, 12), range(0, 12, 2)]
    writers = [context.Process(target=_append, args=(tmp_path, barrier, part)) for part in steps]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    rows = [json.loads(line) for line in ScoreStore(tmp_path).path.read_text().splitlines()]
    assert sorted((r["step"], r["metric"]) for r in rows) == sorted(
        (step, metric) for step in range(12) for metric in ("pass@1", "nll")
    )


def test_samples_are_replaced_as_a_whole(tmp_path):
    store = ScoreStore(tmp_path)
    store.write_samples("step-000001", "gsm8k", [{"id": "a", "text": "ünï\ud7ff", "logp": -1.5}, {"id": "b"}])
    path = store.write_samples("step-000001", "gsm8k", [{"id": "c", "logp": float("-inf")}])
    assert path == tmp_path / "samples/step-000001/gsm8k.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"id": "c", "logp": None}]
    assert [p.name for p in path.parent.iterdir()] == ["gsm8k.jsonl"]


def test_samples_of_earlier_settings_of_the_recipe_stay(tmp_path):
    """The test set grew: what the older scores rest on keeps their hash, and is found by it."""
    store, place = ScoreStore(tmp_path), tmp_path / "samples/step-000001"
    for settings, problem in (("s1", "a"), ("s2", "b")):
        store.write_samples("step-000001", "arithmetic", [{"id": problem, "logp": -1.0}], settings)
        store.append([made(1, settings=settings)])
    store.write_samples("step-000001", "arithmetic", [{"id": "c", "logp": -1.0}], "s3", own=False)
    assert {p.name for p in place.iterdir()} == {
        "arithmetic.jsonl",
        "arithmetic.s1.jsonl",
        "arithmetic.s3.jsonl",
    }
    run = RunData.load(tmp_path)
    assert [run.samples("step-000001", "arithmetic", s)[0]["id"] for s in (None, "s1", "s2", "s3")] == [
        *("a", "a", "b", "c")
    ]


def test_what_is_made_from_the_scores_is_renewed_with_each_addition(tmp_path):
    """And not where nothing was added; the caller sees the rows that are already there."""
    store, seen = ScoreStore(tmp_path), []
    store.append([made(1)], lambda run: seen.append((run, len(store.rows()))))
    store.append([made(1)], lambda run: seen.append("nothing was added"))
    store.append([made(2), made(3)], lambda run: seen.append((run, len(store.rows()))))
    assert seen == [(tmp_path, 1), (tmp_path, 3)]


def test_what_was_not_scored_is_recorded_until_it_is(tmp_path):
    store = ScoreStore(tmp_path)
    why = {"arithmetic": "no memory", "gsm8k": "no memory"}
    assert store.record_failures("step-000001", why) and not store.record_failures("step-000001", why)
    store.record_failures("step-000002", {"arithmetic": "no file"})
    store.append([made(1)])  # by hand, with `posttrain eval`
    assert [str(u) for u in store.failures()] == [
        "step-000001 was not scored on gsm8k: no memory",
        "step-000002 was not scored on arithmetic: no file",
    ]
    kept = {"step-000001": "d1", "step-000003": "d3", "step-000009": "d1"}  # 9: the weights of 1
    assert [(u.checkpoint, u.task) for u in store.lacking(kept, ["arithmetic"])] == [
        ("step-000001", "gsm8k"),
        ("step-000003", "arithmetic"),
    ]
    for name in ("step-000001", "step-000002"):
        store.record_failures(name, {})
    assert not store.unscored_path.exists()
    store.unscored_path.write_text('[7]\n{"checkpoint": 3, "task": "t"}\n{oops\n{}\n')
    assert store.failures() == []
