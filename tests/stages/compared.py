"""Runs of one recipe that end in the same files, weights, rows and scores, however they were disturbed.

For the tests of kills and of odd places. Left out: starting them (`kill_loop.py`, `faults.py`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.tiny import RECIPE, write_rows
from tests.training.rollouts import write_recipe as write_prompts
from tests.unigram import prompts

TASK = "{name: arithmetic, options: {generator: addition, digits: 1, train_size: 20, test_size: 4}}"
TRAINED = (
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    "train.lr_scheduler_type=cosine",
    "train.max_grad_norm=1",
    "train.log_samples=true",
    "train.per_device_train_batch_size=8",
    "model.options={attention_dropout: 0.1}",
    "checkpoints={save_steps: 4, keep_last: 2}",
)
SETTINGS = {
    "sft": (
        *TRAINED,
        "train.max_steps=16",
        f"evaluate={{heldout: {{share: 0.2, every_steps: 8}}, tasks: [{TASK}]}}",
    ),
    "rlvr": (
        *TRAINED,
        "train.max_steps=8",
        f"evaluate={{tasks: [{TASK}]}}",
        'rewards=[{name: regex, options: {pattern: "[a-m].*", match: search}}]',  # in a process of its own
        "rollout={num_generations: 4, max_new_tokens: 12, batch_size: 8, steps_per_generation: 2, refill: 1}",
    ),
    "pairs": (),
}
SETTINGS["ranks"] = (*SETTINGS["sft"], "train.per_device_train_batch_size=4")
MEASURED = ("ms", "time", "tokens_per_second", "peak_memory_mib", "saved")
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
    "CI": "1",
}


class Runs:
    """Runs in `folder`, their caches beside them: `whole`, which nothing disturbed, and others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.worst = folder, 0.0

    def rows(self, run: str, name: str) -> list[dict]:
        file = self.folder / run / name
        return (
            [_unmeasured(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
        )

    def files(self, run: str) -> set[str]:
        """Names of all files and folders of a run and of its cache, but for the files that flock locks."""
        roots = {"run": self.folder / run, "cache": self.folder / f"cache-{Path(run).name}"}
        found = ((kind, path.relative_to(root)) for kind, root in roots.items() for path in root.rglob("*"))
        return {f"{kind}/{path}" for kind, path in found if path.suffix != ".lock"}

    def far(self, run: str) -> float:
        """Largest difference of a weight of any checkpoint from `whole`."""
        worst = 0.0
        for file in self.folder.glob("whole/checkpoints/*/model.safetensors"):
            ours = load_file(self.folder / run / file.relative_to(self.folder / "whole"))
            worst = max(worst, *(float((ours[k] - v).abs().max()) for k, v in load_file(file).items()))
        self.worst = max(self.worst, worst)
        return worst

    def trained_the_same(self, run: str) -> None:
        """Weights of every checkpoint that is kept, rows of every step, metrics; scores once each."""
        assert self.far(run) == 0, run
        for name, keys in (("samples.jsonl", ("step", "rank")), ("metrics.jsonl", ("step", "split"))):
            ours, whole = ({tuple(r[k] for k in keys): r for r in self.rows(n, name)} for n in (run, "whole"))
            assert ours == whole, (run, name)
        ours, whole = (
            [json.dumps(r, sort_keys=True) for r in self.rows(n, "scores.jsonl")] for n in (run, "whole")
        )
        assert sorted(ours) == sorted(whole), run

    def _scores(self, run: str) -> list[str]:
        return sorted(json.dumps(row, sort_keys=True) for row in self.rows(run, "scores.jsonl"))

    def sampled_the_same(self, run: str) -> None:
        """Completions token for token, with their verdicts, and what was made of them."""
        made = sorted(str(p.relative_to(self.folder / "whole")) for p in self.folder.glob("whole/*s/*.jsonl"))
        assert len(made) >= 4
        for name in [*made, "pairs.jsonl"]:
            assert self.rows(run, name) == self.rows("whole", name), (run, name)

    def left_the_same(self, run: str) -> None:
        """The same checkpoints; no temporary file, lock or note in the run and the cache."""
        assert self.files(run) == self.files("whole"), (run, sorted(self.files(run) ^ self.files("whole")))

    def logged_once(self, run: str) -> None:
        steps = [(row["step"], row["split"]) for row in self.rows(run, "metrics.jsonl")]
        assert len(steps) == len(set(steps)), f"{run}: metrics.jsonl repeats steps"


def _unmeasured(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if k.split("/")[-1] not in MEASURED and "seconds" not in k}
    return {k: _unmeasured(v) for k, v in kept.items()}


def recipe_of(stage: str, folder: Path, tiny: Path, digits: Path) -> Path:
    """The recipe of a stage, which takes `SETTINGS`; `whole` and others are runs in `folder`."""
    if stage == "rlvr":
        return write_prompts(folder, tiny)
    path, rows = folder / "case.yaml", write_rows(folder / "rows.jsonl")
    if stage in ("sft", "ranks"):
        path.write_text(RECIPE.format(out=folder, model=tiny, rows=rows))
        return path
    rows.write_text("".join(json.dumps(row) + "\n" for row in prompts(32)))
    values = {
        "stage": stage,
        "output_dir": str(folder),
        "model": {"init": str(digits)},
        "data": {"template": "chatml", "max_length": 160, "sources": [{"name": "rows", "path": str(rows)}]},
        "rewards": [{"name": "regex", "options": {"pattern": "^[^2]*$", "match": "search"}}],
        "rollout": {"num_generations": 8, "max_new_tokens": 24, "batch_size": 32},
    }
    path.write_text(yaml.safe_dump(values))
    return path
