"""What of a checkpoint is scored already, and how ranks exchange their rows."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from posttrain.evaluate import checkpoint as module
from posttrain.evaluate.checkpoint import has_task, score_checkpoint
from posttrain.evaluate.score import TaskResult
from posttrain.evaluate.settings import task_hash
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.recipe.schema import Task
from posttrain.rundir.scores import ScoreStore
from tests.rundir.written import stored

TASK = Task("arithmetic", options={"digits": 1, "train_size": 40, "test_size": 41})


def test_has_task_wants_every_metric_under_these_settings(tmp_path):
    store = ScoreStore(tmp_path)
    settings = task_hash(TASK) + "-abcdef"
    scores = [stored(1, metric, 0.5, settings=settings) for metric in metrics(TASK)]
    store.append(scores[:-1])
    assert not has_task(store.rows(), "d1", TASK)  # killed before the last one
    store.append(scores)
    assert has_task(store.rows(), "d1", TASK) and has_task(store.rows(), "step-000001", TASK)
    assert not has_task(store.rows(), "d2", TASK)
    assert not has_task(store.rows(), "d1", Task("arithmetic", options=TASK.options | {"seed": 1}))
    assert not has_task(store.rows(), "d1", Task("arithmetic", options=TASK.options, limit=5))


def test_has_task_wants_every_temperature(tmp_path):
    store, hot = ScoreStore(tmp_path), replace(TASK, temperatures=[2.0])
    for at in (1.0, 2.0):
        assert not has_task(store.rows(), "d1", hot)
        settings = task_hash(replace(TASK, temperature=at)) + "-abcdef"
        store.append([stored(1, metric, 0.5, settings=settings) for metric in metrics(TASK)])
    assert has_task(store.rows(), "d1", hot)


@pytest.fixture
def two_ranks(tmp_path, monkeypatch):
    """`two_ranks(load, score)` scores two tasks on two ranks; returns what unscored.jsonl says and the tasks
    that were scored. Both take the rank, `score` also the task, and may raise."""

    def run(load, score) -> tuple[list[str], set[str]]:
        rank = threading.local()

        def scored(subject, task, share, own):
            score(rank.number, task.name)
            assert len(share.gather([rank.number])) == 2
            return TaskResult([stored(1, task=task.name)], [])

        monkeypatch.setattr(module, "load_tokenizer", lambda _: None)
        monkeypatch.setattr(module, "load_template", lambda *_: None)
        monkeypatch.setattr(module, "load_scored", lambda *_: load(rank.number))
        monkeypatch.setattr(module, "has_task", lambda *_: False)
        monkeypatch.setattr(module, "score_task", scored)
        monkeypatch.setattr(module, "DEADLINE_S", 10)

        def one(number: int) -> None:
            rank.number = number
            asked = (tmp_path / "step-000001", 1, [Task("a"), Task("b")], tmp_path)
            score_checkpoint(*asked, ranks=(number, 2), keep_going=True)

        threads = [threading.Thread(target=one, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
            assert not thread.is_alive()
        store = ScoreStore(tmp_path)
        return [str(u) for u in store.failures()], {row["task"] for row in store.rows()}

    return run


def nothing(*_) -> None:
    """Neither loads nor fails."""


@pytest.mark.parametrize("failing", [0, 1])
def test_one_rank_that_fails_on_a_task_is_waited_for_by_none(two_ranks, failing):
    def score(rank: int, task: str) -> None:
        if (rank, task) == (failing, "a"):
            raise MemoryError("no memory")

    (said,), scored = two_ranks(nothing, score)
    who = f"rank {failing} failed: " if failing else ""
    assert said == f"step-000001 was not scored on a: {who}MemoryError: no memory" and scored == {"b"}


def test_one_rank_that_cannot_load_fails_every_task(two_ranks):
    def load(rank: int) -> None:
        if rank == 1:
            raise MemoryError("no memory")

    said, scored = two_ranks(load, nothing)
    assert len(said) == 2 and not scored and "rank 1 failed: MemoryError: no memory" in said[1]
