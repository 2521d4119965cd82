"""Run directories as values: everything that a report shows is read here, from files alone.

Every file is optional, so that a run in progress or a failed one still has a page; what cannot be read is
listed in `RunData.unread`. Left out: any computation (`report/numbers.py`), and following a parent to its
directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.base.files import number, read_jsonl
from posttrain.errors import PosttrainError, RequestError
from posttrain.recipe.build import shown
from posttrain.rundir.places import OUTCOMES, is_inside, is_run, why_no_run
from posttrain.rundir.proof import SET_ASIDE
from posttrain.rundir.rollouts import Rollouts
from posttrain.rundir.rows import in_json, sample_fault, score_of, step_fault, whole
from posttrain.rundir.scores import Unscored, samples_file, unscored
from posttrain.types import Score

STEP = re.compile(r"step-(\d+)")


def step_of(checkpoint: str) -> int | None:
    """400 of `step-000400`."""
    match = STEP.fullmatch(checkpoint)
    return int(match[1]) if match else None


@dataclass(slots=True)
class CheckpointInfo:
    """A directory under `checkpoints/`; complete once it contains the file COMPLETE. `info` is its
    checkpoint.json."""

    name: str
    step: int | None
    complete: bool
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RunData:
    """One run directory.

    `metrics` maps a split to its lines by step; `scores` has the row written last of each (checkpoint, task,
    metric, settings).
    """

    path: Path
    name: str
    run: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    mixture: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    checkpoints: list[CheckpointInfo] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)
    """Counts of a sampling stage; empty for a run that trains."""
    gates: list[dict[str, Any]] = field(default_factory=list)
    """Rows of gates.jsonl: the gates that checkpoints failed."""
    unscored: list[Unscored] = field(default_factory=list)
    """The scores that are missing: those whose measuring failed and, of a finished run, all others."""
    unread: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""
    _rollouts: Rollouts | None = field(default=None, repr=False)
    _samples: dict[Path, list[dict[str, Any]]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: str | Path) -> RunData:
        """The run at `path`. Raises `RequestError` where `path` is not a run directory."""
        path = Path(path)
        if not is_run(path):
            raise RequestError(f"{path}: {why_no_run(path)}")
        self = cls(path=path, name=path.resolve().name)
        self.run = self._json("run.json")
        self.name = str(self.run.get("name") or self.name)
        self.mixture = self._json("mixture.json")
        self._read_recipe()
        self._read_metrics()
        self._read_scores()
        self._read_checkpoints()
        self.outcome = next((found for name in OUTCOMES if (found := self._json(name))), {})
        self.gates = self._jsonl("gates.jsonl")
        self._read_unscored()
        return self

    @property
    def status(self) -> str:
        return str(self.run.get("status") or "unknown")

    @property
    def stage(self) -> str:
        """sft, dpo, rlvr, pairs or pass_rate; empty where it is unknown."""
        return str(self.run.get("stage") or self.recipe.get("stage") or "")

    @property
    def rollouts(self) -> Rollouts:
        """What the run sampled. Files are opened only when their rows are read."""
        if self._rollouts is None:
            self._rollouts = Rollouts(self.path, self.unread)
        return self._rollouts

    def section(self, name: str) -> dict[str, Any]:
        """A section of the recipe; empty where the recipe has no such mapping."""
        value = self.recipe.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def tasks(self) -> list[str]:
        """The scored tasks, in the order of the recipe, others after them in order of appearance."""
        scored, order = dict.fromkeys(score.task for score in self.scores), self._asked
        return sorted(scored, key=lambda t: order.index(t) if t in order else len(order))

    @property
    def _asked(self) -> list[str]:
        """The tasks of the recipe."""
        asked = self.section("evaluate").get("tasks")
        names = [t.get("name") for t in asked if isinstance(t, dict)] if isinstance(asked, list) else []
        return [name for name in names if isinstance(name, str)]

    def settings(self, task: str) -> dict[str, dict[str, Any]]:
        """settings hash -> what differs from the recipe's own settings, in all scores of `task`; the run's
        own first, which are its face.

        Of several that differ in nothing (the problems or the recipe changed, or an earlier version did not
        note it) the one of most checkpoints is the run's own, of equals the one written first.
        """
        covered: dict[str, set[str]] = {}
        differs: dict[str, dict[str, Any]] = {}
        for score in self.scores:
            if score.task == task:
                covered.setdefault(score.settings, set()).add(score.checkpoint)
                differs.setdefault(score.settings, score.differs)
        alike = [found for found in covered if not differs[found]] or [*covered]
        own = max(alike, key=lambda found: len(covered[found]), default=None)
        return {found: differs[found] for found in sorted(covered, key=lambda found: found != own)}

    def rows(self, task: str, settings: str | None = None) -> dict[str, dict[str, Score]]:
        """checkpoint -> metric -> score of one task under one settings hash (default: the run's own), ordered
        by step."""
        settings = next(iter(self.settings(task)), None) if settings is None else settings
        found: dict[str, dict[str, Score]] = {}
        mine = [s for s in self.scores if s.task == task and s.settings == settings]
        for score in sorted(mine, key=lambda s: (s.step, s.checkpoint)):
            found.setdefault(score.checkpoint, {})[score.metric] = score
        return found

    def samples(self, checkpoint: str, task: str, settings: str | None = None) -> list[dict[str, Any]]:
        """Rows of the samples behind the scores of `settings` (default: the run's own), the last one of each
        id; empty where there are none. `logp` is that of the settings' temperature."""
        every = self.settings(task)
        settings = next(iter(every), "") if settings is None else settings
        if (self.path / (file := samples_file(checkpoint, task, settings))).exists():
            return self._sampled(file)
        differs = every.get(settings, {})
        if not differs:
            return self._sampled(samples_file(checkpoint, task))
        rest = {key: value for key, value in differs.items() if key != "temperature"}
        if rest == differs:
            return []
        first = next((found for found, other in every.items() if other == rest), "")  # measured in its pass
        file = samples_file(checkpoint, task, first if rest else "")
        heat = number(differs["temperature"])
        at = "" if heat is None else str(float(heat))
        rows = self._sampled(file) if (self.path / file).exists() else []
        found = [(row, row["logp_at"].get(at)) for row in rows if isinstance(row.get("logp_at"), dict)]
        return [row | {"logp": logp} for row, logp in found if logp is not None]

    def _sampled(self, file: Path) -> list[dict[str, Any]]:
        if file not in self._samples:
            rows = self._jsonl(file, sample_fault)
            self._samples[file] = list({str(r.get("id", i)): r for i, r in enumerate(rows)}.values())
        return self._samples[file]

    def _json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError, RecursionError) as error:
            self.unread.append(f"{name}: {error}")
            return {}
        if isinstance(value, dict):
            return value
        self.unread.append(f"{name}: must contain a mapping")
        return {}

    def _jsonl(
        self, name: str | Path, fault: Callable[[dict[str, Any]], str] = lambda row: ""
    ) -> list[dict[str, Any]]:
        """The rows of a file without those that are damaged: no objects, or with a `fault`."""
        try:
            every = read_jsonl(self.path / name)
        except (OSError, ValueError, RecursionError, PosttrainError) as error:
            text = str(error)
            self.unread.append(text if str(name) in text else f"{name}: {text}")
            return []
        found = [fault(row) if isinstance(row, dict) else f"{in_json(row)} is no object" for row in every]
        if wrong := [text for text in found if text]:
            self.unread.append(f"{name}: {len(wrong)} of {len(every)} rows are damaged: {wrong[0]}")
        return [row for row, text in zip(every, found, strict=True) if not text]

    def _read_recipe(self) -> None:
        try:
            self.recipe_text = (self.path / "recipe.yaml").read_text(encoding="utf-8")
            value = yaml.safe_load(self.recipe_text)
            self.recipe = value if isinstance(value, dict) else {}
        except FileNotFoundError:
            return
        except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
            self.unread.append(f"recipe.yaml: {str(error).splitlines()[0]}")

    def _read_metrics(self) -> None:
        last: dict[tuple[str, int], dict[str, Any]] = {}
        for row in self._jsonl("metrics.jsonl", step_fault):
            if (step := whole(row.get("step"))) is not None:
                last[str(row.get("split", "train")), step] = row | {"step": step}
        for (split, _), row in sorted(last.items(), key=lambda item: item[0]):
            self.metrics.setdefault(split, []).append(row)

    def _read_scores(self) -> None:
        last: dict[tuple[str, str, str, str], Score] = {}
        for row in self._jsonl("scores.jsonl"):
            try:
                score = score_of(row)
            except ValueError as error:
                self.unread.append(f"scores.jsonl: {error}")
                continue
            last[score.checkpoint, score.task, score.metric, score.settings] = score
        self.scores = list(last.values())

    def _read_unscored(self) -> None:
        ended = self.status == "finished"
        kept = {c.name: str(c.info.get("digest")) for c in self.checkpoints if c.complete and ended}
        scores = [score.to_dict() for score in self.scores]
        self.unscored = unscored(self._jsonl("unscored.jsonl"), scores, kept, self._asked)

    def _read_checkpoints(self) -> None:
        folder = self.path / "checkpoints"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.is_dir() and not path.name.startswith((SET_ASIDE, ".tmp-")):
                info = self._json(f"checkpoints/{path.name}/checkpoint.json")
                done = (path / "COMPLETE").exists()
                self.checkpoints.append(CheckpointInfo(path.name, step_of(path.name), done, info))


@dataclass(slots=True)
class PipelineData:
    """`runs/<pipeline>/`: pipeline.json, and the run of every stage that has started."""

    path: Path
    name: str
    info: dict[str, Any]
    stages: list[dict[str, Any]]
    runs: list[RunData]
    unread: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""

    @classmethod
    def load(cls, path: str | Path) -> PipelineData:
        """The pipeline at `path`. Raises `RequestError` where pipeline.json is missing or cannot be read."""
        path = Path(path)
        try:
            info = json.loads((path / "pipeline.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RequestError(f"{path}: {why_no_run(path)}") from None
        except (ValueError, OSError, RecursionError) as error:
            raise RequestError(f"{path / 'pipeline.json'}: cannot be read: {error}") from None
        if not isinstance(info, dict) or not isinstance(info.get("stages", []), list):
            raise RequestError(f"{path / 'pipeline.json'}: must contain a mapping with a list of stages")
        self = cls(path, str(info.get("pipeline") or path.resolve().name), info, [], [])
        for i, stage in enumerate(info.get("stages", [])):
            asked = stage if isinstance(stage, dict) else {}
            names = [asked[key] for key in ("run", "name") if asked.get(key) is not None]
            if not names:
                self.unread.append(f"pipeline.json: stages[{i}] is not a stage with a name")
                continue
            self.stages.append(stage)
            self.unread += [
                f"pipeline.json: stages[{i}] names {name}, which is not a folder in {path}"
                for name in dict.fromkeys(shown(name) for name in names if not is_inside(name))
            ]
            places = [path / name for name in names if is_inside(name)]
            self.runs += [RunData.load(place) for place in places if is_run(place)][:1]
        return self

    @property
    def failures(self) -> list[str]:
        """A sentence for each stage that failed."""
        failed = [s for s in self.stages if s.get("status") == "failed"]
        return [f"Stage {s.get('name')} failed: {s.get('error') or 'no reason given'}." for s in failed]
