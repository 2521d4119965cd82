"""Run directories of an earlier version are read as those of this one: shown, reported, their recipes equal.

What continues them is in `tests/stages/test_earlier.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from posttrain.cli import main
from posttrain.errors import RequestError
from posttrain.recipe import changes, diff, flatten, load, recipe_hash, to_dict
from posttrain.recipe.load import ADDED, OPEN
from posttrain.rundir.directory import RunDir
from posttrain.rundir.reading import RunData
from tests.rundir.make_earlier import STAGES

SAMPLED = {"rlvr": 32, "pairs": 48, "pass_rate": 48}
"""Run -> completions in its files of rollouts."""
NAMES = pytest.mark.parametrize("name", STAGES)


@NAMES
def test_the_recipe_has_the_hash_and_the_values_that_it_had(earlier, name):
    """Keys added since have the values that mean what was done without them. What was called `assistant` in a
    dpo stage was `last`: the recipe without the key is the same, the text with it is not."""
    run = earlier / "runs" / name
    kept = json.loads((run / "run.json").read_text())["recipe_hash"]
    values = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    reread = {"data.train_on": ("assistant", "last")} if STAGES[name] == "dpo" else {}
    for file in (run / "recipe.yaml", earlier / f"{name}.yaml"):
        recipe = load(file, ["data.train_on=last"] if reread and file.name == "recipe.yaml" else [])
        assert recipe_hash(recipe) == kept
        assert changes(values, recipe) == reread
        new = diff(values, to_dict(recipe)).keys() - reread
        now = {re.sub(r"\[\d+\]", "", k): v for k, v in flatten(to_dict(recipe)).items() if k in new}
        assert now == {key: (ADDED | dict.fromkeys(OPEN))[key] for key in now}
    if name == "dpo":
        asked = load(run / "recipe.yaml")
        assert recipe_hash(asked) != kept
        with pytest.raises(RequestError, match="data.train_on: an earlier version read this key differently"):
            RunDir(run).check_same(asked)
    if name == "kto":
        with pytest.raises(RequestError, match="data.train_on = assistant cannot be used with .* kto"):
            load(run / "recipe.yaml")


@NAMES
def test_every_file_is_read(earlier, name):
    run = RunData.load(Path("runs") / name)
    assert run.unread == []
    assert (run.run["stage"], run.run["status"]) == (STAGES[name], "finished")
    if name in ("pairs", "pass_rate"):
        assert run.outcome
    else:
        assert [row["step"] for row in run.metrics["train"]] == [1, 2, 3, 4]
        assert run.mixture["sources"][0]["rows_kept"] == 36
    assert {s.checkpoint for s in run.scores} == (
        {"step-000000", "step-000002", "step-000004"} if name == "sft" else set()
    )


@NAMES
def test_show(earlier, name, capsys):
    assert main(["show", f"runs/{name}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stage", STAGES[name]] in lines and ["status", "finished"] in lines
    progress = "chunk 3 of 3" if name in ("pairs", "pass_rate") else "step 4 of 4"
    assert ["progress", *progress.split()] in lines
    parent = ["parent", "run", "runs/sft,", "checkpoint", "step-000004"]
    assert (parent in lines) == (name != "sft")


@pytest.mark.parametrize("name", SAMPLED)
def test_rollouts_are_shown(earlier, name, capsys):
    assert main(["show", f"runs/{name}", "--rollouts", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = sorted((earlier / "runs" / name / "rollouts").iterdir())
    kept = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(shown) == SAMPLED[name]
    assert sorted(map(str, shown)) == sorted(map(str, kept))
    assert main(["show", f"runs/{name}", "--rollouts"]) == 0
    assert f"rollouts of {name}: " in capsys.readouterr().out


@pytest.mark.slow
def test_all_are_in_one_report(earlier):
    assert main(["report", *(f"runs/{name}" for name in STAGES), "--out", "all.html"]) == 0
    page = (earlier / "all.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>") and f"{len(STAGES)} runs" in page
    for name in STAGES:
        assert f"posttrain/{STAGES[name]}.py {name}.yaml" in page
