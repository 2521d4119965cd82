"""`posttrain eval`: scores any checkpoint, of a run or from elsewhere, and prints the card."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markdown import Markdown

from posttrain.errors import RequestError
from posttrain.evaluate.store import ScoreStore
from posttrain.evaluate.tasks.catalogue import check_task
from posttrain.recipe import load
from posttrain.recipe.build import Problems, build
from posttrain.recipe.schema import Task
from posttrain.training import checkpoints as ckpt


def evaluate(
    reference: str,
    names: list[str],
    overrides: list[str],
    out: str | None,
    template: str | None,
    console: Console,
    as_json: bool = False,
) -> None:
    """Score `reference` on the named tasks (default: those of its run's recipe)."""
    path, parent = ckpt.resolve(reference)
    run = Path(parent["run"]) if parent else None
    recipe = load(run / "recipe.yaml") if run and (run / "recipe.yaml").is_file() else None
    known = {t.name: t for t in recipe.evaluate.tasks} if recipe else {}
    tasks = [_task(known.get(n) or Task(name=n), overrides) for n in names or known]
    if not tasks:
        raise RequestError(f"{reference} belongs to no run with tasks; name one with --task")
    place = (
        Path(out) if out else run or Path("eval") / re.sub(r"[^\w.-]+", "-", str(path)).strip("-")
    )
    step = ckpt.Checkpoint(Path(path), 0).facts().get("step", 0) if parent else 0
    from posttrain.evaluate.checkpoint import score_checkpoint

    style = template or (recipe.data.template if recipe else "tokenizer")
    name = parent["checkpoint"] if parent else Path(path).name
    score_checkpoint(Path(path), step, tasks, place, style, name=name)
    store = ScoreStore(place)
    rows = [
        r for r in store.rows() if r["checkpoint"] == name and r["task"] in {t.name for t in tasks}
    ]
    if as_json:
        print(json.dumps(rows))
    else:
        console.print(Markdown(store.scorecard_markdown()))
        console.print(f"scores: {store.path}")


def _task(task: Task, overrides: list[str]) -> Task:
    values: Any = OmegaConf.create(dataclasses.asdict(task))
    for override in overrides:
        if "=" not in override:
            raise RequestError(f"{override!r}: a task setting is written key=value, e.g. limit=100")
        key, _, text = override.partition("=")
        OmegaConf.update(values, key, OmegaConf.create(f"v: {text}").v, force_add=True)
    problems = Problems()
    built = build(Task, OmegaConf.to_container(values), "", problems)
    if problems:
        raise RequestError("\n".join(p.message for p in problems.found))
    wrong = check_task(built, "task")
    if wrong:
        raise RequestError("\n".join(message for _, message in wrong))
    return built
