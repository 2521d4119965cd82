"""Runs a pipeline: stages as processes of their own, in parallel where nothing stands between them, one report.

`runs/<pipeline>/` holds pipeline.json, one run directory and one log a stage, and report.html. A stage that is
finished is not run again; a stopped one goes on from its last checkpoint. Left out: other machines (the cluster
launcher submits stages as jobs instead).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from posttrain.errors import RequestError, WorkError
from posttrain.files import read_json, read_jsonl, timestamp, write_json, write_text
from posttrain.recipe import Pipeline, Recipe, load, to_yaml
from posttrain.recipe.load import load_stage


def stage_recipes(pipeline: Pipeline, path: Path) -> dict[str, Recipe]:
    """The recipe of every stage, placed in the pipeline's folder, references to other stages resolved."""
    root = Path(pipeline.output_dir) / pipeline.pipeline
    names = [s.name for s in pipeline.stages]
    recipes: dict[str, Recipe] = {}
    for i, stage in enumerate(pipeline.stages):
        recipe = load(path.parent / stage.recipe, stage.overrides)
        if isinstance(recipe, Pipeline):
            raise RequestError(
                f"{path}: stage {stage.name!r} is a pipeline itself; list its stages here"
            )
        recipe.name, recipe.output_dir = stage.name, str(root)
        if recipe.model.init is not None:
            other, at, choice = recipe.model.init.partition("@")
            if other in names:
                if names.index(other) >= i:
                    raise RequestError(
                        f"{path}: stage {stage.name!r} starts from {other!r}, which is not an earlier stage"
                    )
                recipe.model.init = f"{root / other}{at}{choice}"
        recipes[stage.name] = recipe
    return recipes


def dependencies(pipeline: Pipeline, recipes: dict[str, Recipe]) -> dict[str, set[str]]:
    """Which stages each stage waits for: those it names, and the one its weights come from."""
    root = Path(pipeline.output_dir) / pipeline.pipeline
    waits = {s.name: set(s.after) for s in pipeline.stages}
    for name, recipe in recipes.items():
        start = (recipe.model.init or "").partition("@")[0]
        waits[name] |= {other for other in recipes if start == str(root / other)}
    return waits


class _Running:
    """One stage as a process."""

    def __init__(self, recipe: Recipe, root: Path, threads: int) -> None:
        self.name, self.root, self.begun, self.started = recipe.name, root, time.time(), timestamp()
        # In the pipeline's folder: the stage's own folder appears only when its recipe is accepted.
        file = root / f".{recipe.name}.yaml"
        write_text(file, to_yaml(recipe))
        self.log = root / f"{recipe.name}.log"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"posttrain.{recipe.stage}", str(file)],
                stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip

    def progress(self) -> tuple[int, int, str]:
        """(steps done, steps in all, last loss)."""
        run = self.root / self.name
        total = read_json(run / "run.json").get("steps", 0) if (run / "run.json").exists() else 0
        rows = [r for r in read_jsonl(run / "metrics.jsonl") if r.get("split") == "train"]
        return (
            (rows[-1]["step"], total, f"loss {rows[-1]['loss']:.4g}")
            if rows
            else (0, total, "preparing")
        )

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def why(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].removeprefix("error: ")


def run_pipeline(path: str, overrides: list[str], console: Console) -> Path:
    """Run every stage; returns the report. Raises `WorkError` naming the stage that failed and its log."""
    pipeline = load_pipeline(path, overrides)
    recipes = stage_recipes(pipeline, Path(path))
    for name, recipe in recipes.items():
        if recipe.stage != "sft":
            raise RequestError(
                f"{path}: stage {name!r}: the {recipe.stage} trainer is not built yet"
            )
    from posttrain.preflight import preflight

    for recipe in recipes.values():
        preflight(recipe)
    root = Path(pipeline.output_dir) / pipeline.pipeline
    root.mkdir(parents=True, exist_ok=True)
    waits = dependencies(pipeline, recipes)
    begun, started = time.time(), timestamp()
    status: dict[str, dict[str, Any]] = {
        n: {"name": n, "run": n, "status": "waiting"} for n in recipes
    }

    def save(**more: Any) -> None:
        facts = {"pipeline": pipeline.pipeline, "stages": list(status.values()), "started": started}
        write_json(root / "pipeline.json", facts | more)

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = max(1, cores // min(pipeline.parallel, len(recipes)))
    running: dict[str, _Running] = {}
    stopping = _Stopping()
    with stopping, _bars(console) as bars:
        tasks = {n: bars.add_task(n, total=None, note="waiting") for n in recipes}
        while True:
            for name in recipes:
                ready = all(status[o]["status"] == "finished" for o in waits[name])
                if (
                    status[name]["status"] == "waiting"
                    and ready
                    and len(running) < pipeline.parallel
                    and not stopping.asked
                ):
                    running[name] = _Running(recipes[name], root, threads)
                    status[name] |= {"status": "running", "started": running[name].started}
                    save()
            for name, stage in list(running.items()):
                done, total, note = stage.progress()
                bars.update(tasks[name], completed=done, total=total or None, note=note)
                code = stage.process.poll()
                if code is None:
                    continue
                del running[name]
                status[name] |= {
                    "status": "finished" if code == 0 else "failed",
                    "seconds": round(time.time() - stage.begun, 1),
                }
                if code != 0:
                    status[name]["error"] = stage.why()
                    stopping.asked = True
                bars.update(tasks[name], note=status[name]["status"])
                save()
            if stopping.asked:
                for stage in running.values():
                    stage.stop()
            if not running and (
                stopping.asked or all(s["status"] == "finished" for s in status.values())
            ):
                break
            time.sleep(0.5)
    save(ended=timestamp(), seconds=round(time.time() - begun, 1))
    failed = {n: s for n, s in status.items() if s["status"] == "failed"}
    if failed:
        text = "\n".join(
            f"stage {n}: {s['error']} (log: {root / n}.log)" for n, s in failed.items()
        )
        raise WorkError(f"{text}\nthe same command goes on from the last checkpoints")
    from posttrain.evaluate.report import write_report

    return write_report([root])


def load_pipeline(path: str, overrides: list[str]) -> Pipeline:
    """The pipeline in `path`."""
    pipeline = load(path, overrides)
    if not isinstance(pipeline, Pipeline):
        return load_stage(path, overrides, "pipeline")  # raises, saying what it is
    return pipeline


class _Stopping:
    """Ctrl-C and SIGTERM end the pipeline after its stages have saved."""

    asked = False

    def __enter__(self) -> _Stopping:
        self.before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if not self.asked:
            print("\nstopping: the stages save a checkpoint first", file=sys.stderr, flush=True)
        self.asked = True


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal,
    )  # fmt: skip
