"""What of a checkpoint is scored already, and how ranks exchange their rows."""

from __future__ import annotations

from posttrain.evaluate.checkpoint import has_task
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
