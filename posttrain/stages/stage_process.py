"""One stage of a pipeline as a process of its own, alone or under accelerate's launcher.

Left out: which stage starts when (`schedule.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from posttrain.base.files import number, read_json, write_text
from posttrain.errors import WorkError
from posttrain.recipe import Recipe, TrainRecipe, changes, recipe_hash, to_yaml
from posttrain.recipe.load import REREAD
from posttrain.rundir.checkpoints import all_complete
from posttrain.rundir.scores import ScoreStore
from posttrain.stages.parent import STOP_S, child_environment

ASK_AGAIN_S = 5.0
"""Seconds after which a stage that still runs is asked to stop once more."""
HURRY_S = 10.0
"""As `STOP_S`, where nothing needs to be saved: after a second Ctrl-C."""
TAIL = 1 << 16
"""Bytes at the end of metrics.jsonl in which the last step is looked for."""


def launcher(accelerate: str | None) -> list[str]:
    """The command in front of `-m posttrain.<stage>`: the interpreter, or accelerate's launcher with this
    config."""
    if accelerate is None:
        return [sys.executable]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*launch, "--config_file", accelerate]


def _ignore_usr1() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def finished(recipe: Recipe) -> bool:
    """Whether `recipe` has already run to its end in its directory, with every setting the same, and each
    checkpoint that is left is scored."""
    place = Path(recipe.output_dir) / recipe.name
    info = facts_of(place)
    if info.get("status") != "finished" or info.get("recipe_hash") != recipe_hash(recipe):
        return False
    try:
        before = yaml.safe_load((place / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    if not isinstance(before, dict):
        return False
    # Values are compared, not the text: the order of keys in a recipe has no meaning.
    changed = changes(before, recipe)
    # Of what resolvers give only the hash tells whether it is the same; it leaves these sections out.
    unknown = [at for at in recipe.written if at.startswith(("evaluate.", "checkpoints."))]
    if _lacks_scores(place, recipe):
        return False
    return changed.keys() <= REREAD.get(recipe.stage, {}).keys() and not unknown  # REREAD: by the hash


def _lacks_scores(place: Path, recipe: Recipe) -> bool:
    """Whether a checkpoint that is left was not scored on a task of the recipe."""
    tasks = [task.name for task in recipe.evaluate.tasks] if isinstance(recipe, TrainRecipe) else []
    try:
        kept = {c.name: str(c.facts().get("digest")) for c in all_complete(place / "checkpoints")}
        return bool(ScoreStore(place).lacking(kept, tasks))
    except (OSError, WorkError):  # damaged, which the stage itself will say
        return True


def facts_of(run: Path) -> dict[str, Any]:
    """run.json of a stage; empty where it is missing or damaged, which the stage itself will say."""
    try:
        info = read_json(run / "run.json")
    except (OSError, WorkError):
        return {}
    return info if isinstance(info, dict) else {}


def last_step(metrics: Path) -> tuple[int, float | None]:
    """(step, loss) of the last row of metrics.jsonl about training; (0, None) where there is none.

    Only the end of the file is read, and lines that are damaged are passed over.
    """
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0, None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            step = number(row.get("step")) if isinstance(row, dict) and row.get("split") == "train" else None
            if step is not None:
                return int(step), number(row.get("loss"))
    return 0, None


class StageProcess:
    """One stage as a process."""

    def __init__(self, recipe: Recipe, root: Path, threads: int, accelerate: str | None) -> None:
        self.name, self.root, self.begun = recipe.name, root, time.time()
        self.launched = accelerate is not None
        self.asked = False
        self.ask_at, self.deadline = 0.0, float("inf")
        """Monotonic seconds at which it is asked to stop again, and killed."""
        self.killed = ""
        """Why it was killed."""
        # In the pipeline's folder: the stage's own folder does not exist until its recipe is accepted.
        file = root / f".{recipe.name}.yaml"
        write_text(file, to_yaml(recipe))
        self.log = root / f"{recipe.name}.log"
        environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"} | child_environment(root)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*launcher(accelerate), "-m", f"posttrain.{recipe.stage}", str(file)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
                preexec_fn=_ignore_usr1 if self.launched else None,
            )

    def progress(self) -> tuple[int, int, str]:
        """(steps or chunks done, how many in all, a note). Never raises, whatever the files contain."""
        run = self.root / self.name
        info = facts_of(run)
        if chunks := number(info.get("chunks")):
            return len(list(run.glob("parts/chunk-*"))), int(chunks), "sampling"
        step, loss = last_step(run / "metrics.jsonl")
        note = f"loss {loss:.4g}" if loss is not None else "training" if step else "preparing"
        return step, int(number(info.get("steps")) or 0), note

    def stop(self, hurry: bool = False) -> None:
        """Asks the stage to save a checkpoint and end; to be called again and again until it has ended.

        It is asked again every `ASK_AGAIN_S`, and killed `STOP_S` after it was first asked. `hurry`: it is
        interrupted instead, saves nothing, and has `HURRY_S`.
        """
        now = time.monotonic()
        patience = HURRY_S if hurry else STOP_S
        if now + patience < self.deadline:  # asked for the first time, or in a hurry for the first time
            self.deadline, self.ask_at = now + patience, now
        if self.process.poll() is not None:
            return
        if now >= self.deadline:
            self.kill(f"killed: it had not ended {patience:g} s after it was asked to")
        elif now >= self.ask_at:
            self.asked, self.ask_at = True, now + ASK_AGAIN_S
            self._ask(signal.SIGINT if hurry else signal.SIGUSR1 if self.launched else signal.SIGTERM)

    def _ask(self, number: signal.Signals) -> None:
        """Sends a signal to the stage, or to the ranks of its launcher.

        The launcher would kill its ranks soon after a SIGTERM, saved or not. They are its children, some in
        sessions of their own, and ignore SIGUSR1 until they listen to it.
        """
        for process in self._descendants(recursive=False) if self.launched else [self.process]:
            with contextlib.suppress(psutil.Error):  # it has just ended
                process.send_signal(number)

    def kill(self, why: str) -> None:
        """Ends the stage at once, with all of its processes."""
        self.killed = why
        for process in [*self._descendants(recursive=True), self.process]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _descendants(self, recursive: bool) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive)
        except psutil.Error:
            return []

    def ending(self, code: int) -> dict[str, Any]:
        """`seconds`, `status` and `error` of the stage that ended with `code`."""
        info = facts_of(self.root / self.name)
        # of a stage that was resumed, those of all its starts
        found = {"seconds": number(info.get("seconds")) or round(time.time() - self.begun, 1)}
        if code == 0:
            return found | {"status": "finished"}
        if self.killed:
            return found | {"status": "stopped", "error": self.killed}
        stopped = info.get("status") == "stopped"
        if self.asked and not stopped and (code == -signal.SIGTERM or not info):
            return found | {"status": "stopped", "error": "stopped before its first step"}
        if code < 0 and not stopped:  # by the machine
            return found | {"status": "failed", "error": f"ended by {_name_of(-code)}"}
        return found | {"status": "stopped" if stopped else "failed", "error": self.why()}

    def why(self) -> str:
        """The last error in the log, or its last line."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError as error:
            return f"{self.log} cannot be read: {error.strerror or error}"
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].removeprefix("error: ")


def _name_of(number: int) -> str:
    """SIGKILL, or `signal 40` where the number has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
