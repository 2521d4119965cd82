"""reasoning-gym: the allow-list and the messages everywhere; its scorers where the package is installed."""

from __future__ import annotations

import json

import pytest

from posttrain.data.problems import reasoning_gym as data
from posttrain.data.problems.catalogue import check, generate
from posttrain.errors import RequestError
from posttrain.rewards.conformance import corpus_of
from posttrain.rewards.registry import find
from posttrain.rewards.simple.reasoning_gym import check_row, reasoning_gym
from posttrain.types import Example


@pytest.fixture
def package():
    return pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")


def row(task="simple_equations", answer="62", **extra) -> Example:
    return Example(answer=answer, extra={"task": task, **extra})


def test_no_task_is_both_allowed_and_refused():
    assert len(data.EVALUATES) == 9 and not set(data.ALLOWED) & set(data.EVALUATES)
    assert list(data.ALLOWED) == sorted(set(data.ALLOWED))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (row("countdown"), "'countdown' is not allowed: its scorer evaluates model text"),
        (row("mazes"), r"is not one of the 32 allowed tasks \(did you mean 'maze'\?\)"),
        (row(5), "task 5 is not one"),
        (row(None), "task None is not one"),
        (row(None, metadata={"source_dataset": "puzzle24"}), "'puzzle24' is not allowed"),
        (row(None, metadata='{"source_dataset": "puzzle24"}'), "'puzzle24' is not allowed"),
        (row(None, metadata="[1]"), "metadata' must be an object"),
        (row(None, metadata="{"), "metadata' must be an object"),
    ],
)
def test_rows_that_name_no_allowed_task(example, message):
    with pytest.raises(ValueError, match=message):
        check_row(example)


def test_the_task_may_stand_in_the_metadata():
    check_row(row(None, metadata={"source_dataset": "gcd"}))
    check_row(row("gcd"))


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'posttrain[reasoning-gym]'" in data.missing()
    with pytest.raises(RequestError, match="reasoning-gym is not installed: pip install"):
        check("reasoning_gym", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "countdown"}, "generator reasoning_gym: task 'countdown' is not allowed"),
        ({"split": "tests"}, r"unknown split 'tests' \(did you mean 'test'\?\)"),
        ({"train_size": 0}, "train_size must be at least 1"),
        ({"tasks": "gcd"}, r"unknown option 'tasks' \(did you mean 'task'\?\)"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(RequestError, match=message):
        check("reasoning_gym", options)


def test_corpus(package):
    corpus = corpus_of(find("reasoning_gym"))
    for number, line in enumerate(corpus.read_text().splitlines(), start=1):
        entry = json.loads(line)
        text = entry["completion"]
        if isinstance(text, dict):
            text = text["before"] + text["repeat"] * text["times"] + text["after"]
        verdict = reasoning_gym(text, row(entry["task"], entry["answer"]))
        assert verdict.value == (1.0 if entry["kind"] == "gold" else 0.0), (number, verdict)
        status = "limit" if verdict.reason == "limit" else verdict.status
        assert status == entry.get("status", "scored"), number


def test_every_allowed_task_keeps_the_plain_scorer_and_its_gold_answer_is_right(package):
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    for task in data.ALLOWED:
        assert DATASETS[task][0].score_answer is ProceduralDataset.score_answer, task
        for one in generate("reasoning_gym", {"task": task, "train_size": 3}):
            example = row(one["task"], one["answer"], metadata=one["metadata"])
            check_row(example)
            assert reasoning_gym(f"<answer>{one['answer']}</answer>", example).value == 1.0, one
            assert reasoning_gym(f"<answer>{one['answer']} x</answer>", example).value == 0.0
    for task in data.EVALUATES:
        assert DATASETS[task][0].score_answer is not ProceduralDataset.score_answer


def test_splits_never_meet_and_the_seed_decides(package):
    def prompts(**options):
        return [one["prompt"] for one in generate("reasoning_gym", {"task": "gcd", **options})]

    train, test = prompts(train_size=150), prompts(split="test", test_size=40)
    assert len(set(train)) == 150 and len(set(test)) == 40 and not set(train) & set(test)
    assert prompts(train_size=150) == train != prompts(train_size=150, seed=1)


def test_a_task_that_runs_out_says_so(package, monkeypatch):
    entries = [{"question": f"q{n // 2}", "answer": "a", "metadata": {}} for n in range(18)]
    monkeypatch.setattr(package, "create_dataset", lambda task, seed, size: entries)
    with pytest.raises(RequestError, match=r"task gcd gave \d different train problems, 50 were"):
        generate("reasoning_gym", {"task": "gcd", "train_size": 50})
    found = generate("reasoning_gym", {"task": "gcd", "train_size": 3})
    assert len({one["id"] for one in found}) == len({one["prompt"] for one in found}) == 3
