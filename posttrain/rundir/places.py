"""Whether a directory is a run or a pipeline, by the files that are in it.

Left out: reading them (`reading.py`).
"""

from __future__ import annotations

import difflib
from pathlib import Path

from posttrain.errors import did_you_mean

OUTCOMES = ("pairs.json", "pass_rate.json")
"""The counts of a sampling stage."""
LONGEST = 255
"""Bytes of the name of a folder."""
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
    """Whether `name` is one part of a path, so that a file that names it does not lead out of its folder, and
    no longer than a file system allows."""
    if not isinstance(name, str) or len(name.encode(errors="replace")) > LONGEST:
        return False
    return name not in ("", ".", "..") and Path(name).name == name


def why_no_run(path: Path) -> str:
    """Why `path` is neither a run nor a pipeline, with the runs that are in it or the one that is named most
    like it."""
    if inside := sorted(_named(path)):
        more = f" and {len(inside) - 8:,} more" if len(inside) > 8 else ""
        return f"contains runs but is not a run itself; choose one of: {', '.join(inside[:8])}{more}"
    missing = f"not a run directory (it has none of {', '.join(PARTS)})"
    return (missing if path.exists() else "no such run") + _near(path)


def _near(path: Path) -> str:
    """The run or pipeline named most like `path`: beside it, in a pipeline or sweep there, in `runs` there;
    where its folder is not there, in one that is named like that."""
    folder, known = path.resolve().parent, {}
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        for above in difflib.get_close_matches(folder.name, beside, 1):
            known = {name: f"{above}/{name}" for name in _named(folder.parent / above)}
    else:
        for place in ("", "runs/"):
            for name in _named(folder / place):
                known.setdefault(name, f"{place}{name}")
                for run in _named(folder / place / name):
                    known.setdefault(run, f"{place}{name}/{run}")
    if near := difflib.get_close_matches(path.name, known, 1):
        return f" (did you mean {known[near[0]]!r}?)"
    return did_you_mean(path.name, _named(folder))


def _named(folder: Path) -> list[str]:
    """The runs and pipelines in `folder`."""
    return [p.name for p in folder.iterdir() if is_run(p) or is_pipeline(p)] if folder.is_dir() else []
