"""A model built by seed keeps its scores on six kinds of tasks, in batches of any size."""

from __future__ import annotations

import json

import pytest

from tests.evaluate.golden import STORED, TASKS, scores

WIDE = 1e-5
"""A log-probability in float32 moves by less where kernels differ; a sample that flips moves a score more."""


@pytest.mark.parametrize("batch_size", [5, 1, 64])
@pytest.mark.parametrize("kind", TASKS)
def test_scores_are_what_they_were(tmp_path, kind, batch_size):
    stored = json.loads(STORED.read_text())[kind]
    found = scores(tmp_path, kind, batch_size)
    drifted = {
        metric: (stored.get(metric), found.get(metric))
        for metric in {**stored, **found}
        if not near(stored.get(metric), found.get(metric))
    }
    assert not drifted, f"{kind}: scores drifted (stored, now): {drifted}"


def near(a: list | None, b: list | None) -> bool:
    if a is None or b is None:
        return False
    pairs = zip(a, b, strict=True)
    return all(x == y if None in (x, y) else y == pytest.approx(x, rel=WIDE, abs=WIDE) for x, y in pairs)


def test_the_stored_scores_tell_something():
    """Each kind has values between 0 and 1 that a drift would move."""
    stored = json.loads(STORED.read_text())
    assert stored.keys() == TASKS.keys()
    for kind, metrics in stored.items():
        assert any(0.05 < value[0] < 0.95 for value in metrics.values()), kind
