"""Runs a pipeline: stages as processes, in parallel where neither waits for the other, then one report.

`runs/<pipeline>/` holds pipeline.json, one run directory and one log for each stage, and report.html. A
finished stage is not run again; a stopped one resumes from its last checkpoint. Left out: other machines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from posttrain.base.files import timestamp, write_json
from posttrain.base.process import usable_cores
from posttrain.base.progress import ProgressBars
from posttrain.base.stop import StopRequest
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import Pipeline, Recipe
from posttrain.report.page import write_report
from posttrain.rundir.lock import DirectoryLock
from posttrain.rundir.sweeps import is_sweep
from posttrain.stages.parent import wait_for_orphans
from posttrain.stages.pipeline import dependencies, load_pipeline, stage_recipes
from posttrain.stages.preflight import preflight
from posttrain.stages.stage_process import StageProcess, facts_of, finished

POLL_S = 0.5


def run_pipeline(path: str, overrides: list[str], console: Console, accelerate: str | None = None) -> Path:
    """Run every stage; returns the report.

    A failed stage keeps those that wait for it from starting; the others run on. `accelerate`: the config
    that launches each stage.

    Raises:
        RequestError: the pipeline or a recipe is wrong, or another process runs it; nothing was started.
        WorkError: names the stages that failed and their logs.
    """
    pipeline = load_pipeline(path, overrides)
    root = Path(pipeline.output_dir) / pipeline.pipeline
    if is_sweep(root):  # its pipeline.json would be replaced, and its table would be of other runs
        raise RequestError(f"{root} contains a sweep; choose another pipeline=...")
    return run_stages(pipeline, stage_recipes(pipeline, Path(path)), path, console, accelerate)


def run_stages(
    pipeline: Pipeline,
    recipes: dict[str, Recipe],
    where: str,
    console: Console,
    accelerate: str | None = None,
    claim: Callable[[], None] = lambda: None,
    what: str = "stage",
) -> Path:
    """As `run_pipeline`, for stages whose recipes are placed already (`stage_recipes`).

    `where`: the file that a message names. `claim` is called with the folder locked, before anything starts,
    and may refuse. `what`: the word for a stage.
    """
    root = Path(pipeline.output_dir) / pipeline.pipeline
    coming = {str(root / name) for name in recipes}
    for name, recipe in recipes.items():
        preflight(recipe, coming, f"{where}: {what} {name!r}")
    lock = DirectoryLock(root)
    lock.take()
    try:
        wait_for_orphans(root)
        claim()
        return _run(_Schedule(pipeline, recipes, root, accelerate), console, what)
    finally:
        lock.release()


def _run(schedule: _Schedule, console: Console, what: str) -> Path:
    root, states = schedule.root, schedule.run(console, what)
    unfinished = {n: s for n, s in states.items() if s["status"] != "finished"}
    if unfinished:
        lines = [
            f"{what} {n}: {s['error']} (log: {root / n}.log)" if "error" in s else f"{what} {n}: not started"
            for n, s in unfinished.items()
        ]
        raise WorkError("\n".join([*lines, "run the same command to resume from the last checkpoints"]))
    return write_report([root])


class _Schedule:
    """Starts stages as they become ready, watches them, and keeps pipeline.json up to date."""

    def __init__(
        self, pipeline: Pipeline, recipes: dict[str, Recipe], root: Path, accelerate: str | None
    ) -> None:
        self.recipes, self.root, self.accelerate = recipes, root, accelerate
        self.parallel = pipeline.parallel
        self.threads = max(1, usable_cores() // min(pipeline.parallel, len(recipes)))
        self.waits = dependencies(pipeline, recipes)
        self.states: dict[str, dict[str, Any]] = {
            n: {"name": n, "run": n, "status": "waiting"} for n in recipes
        }
        self.running: dict[str, StageProcess] = {}
        self.begun = time.monotonic()
        self.facts = {
            "pipeline": pipeline.pipeline,
            "stages": list(self.states.values()),
            "started": timestamp(),
        }

    def run(self, console: Console, what: str) -> dict[str, dict[str, Any]]:
        """Until nothing runs and nothing more can start; the state of each stage by name."""
        whole = "pipeline" if what == "stage" else "sweep"
        notice = f"the {what}s save a checkpoint, then the {whole} stops; Ctrl-C again ends them at once"
        with (
            StopRequest(notice) as stop,
            ProgressBars("step", elapsed=True, console=console) as bars,
        ):
            stop.can_save = True
            self._write()  # a pipeline that was killed has left its stages as running
            for name in self.recipes:
                bars.add(name, note="waiting")
            try:
                while self._goes_on(bars, stop):
                    time.sleep(POLL_S)
            except BaseException as error:
                self._end_all(bars, hurry=isinstance(error, KeyboardInterrupt))
                raise
        self.facts |= {"ended": timestamp(), "seconds": round(time.monotonic() - self.begun, 1)}
        self._write()
        return self.states

    def _goes_on(self, bars: ProgressBars, stop: StopRequest) -> bool:
        """Starts what is ready and looks after what runs; False once nothing runs and nothing can start."""
        if not stop.requested:
            self._start_ready(bars)
        self._watch(bars, stop.requested)
        startable = not stop.requested and any(self._ready(name) for name in self.states)
        return bool(self.running) or startable

    def _end_all(self, bars: ProgressBars, hurry: bool) -> None:
        """No stage outlives its schedule, whatever ended it."""
        try:
            while self.running:
                for name, stage in list(self.running.items()):
                    stage.stop(hurry)
                    if self._settle(name, stage):
                        bars.update(name, note=stage.killed or self.states[name]["status"], print_line=True)
                time.sleep(POLL_S)
        finally:  # one more Ctrl-C
            for stage in self.running.values():
                stage.kill("killed")
            with contextlib.suppress(WorkError):  # the failure that led here is the one to report
                self._write()

    def _ready(self, name: str) -> bool:
        waits = self.waits[name]
        return self.states[name]["status"] == "waiting" and all(
            self.states[other]["status"] == "finished" for other in waits
        )

    def _start_ready(self, bars: ProgressBars) -> None:
        for name, state in self.states.items():
            if len(self.running) >= self.parallel or not self._ready(name):
                continue
            # a kill may have come before the report, the last that a stage writes
            if finished(self.recipes[name]) and (self.root / name / "report.html").is_file():
                run = facts_of(self.root / name)
                state |= {"status": "finished", "seconds": run.get("seconds")}
                continue
            self.running[name] = StageProcess(self.recipes[name], self.root, self.threads, self.accelerate)
            state |= {"status": "running", "started": timestamp()}
            self._write()
            bars.update(name, note="preparing", print_line=True)

    def _watch(self, bars: ProgressBars, stopping: bool) -> None:
        for name, stage in list(self.running.items()):
            if stopping:
                stage.stop()
            ended = self._settle(name, stage)
            done, total, note = stage.progress()
            if ended:
                self._write()
                note = stage.killed or self.states[name]["status"]
            bars.update(name, done, total or None, note, print_line=ended)

    def _settle(self, name: str, stage: StageProcess) -> bool:
        """Whether the stage has ended; if so, it is no longer among those that run."""
        code = stage.process.poll()
        if code is None:
            return False
        del self.running[name]
        self.states[name] |= stage.ending(code)
        return True

    def _write(self) -> None:
        write_json(self.root / "pipeline.json", self.facts)
