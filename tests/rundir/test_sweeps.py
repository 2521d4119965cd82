"""sweep.json as it is read: whole, damaged, and missing."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import RequestError
from posttrain.rundir.sweeps import SweepData, SweptRun, is_sweep, sealed

WHOLE = {
    "sweep": "ns",
    "recipe": "recipes/case.yaml",
    "keys": {"loss.n": [1.0, 16.0]},
    "fixed": {"train.max_steps": 5},
    "seeds": [0, 1],
    "runs": [
        {"run": "n-1_seed-0", "stage": "", "values": {"loss.n": 1.0}, "seed": 0, "recipe_hash": "a"},
        {"run": "n-16_seed-1", "stage": "sft", "values": {"loss.n": 16.0}, "seed": 1, "recipe_hash": "b"},
    ],
}


def write(folder, value):
    (folder / "sweep.json").write_text(value if isinstance(value, str) else json.dumps(sealed(value)))
    return folder


def test_a_sweep_is_read(tmp_path):
    assert not is_sweep(tmp_path)
    found = SweepData.load(write(tmp_path, WHOLE))
    assert is_sweep(tmp_path)
    assert (found.name, found.recipe, found.seeds) == ("ns", "recipes/case.yaml", [0, 1])
    assert (found.keys, found.fixed) == ({"loss.n": [1.0, 16.0]}, {"train.max_steps": 5})
    assert found.runs == [
        SweptRun("n-1_seed-0", "", {"loss.n": 1.0}, 0, "a"),
        SweptRun("n-16_seed-1", "sft", {"loss.n": 16.0}, 1, "b"),
    ]
    assert found.unread == []


def test_damaged_entries_are_left_out_and_named(tmp_path):
    outside = [
        {"run": name, "values": {}, "recipe_hash": "c"} for name in ("../x", "..", ".", "", "/etc", "a/")
    ]
    runs = [
        *WHOLE["runs"][:1],
        3,
        *outside,
        {"run": "y", "values": {}},
        {"run": "z", "values": {}, "recipe_hash": "c"},
    ]
    damaged = WHOLE | {"keys": [1], "seeds": None, "runs": runs}
    found = SweepData.load(write(tmp_path, damaged))
    assert [run.run for run in found.runs] == ["n-1_seed-0", "z"]
    assert (found.keys, found.seeds, found.runs[1].seed) == ({}, [], None)
    assert found.unread == [
        "sweep.json: keys must be a mapping",
        "sweep.json: seeds must be a list",
        *(f"sweep.json: runs[{i}] is not a run with values and a recipe_hash" for i in range(1, 9)),
    ]
    assert SweepData.load(write(tmp_path, {})).name == tmp_path.name


def test_a_digest_is_of_the_values_and_not_of_their_layout(tmp_path):
    odd = {"keys": {"train.learning_rate": [1e-05, 0.1 + 0.2]}, "fixed": {"a": {"x": None, "ü": "ß\n"}}}
    facts = sealed(WHOLE | odd)
    assert len(facts["digest"]) == 32 and sealed(facts) == facts
    for text in (json.dumps(facts, indent=3), json.dumps(facts, sort_keys=True, ensure_ascii=False)):
        found = SweepData.load(write(tmp_path, text))
        assert found.intact and (found.keys, found.fixed) == (odd["keys"], odd["fixed"])
    for key in facts:
        rest = {k: v for k, v in facts.items() if k != key}
        for changed in (rest, facts | {key: "x"}, facts | {key: None}):
            found = SweepData.load(write(tmp_path, json.dumps(changed)))
            assert (found.intact, found.runs, found.keys, found.name) == (False, [], {}, tmp_path.name)
            (text,) = found.unread
            assert text.startswith("sweep.json: was changed since it was written")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "sweep.json: cannot be read: "), ("[]", "sweep.json: must contain a mapping")],
)
def test_what_is_no_mapping_is_refused(tmp_path, text, sentence):
    with pytest.raises(RequestError, match=sentence):
        SweepData.load(write(tmp_path, text))
    with pytest.raises(RequestError, match=r"not a sweep \(it has no sweep.json\)"):
        SweepData.load(tmp_path / "none")
