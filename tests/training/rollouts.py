"""Recipes of the RLVR stage on a tiny model, and what the tests of its parts read of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.recipe import load_stage
from tests.tiny import RECIPE

MORE = """\
rewards: [{name: "tests.training.rewards_for_rlvr:even", label: even}]
rollout: {num_generations: 4, max_new_tokens: 12, batch_size: 64}
"""


def write_recipe(tmp_path: Path, tiny: Path, prompts: int = 40) -> Path:
    """An RLVR recipe for the tiny model: 8 completions a step, prompts of four lengths; runs go below
    `tmp_path`."""
    rows = tmp_path / "prompts.jsonl"
    made = [{"prompt": f"Count {i}." + " Please." * (i % 4), "answer": str(i)} for i in range(prompts)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    text = RECIPE.format(out=tmp_path, model=tiny, rows=rows)
    text = text.replace("stage: sft", "stage: rlvr").replace("max_steps: 5", "max_steps: 3")
    path = tmp_path / "case.yaml"
    path.write_text(text.replace("learning_rate: 0.5", "learning_rate: 0.05") + MORE)
    return path


def train(path: Path, *overrides: str):
    """The run directory of a finished run."""
    from posttrain import rlvr

    return rlvr.train(load_stage(str(path), list(overrides), "rlvr"))


def trained(path: Path, *overrides: str) -> tuple[Any, Any]:
    """The run directory and the trainer."""
    from posttrain import rlvr
    from posttrain.stages.train import run_training

    kept = []

    def build(recipe, parts):
        kept.append(rlvr.build(recipe, parts))
        return kept[-1]

    stage = replace(rlvr.STAGE, build=build)
    run = run_training(load_stage(str(path), list(overrides), "rlvr"), stage)
    return run, kept[0]


def rollouts(run: Any) -> dict[str, list[dict]]:
    """Rows of every file of rollouts, by name, without the milliseconds that a check took."""
    found = {}
    for file in sorted((Path(getattr(run, "path", run)) / "rollouts").iterdir()):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for verdict in (v for row in rows for v in row["components"].values()):
            verdict.pop("ms")
        found[file.name] = rows
    return found


def positions(run: Any) -> list[int]:
    """The place in the mixture of every group in the files of rollouts, in order."""
    return [row["position"] for rows in rollouts(run).values() for row in rows if row["sample"] == 0]
