"""The score store: one row a measurement, whatever is killed, repeated or done at the same time."""

from __future__ import annotations

import json
import multiprocessing

import pytest

from posttrain.errors import WorkError
from posttrain.evaluate.settings import task_hash
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.recipe.schema import Task
from posttrain.rundir.scores import ScoreStore
from posttrain.types import Score

TASK = Task("arithmetic", options={"digits": 1, "train_size": 40, "test_size": 41})


def made(step: int, metric="pass@1", value=0.5, task="arithmetic", settings="s", digest=None) -> Score:
    name = f"step-{step:06d}"
    digest = f"d{step}" if digest is None else digest
    return Score(name, step, task, metric, value, 41, value - 0.1, value + 0.1, settings, digest)


def test_a_measurement_is_stored_once(tmp_path):
    store = ScoreStore(tmp_path / "run")
    assert store.rows() == [] and store.table() == {}
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
    table = store.table()["arithmetic"]
    assert list(table) == ["step-000001", "step-000002", "step-000003"]
    assert table["step-000001"]["pass@1"].value == 0.7  # the last one written


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


def test_a_value_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(WorkError, match="pass@1 of step-000001 is no number"):
        ScoreStore(tmp_path).append([made(1, value=float("nan"))])


def _append(folder, barrier, steps):
    store = ScoreStore(folder)
    barrier.wait()
    for step in steps:
        store.append([made(step), made(step, "nll")])


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


def test_has(tmp_path):
    store = ScoreStore(tmp_path)
    store.append([made(1)])
    assert store.has("d1", "arithmetic", "s") and store.has("step-000001", "arithmetic", "s")
    assert not store.has("d2", "arithmetic", "s")
    assert not store.has("d1", "gsm8k", "s") and not store.has("d1", "arithmetic", "t")


def test_has_task_wants_every_metric_under_these_settings(tmp_path):
    store = ScoreStore(tmp_path)
    settings = task_hash(TASK) + "-abcdef"
    scores = [made(1, metric, 0.5, settings=settings) for metric in metrics(TASK)]
    store.append(scores[:-1])
    assert not store.has_task("d1", TASK)  # killed before the last one
    store.append(scores)
    assert store.has_task("d1", TASK) and store.has_task("step-000001", TASK)
    assert not store.has_task("d2", TASK)
    assert not store.has_task("d1", Task("arithmetic", options=TASK.options | {"seed": 1}))
    assert not store.has_task("d1", Task("arithmetic", options=TASK.options, limit=5))


def test_best(tmp_path):
    store = ScoreStore(tmp_path)
    assert store.best("arithmetic", "pass@1") is None
    store.append(
        [made(1, value=0.2), made(2, value=0.6), made(3, value=0.4), made(2, "nll", 1.0), made(3, "nll", 3.0)]
    )
    assert store.best("arithmetic", "pass@1") == "step-000002"
    assert store.best("arithmetic", "pass@1", greater=False) == "step-000001"
    assert store.best("arithmetic", "nll", greater=False) == "step-000002"


def test_samples_are_replaced_as_a_whole(tmp_path):
    store = ScoreStore(tmp_path)
    store.write_samples("step-000001", "gsm8k", [{"id": "a", "text": "ünï\ud7ff", "logp": -1.5}, {"id": "b"}])
    path = store.write_samples("step-000001", "gsm8k", [{"id": "c", "logp": float("-inf")}])
    assert path == tmp_path / "samples/step-000001/gsm8k.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"id": "c", "logp": None}]
    assert [p.name for p in path.parent.iterdir()] == ["gsm8k.jsonl"]


def test_the_scorecard(tmp_path):
    store = ScoreStore(tmp_path / "quick")
    assert "Nothing has been scored" in store.scorecard_markdown()
    scores = []
    for step, up in ((0, 0.0), (300, 0.2), (600, 0.1)):
        scores += [made(step, f"pass@{2**i}", 0.1 + up + i / 100) for i in range(13)]
        scores.append(made(step, "nll", 2 - up))
    store.append(scores)
    card = store.scorecard_markdown()
    assert card == (tmp_path / "quick/scorecard.md").read_text()
    assert card.startswith("# Scores of quick\n\n## arithmetic (41 problems)\n")
    head = next(line for line in card.splitlines() if line.startswith("| step"))
    assert head == "| step | pass@1 | pass@16 | pass@256 | pass@4096 | nll |"
    assert "| 300 | **.300** [.200–.400] |" in card and "**1.8** [1.7–1.9]" in card
    assert "| 0 | .100 [" in card and card.count("**") == 2 * 5
