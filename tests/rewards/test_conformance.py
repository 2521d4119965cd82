"""Conformance: the machinery on a reward of our making, and every shipped reward on its corpus."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import RequestError
from posttrain.rewards import REWARDS, load_all
from posttrain.rewards.conformance import conformance, corpus_of, read_corpus
from posttrain.rewards.registry import find
from tests.conftest import require

SOURCE = """
from posttrain.rewards import reward
from posttrain.types import Verdict

@reward({name!r}, columns=("answer",), runs="worker", limit_s=0.5)
def fn(completion, example, lower: bool = False):
    "Equal texts; hangs where it is told to."
    while completion.startswith("hang"):
        pass
    if not completion:
        return Verdict(0.0, "unparseable")
    return Verdict(float((completion.lower() if lower else completion) == example.answer))
"""


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """A reward in a package of its own, with a corpus beside it: `own([row, ...]) -> Conformance`."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE.format(name=name))
    (tmp_path / "corpora").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))

    def run(*rows: dict):
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "corpora" / "fn.jsonl").write_text(text)
        return conformance(find(f"{name}:fn"))

    return run


def test_a_reward_that_keeps_its_promises_holds(own):
    found = own(
        {"kind": "gold", "completion": "a", "answer": "a"},
        {"kind": "gold", "completion": "A", "answer": "a", "options": {"lower": True}},
        {"kind": "gold", "completion": "b", "answer": "a", "value": 0.0},
        {"kind": "spoiled", "completion": "A", "answer": "a"},
        {"kind": "hostile", "completion": "hang", "answer": "a", "status": "limit"},
        {"kind": "hostile", "completion": "", "answer": "a", "status": "unparseable"},
    )
    assert found.holds, found.surprises
    assert (found.gold, found.spoiled, found.hostile) == (3, 1, 2)
    assert (found.false_reject_rate, found.false_accept_rate) == (0.0, 0.0)
    assert 500 <= found.max_ms < 5000


def test_each_broken_promise_is_counted_and_shown(own):
    found = own(
        {"kind": "gold", "completion": "b", "answer": "a"},
        {"kind": "spoiled", "completion": "a", "answer": "a", "category": "same"},
        {"kind": "spoiled", "completion": "b", "answer": "a", "value": 0.5},
        {"kind": "hostile", "completion": "x", "answer": "a", "status": "limit"},
        {"kind": "hostile", "completion": "x", "answer": "x"},
    )
    assert not found.holds
    assert (found.false_rejects, found.false_accepts, found.wrong_status) == (1, 3, 1)
    assert (found.false_reject_rate, found.false_accept_rate) == (1.0, 0.75)
    assert [s.line for s in found.surprises] == [1, 2, 3, 4, 5]
    assert found.surprises[1].category == "same" and found.surprises[1].expected == "below 1"


def test_long_completions_may_be_abbreviated(tmp_path):
    long = {"before": "x", "repeat": "ab", "times": 3, "after": "y"}
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"kind": "gold", "completion": long}))
    assert read_corpus(path)[0]["completion"] == "xabababy"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "c.jsonl:2: "),
        ('{"kind": "golden", "completion": ""}', "c.jsonl:2: kind must be one of"),
        ('{"kind": "gold"}', "c.jsonl:2: the row has no 'completion'"),
        ('{"kind": "gold", "completion": 5}', "c.jsonl:2: "),
    ],
)
def test_a_broken_corpus_names_its_line(tmp_path, line, sentence):
    path = tmp_path / "c.jsonl"
    path.write_text('{"kind": "gold", "completion": ""}\n' + line)
    with pytest.raises(RequestError, match=sentence):
        read_corpus(path)


OWN = sorted(name for name in load_all() if REWARDS[name].fn.__module__.startswith("posttrain."))


BY_MODEL = ("judge", "reward_model", "qwen_math_shaping")
"""Their values come from a model or an endpoint; tests of their own run them against real ones."""
LARGE = ("code", "combine", "format", "instructions", "language", "regex", "steps")
"""Their corpora take seconds each."""


def test_every_reward_ships_a_corpus_of_right_wrong_and_hostile():
    assert len(OWN) > 15 and set(BY_MODEL) < set(OWN)
    for name in OWN:
        if name in BY_MODEL:
            continue
        path = corpus_of(REWARDS[name])
        assert path is not None, f"{name} ships no corpus"
        kinds = [row["kind"] for row in read_corpus(path)]
        assert kinds.count("gold") >= 3 and kinds.count("hostile") >= 1, name
        assert REWARDS[name].shaping or kinds.count("spoiled") >= 3, name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in OWN
        if name not in BY_MODEL
    ],
)
def test_every_reward_holds_on_its_corpus(name):
    spec = REWARDS[name]
    require("sandbox" if name == "code" else "reward", not spec.lacks, spec.lacks)
    found = conformance(spec)
    assert found.holds, [(s.line, s.expected, s.completion, s.verdict) for s in found.surprises[:10]]
