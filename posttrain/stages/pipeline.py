"""Runs a pipeline: stages as processes of their own, in parallel where nothing stands between them, one
report.

`runs/<pipeline>/` holds pipeline.json, one run directory and one log a stage, and report.html. A stage that
is finished is not run again; a stopped one goes on from its last checkpoint. Left out: other machines (the
cluster launcher submits stages as jobs instead).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from posttrain.base.files import read_json, read_jsonl, timestamp, write_json, write_text
from posttrain.base.process import usable_cores
from posttrain.base.progress import ProgressBars
from posttrain.base.stop import StopRequest
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import Pipeline, Recipe, load, to_yaml
from posttrain.recipe.load import load_stage
from posttrain.stages.preflight import MODELS, preflight, sources_of


def stage_recipes(pipeline: Pipeline, path: Path) -> dict[str, Recipe]:
    """The recipe of every stage, placed in the pipeline's folder, references to other stages resolved."""
    root = Path(pipeline.output_dir) / pipeline.pipeline
    names = [s.name for s in pipeline.stages]
    recipes: dict[str, Recipe] = {}
    for i, stage in enumerate(pipeline.stages):
        try:
            recipe = load(path.parent / stage.recipe, stage.overrides)
        except RequestError as error:
            raise RequestError(f"{path}: stage {stage.name!r}: {error}") from error
        if isinstance(recipe, Pipeline):
            raise RequestError(f"{path}: stage {stage.name!r} is a pipeline itself; list its stages here")
        recipe.name, recipe.output_dir = stage.name, str(root)
        for holder, key, cut in _places(recipe):
            other, sign, rest = getattr(holder, key).partition(cut)
            if other not in names or (cut == "/" and not rest):
                continue
            if names.index(other) >= i:
                what = "starts from" if key == "init" else "reads"
                raise RequestError(
                    f"{path}: stage {stage.name!r} {what} {other!r}, which is not an earlier stage"
                )
            setattr(holder, key, f"{root / other}{sign}{rest}")
        recipes[stage.name] = recipe
    return recipes


def _places(recipe: Recipe) -> Iterator[tuple[Any, str, str]]:
    """(section, key, separator) of every value that may name an earlier stage: models `stage@best:...`, files
    `stage/pairs.jsonl`."""
    for section, key in MODELS:
        holder = getattr(recipe, section, None)
        if getattr(holder, key, None) is not None:
            yield holder, key, "@"
    for _, source in sources_of(recipe):
        if source.path is not None:
            yield source, "path", "/"


def dependencies(pipeline: Pipeline, recipes: dict[str, Recipe]) -> dict[str, set[str]]:
    """Which stages each stage waits for: those it names, and those that its models and files come from."""
    root = Path(pipeline.output_dir) / pipeline.pipeline
    waits = {s.name: set(s.after) for s in pipeline.stages}
    for name, recipe in recipes.items():
        for holder, key, cut in _places(recipe):
            value = getattr(holder, key)
            waits[name] |= {
                other
                for other in recipes
                if value.partition("@")[0] == str(root / other)
                or (cut == "/" and value.startswith(f"{root / other}/"))
            }
    return waits


def run_pipeline(path: str, overrides: list[str], console: Console, accelerate: str | None = None) -> Path:
    """Run every stage; returns the report. Raises `WorkError` naming the stages that failed and their logs.

    A failed stage keeps those that wait for it from starting; the others run on. `accelerate`: config that
    launches each.
    """
    pipeline = load_pipeline(path, overrides)
    recipes = stage_recipes(pipeline, Path(path))
    root = Path(pipeline.output_dir) / pipeline.pipeline
    coming = {str(root / name) for name in recipes}
    for name, recipe in recipes.items():
        preflight(recipe, coming, f"{path}: stage {name!r}")
    root.mkdir(parents=True, exist_ok=True)
    states = _drive(pipeline, recipes, root, console, accelerate)
    unfinished = {n: s for n, s in states.items() if s["status"] != "finished"}
    if unfinished:
        lines = [
            f"stage {n}: {s['error']} (log: {root / n}.log)" if "error" in s else f"stage {n}: not started"
            for n, s in unfinished.items()
        ]
        raise WorkError("\n".join([*lines, "the same command goes on from the last checkpoints"]))
    from posttrain.report.page import (
        write_report,  # matplotlib: not while a pipeline is only checked
    )

    return write_report([root])


def _drive(
    pipeline: Pipeline, recipes: dict[str, Recipe], root: Path, console: Console, accelerate: str | None
) -> dict[str, dict[str, Any]]:
    """Start stages as they become ready, watch them, keep pipeline.json true; states by stage name."""
    waits = dependencies(pipeline, recipes)
    begun = time.time()
    states: dict[str, dict[str, Any]] = {n: {"name": n, "run": n, "status": "waiting"} for n in recipes}
    facts = {"pipeline": pipeline.pipeline, "stages": list(states.values()), "started": timestamp()}
    threads = max(1, usable_cores() // min(pipeline.parallel, len(recipes)))
    running: dict[str, Running] = {}
    notice = "the stages save a checkpoint, then the pipeline stops"
    with (
        StopRequest((signal.SIGINT, signal.SIGTERM), notice, interrupts=False) as stop,
        ProgressBars("step", elapsed=True, console=console) as bars,
    ):
        for name in recipes:
            bars.add(name, note="waiting")
        while True:
            for name, state in states.items():
                ready = state["status"] == "waiting" and len(running) < pipeline.parallel
                if (
                    ready
                    and not stop.requested
                    and all(states[o]["status"] == "finished" for o in waits[name])
                ):
                    if finished(recipes[name]):
                        state |= {"status": "finished", "seconds": 0.0}
                        continue
                    running[name] = Running(recipes[name], root, threads, accelerate)
                    state |= {"status": "running", "started": timestamp()}
                    write_json(root / "pipeline.json", facts)
                    bars.update(name, note="preparing", print_line=True)
            for name, stage in list(running.items()):
                if stop.requested:
                    stage.stop()
                code = stage.process.poll()
                _show(bars, name, stage, code)
                if code is not None:
                    del running[name]
                    states[name] |= {"seconds": round(time.time() - stage.begun, 1)}
                    states[name] |= stage.ending(code)
                    write_json(root / "pipeline.json", facts)
            if not running and not (_startable(states, waits) and not stop.requested):
                break
            time.sleep(0.5)
    write_json(
        root / "pipeline.json", facts | {"ended": timestamp(), "seconds": round(time.time() - begun, 1)}
    )
    return states


def _startable(states: dict[str, dict[str, Any]], waits: dict[str, set[str]]) -> bool:
    return any(
        s["status"] == "waiting" and all(states[o]["status"] == "finished" for o in waits[n])
        for n, s in states.items()
    )


def load_pipeline(path: str, overrides: list[str]) -> Pipeline:
    """The pipeline in `path`."""
    pipeline = load(path, overrides)
    if not isinstance(pipeline, Pipeline):
        return load_stage(path, overrides, "pipeline")  # raises, saying what it is
    return pipeline


def _show(bars: ProgressBars, name: str, stage: Running, code: int | None) -> None:
    """The progress of a stage; `code`: its exit code, once it has ended."""
    done, total, note = stage.progress()
    if code is not None:
        note = "finished" if code == 0 else "failed"
    bars.update(name, done, total or None, note, print_line=code is not None)


def launcher(accelerate: str | None) -> list[str]:
    """The command in front of `-m posttrain.<stage>`: the interpreter, or accelerate with the config
    `accelerate`."""
    if accelerate is None:
        return [sys.executable]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*launch, "--config_file", accelerate]


def _ignore_usr1() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def finished(recipe: Recipe) -> bool:
    """Whether this very recipe has run to its end in its place: nothing of it is left to do."""
    place = Path(recipe.output_dir) / recipe.name
    try:
        if read_json(place / "run.json").get("status") != "finished":
            return False
        return (place / "recipe.yaml").read_text(encoding="utf-8") == to_yaml(recipe)
    except (OSError, WorkError):
        return False


class Running:
    """One stage as a process."""

    asked = False

    def __init__(self, recipe: Recipe, root: Path, threads: int, accelerate: str | None) -> None:
        self.name, self.root, self.begun = recipe.name, root, time.time()
        self.launched = accelerate is not None
        # In the pipeline's folder: the stage's own folder appears only when its recipe is accepted.
        file = root / f".{recipe.name}.yaml"
        write_text(file, to_yaml(recipe))
        self.log = root / f"{recipe.name}.log"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*launcher(accelerate), "-m", f"posttrain.{recipe.stage}", str(file)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_ignore_usr1 if self.launched else None,
            )

    def progress(self) -> tuple[int, int, str]:
        """(steps done, steps in all, last loss)."""
        run = self.root / self.name
        info = read_json(run / "run.json") if (run / "run.json").exists() else {}
        if "chunks" in info:
            return len(list(run.glob("parts/chunk-*"))), info["chunks"], "sampling"
        total = info.get("steps", 0)
        rows = [r for r in read_jsonl(run / "metrics.jsonl") if r.get("split") == "train"]
        return (rows[-1]["step"], total, f"loss {rows[-1]['loss']:.4g}") if rows else (0, total, "preparing")

    def stop(self) -> None:
        """Ask; the stage saves a checkpoint and ends. A launcher would end its processes on SIGTERM before
        they have saved: they are asked by USR1, which it ignores, and again until they listen."""
        if self.process.poll() is None:
            if self.launched:
                os.killpg(self.process.pid, signal.SIGUSR1)
            elif not self.asked:
                self.process.send_signal(signal.SIGTERM)
        self.asked = True

    def ending(self, code: int) -> dict[str, str]:
        """`status` and `error` of the stage that ended with `code`."""
        if code == 0:
            return {"status": "finished"}
        if code < 0:  # before it could listen for signals, or by the machine
            name = signal.Signals(-code).name
            ours = self.asked and name == "SIGTERM"
            text = "stopped before its first step" if ours else f"ended by {name}"
            return {"status": "stopped" if ours else "failed", "error": text}
        file = self.root / self.name / "run.json"
        stopped = file.exists() and read_json(file).get("status") == "stopped"
        return {"status": "stopped" if stopped else "failed", "error": self.why()}

    def why(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].removeprefix("error: ")
