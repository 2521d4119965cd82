"""What several samples tell, against every way to draw k of n; and as keys of a task file."""

from __future__ import annotations

import json
import math
from itertools import combinations
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.evaluate.draws import best_of_k, distinct_at_k, further_values
from posttrain.evaluate.metrics import kendall_tau
from posttrain.evaluate.settings import task_hash
from posttrain.evaluate.tasks.catalogue import load_task, metrics
from posttrain.recipe.schema import Task


@given(st.lists(st.sampled_from([*"abc", None]), min_size=2, max_size=7), st.integers(1, 4))
def test_distinct_answers_are_counted_over_all_draws(answers, k):
    k = min(k, len(answers))
    counts = [answers.count(a) for a in {*answers} - {None}]
    expected = mean(len({*drawn} - {None}) for drawn in combinations(answers, k))
    assert distinct_at_k(counts, len(answers), k) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=7),
    st.integers(1, 4),
)
def test_the_best_of_k_is_that_of_all_draws(samples, k):
    k = min(k, len(samples))

    def best(drawn):
        top = max(rating for rating, _ in drawn)
        return mean(value for rating, value in drawn if rating == top)

    ratings, values = zip(*samples, strict=True)
    expected = mean(best(drawn) for drawn in combinations(samples, k))
    assert best_of_k(ratings, values, k) == pytest.approx(expected)


def completion(value, read, rated=None):
    return {"value": value, "read": read, "rated": rated}


def test_values_of_problems():
    """Right, right, wrong 7, none: of 6 pairs one is all right; 1 - 1/6 have a right one, 1/2 the 7."""
    first = [
        completion(1.0, "2", 3),
        completion(1.0, "2.0", 1),
        completion(0.0, "7", 2),
        completion(0.0, None, 0),
    ]
    second = [completion(1.0, "2"), completion(None, None), completion(None, None), completion(None, None)]
    names = ["pass^k", "avg@n", "distinct@k", "best_of@k"]
    task = Task("mine", samples=4, k=[1, 2])
    found = further_values([{"completions": first}, {"completions": second}], names, task)
    assert found == {
        "pass^2": [pytest.approx(1 / 6), None],
        "avg@4": [0.5, 1.0],
        "distinct@2": [pytest.approx(5 / 6 + 1 / 2), None],
        "best_of@2": [pytest.approx(4 / 6), None],  # 3 pairs with the first; rated 1 and 0; else wrong
    }


def test_kendall_tau():
    """.1, .3, .2, .4: of 6 pairs 5 rise and 1 falls."""
    assert kendall_tau([0.1, 0.3, 0.2, 0.4]) == pytest.approx(4 / 6)
    assert kendall_tau([4, 3, 2, 1]) == -1 and kendall_tau([1, 1, 1, 1]) == 0
    assert math.isnan(kendall_tau([1, 2, 3]))


FILE = """about: Mine
kind: generate
source: {file: rows.jsonl}
prompt: q
answer: a
samples: 4
k: [1, 4]
"""


def test_a_task_file_asks_for_them(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "1+1?", "a": "2"}) + "\n")
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    task = Task("mine", file=str(path))
    plain, usual = metrics(task), task_hash(task)
    also = {"metrics": ["pass^k", "avg@n", "distinct@k"]}
    more = Task("mine", file=str(path), options=also)
    assert metrics(more) == [*plain[:3], "pass^4", "avg@4", "distinct@4", *plain[3:]]
    assert task_hash(more) == usual  # what else is measured changes no measurement
    rated = also | {"metrics": ["best_of@k"], "best_of": {"name": "math", "options": {"extract": "boxed"}}}
    chosen = Task("mine", file=str(path), options=rated)
    loaded = load_task(chosen)
    assert task_hash(chosen) != usual and metrics(chosen)[3] == "best_of@4"
    problems = loaded.problems() * 2
    verdicts = loaded.verdicts(["So \\boxed{2}.", "\\boxed{3}"], problems)
    noted = [loaded.noted(v, p)["rated"] for v, p in zip(verdicts, problems, strict=True)]
    assert [v.value for v in verdicts] == [1, 0] and noted == [1, 0]
    for options, message in (
        ({"metrics": ["pass^"]}, r"metrics: 'pass\^' \(did you mean 'pass\^k'\?\)"),
        ({"metrics": ["best_of@k"]}, "need each other"),
        ({"best_of": {"name": "math"}}, "need each other"),
    ):
        with pytest.raises(RequestError, match=message):
            load_task(Task("mine", file=str(path), options=options))
