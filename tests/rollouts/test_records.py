"""Rollouts on disk: every field of the format, whole files, text that is no Unicode."""

from __future__ import annotations

import json
import math

import pytest

from posttrain.base.files import read_jsonl, write_jsonl
from posttrain.data.shapes.prompts import Asked
from posttrain.errors import WorkError
from posttrain.generation.base import Completion
from posttrain.rewards.compose import Graded
from posttrain.rollouts.groups import Group, Prompt
from posttrain.rollouts.records import groups_of, rows_of
from posttrain.types import Verdict
from tests.rollouts.sampled import group


def made() -> Group:
    prompt = Prompt(1234, "gsm8k", 17, [1, 2], Asked("train.jsonl:18", "q", {"answer": 18}))
    completions = [
        Completion(0, 0, "so 18\n", [5] * 57, "stop", [-0.5] * 57),
        Completion(0, 1, "…", [5], "length"),
    ]
    graded = [
        Graded(
            1.0, True, {"math": Verdict(1.0, "scored", "", 0.25, {"read": "18"}), "length": Verdict(-0.5)}
        ),
        Graded(None, None, {"math": Verdict(None, "timeout", "no verdict", 7.0)}),
    ]
    return Group(prompt, completions, graded, round=2)


def test_a_row_by_hand(tmp_path):
    rows = rows_of(made(), 3, "<user>q")
    about = {
        "group": 3,
        "round": 2,
        "position": 1234,
        "source": "gsm8k",
        "row": 17,
        "where": "train.jsonl:18",
        "prompt": "<user>q",
        "answer": "18",
        "trained": False,
    }
    plain = {"status": "scored", "reason": "", "ms": 0.0}
    assert rows == [
        about
        | {
            "sample": 0,
            "completion": "so 18\n",
            "tokens": 57,
            "finish": "stop",
            "reward": 1.0,
            "success": True,
            "components": {"math": plain | {"value": 1.0, "ms": 0.25}, "length": plain | {"value": -0.5}},
        },
        about
        | {
            "sample": 1,
            "completion": "…",
            "tokens": 1,
            "finish": "length",
            "reward": None,
            "success": None,
            "components": {"math": {"value": None, "status": "timeout", "reason": "no verdict", "ms": 7.0}},
        },
    ]
    path = tmp_path / "rollouts" / "step-000001.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    assert path.read_bytes().count(b"\n") == 2 and "…".encode() in path.read_bytes()


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "step-000001.jsonl"
    write_jsonl(path, rows_of(made(), 0, "q") * 3)
    write_jsonl(path, rows_of(made(), 0, "q")[:1])
    assert len(read_jsonl(path)) == 1 and [p.name for p in tmp_path.iterdir()] == [path.name]
    write_jsonl(path, [])
    assert path.read_text() == "" and read_jsonl(path) == []


def test_rows_go_back_into_their_groups():
    rows = [row for number in (2, 0, 5) for row in rows_of(group([1.0, 0.0]), number, "q")]
    found = groups_of(rows)
    assert [[r["group"] for r in each] for each in found] == [[2, 2], [0, 0], [5, 5]]
    assert [[r["sample"] for r in each] for each in found] == [[0, 1]] * 3


@pytest.mark.parametrize("text", ["half \ud800", "nul \x00", "line\u2028sep\u0085", 'quote " \\', ""])
def test_any_text_comes_back(tmp_path, text):
    each = made()
    each.completions[0].text = text
    each.prompt.asked.columns["answer"] = text
    path = tmp_path / "a.jsonl"
    write_jsonl(path, rows_of(each, 0, text))
    first, second = read_jsonl(path)
    assert first["completion"] == first["prompt"] == second["answer"] == text


def test_numbers_that_json_lacks_are_null(tmp_path):
    rows = rows_of(made(), 0, "q")
    rows[0]["advantage"] = math.nan
    write_jsonl(tmp_path / "a.jsonl", rows)
    line = (tmp_path / "a.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["advantage"] is None and "NaN" not in line


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "rollouts").write_text("a file")
    with pytest.raises(WorkError, match="rollouts"):
        write_jsonl(tmp_path / "rollouts" / "step-000001.jsonl", [])
