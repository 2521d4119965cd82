"""Whether a directory is a run or a pipeline, by the files that are in it.

Left out: reading them (`reading.py`).
"""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import did_you_mean

OUTCOMES = ("pairs.json", "pass_rate.json")
"""The counts of a sampling stage."""
PARTS = (
    "run.json",
    "recipe.yaml",
    "mixture.json",
    "metrics.jsonl",
    "scores.jsonl",
    "checkpoints",
    "rollouts",
    *OUTCOMES,
)
"""What makes a directory a run: any one of them."""


def is_run(path: Path) -> bool:
    """Whether `path` contains any file of a run and is not a pipeline."""
    return not is_pipeline(path) and any((path / part).exists() for part in PARTS)


def is_pipeline(path: Path) -> bool:
    """Whether `path` contains a pipeline.json."""
    return (path / "pipeline.json").exists()


def is_inside(name: object) -> bool:
    """Whether `name` is one part of a path, so that a file that names it does not lead out of its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def why_no_run(path: Path) -> str:
    inside = sorted(p.name for p in path.iterdir() if is_run(p)) if path.is_dir() else []
    if inside:
        return f"contains runs but is not a run itself; choose one of: {', '.join(inside[:8])}"
    folder = path.resolve().parent
    near = [p.name for p in folder.iterdir() if is_run(p)] if folder.is_dir() else []
    missing = f"not a run directory (it has none of {', '.join(PARTS)})"
    return (missing if path.exists() else "no such run") + did_you_mean(path.name, near)
