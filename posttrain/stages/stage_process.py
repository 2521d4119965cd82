"""One stage of a pipeline as a process of its own, alone or under accelerate's launcher.

Left out: which stage starts when (`schedule.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from posttrain.base.files import read_json, read_jsonl, write_text
from posttrain.errors import WorkError
from posttrain.recipe import Recipe, TrainRecipe, changes, recipe_hash, to_yaml
from posttrain.recipe.load import REREAD
from posttrain.rundir.checkpoints import all_complete
from posttrain.rundir.scores import ScoreStore


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
    try:
        info = read_json(place / "run.json")
        if info.get("status") != "finished" or info.get("recipe_hash") != recipe_hash(recipe):
            return False
        # Values are compared, not the text: the order of keys in a recipe has no meaning.
        changed = changes(yaml.safe_load((place / "recipe.yaml").read_text(encoding="utf-8")), recipe)
        # Of what resolvers give only the hash tells whether it is the same; it leaves these sections out.
        unknown = [at for at in recipe.written if at.startswith(("evaluate.", "checkpoints."))]
        kept = {c.name: str(c.facts().get("digest")) for c in all_complete(place / "checkpoints")}
        tasks = [task.name for task in recipe.evaluate.tasks] if isinstance(recipe, TrainRecipe) else []
        if ScoreStore(place).lacking(kept, tasks):
            return False
        return changed.keys() <= REREAD.get(recipe.stage, {}).keys() and not unknown  # REREAD: by the hash
    except (OSError, WorkError, yaml.YAMLError):
        return False


class StageProcess:
    """One stage as a process."""

    asked = False

    def __init__(self, recipe: Recipe, root: Path, threads: int, accelerate: str | None) -> None:
        self.name, self.root, self.begun = recipe.name, root, time.time()
        self.launched = accelerate is not None
        # In the pipeline's folder: the stage's own folder does not exist until its recipe is accepted.
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
        """(steps or chunks done, how many in all, a note)."""
        run = self.root / self.name
        info = read_json(run / "run.json") if (run / "run.json").exists() else {}
        if "chunks" in info:
            return len(list(run.glob("parts/chunk-*"))), info["chunks"], "sampling"
        total = info.get("steps", 0)
        rows = [r for r in read_jsonl(run / "metrics.jsonl") if r.get("split") == "train"]
        return (rows[-1]["step"], total, f"loss {rows[-1]['loss']:.4g}") if rows else (0, total, "preparing")

    def stop(self) -> None:
        """Asks the stage to save a checkpoint and end; may be called again and again.

        A launcher would kill its ranks soon after a SIGTERM, saved or not. So the ranks are asked themselves:
        they are its children (several of them in sessions of their own), and ignore SIGUSR1 until they listen
        to it.
        """
        if self.process.poll() is None:
            if self.launched:
                for child in self._ranks():
                    with contextlib.suppress(psutil.Error):  # it has just ended
                        child.send_signal(signal.SIGUSR1)
            elif not self.asked:
                self.process.send_signal(signal.SIGTERM)
        self.asked = True

    def _ranks(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.Error:
            return []

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
        """The last error in the log, or its last line."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].removeprefix("error: ")
