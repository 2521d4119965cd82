"""Whether the runs in the folder of a sweep are those that its sweep.json lists, by hashes of recipes.

Runs may have been moved, renamed or copied since. Left out: whether sweep.json itself was changed
(rundir/sweeps.py), what a run of the sweep is called (`swept.py`).
"""

from __future__ import annotations

from posttrain.report.tables import told
from posttrain.rundir.reading import RunData
from posttrain.rundir.sweeps import FILE, SweepData, SweptRun


def doubted(data: SweepData, runs: list[RunData]) -> dict[str, str]:
    """Name of each of `runs`, all in the folder of `data`, that sweep.json lists but that is another run, or
    cannot be told from one -> a sentence."""
    listed = {run.run: run for run in data.runs}
    found = {}
    for run in runs:
        name = run.path.resolve().name
        if name in listed and (why := _why(listed[name], run)):
            found[name] = f"{data.path / FILE}: {name} {why}; it is not shown as a run of the sweep."
    return found


def _why(entry: SweptRun, run: RunData) -> str:
    """Why `run` is not `entry`; empty where it is."""
    name, has = run.run.get("name"), run.run.get("recipe_hash")
    if not isinstance(name, str) or not isinstance(has, str):
        return "has no run.json with its name and recipe_hash"
    if name != entry.run:
        return f"is {told(name)} by its run.json"
    if has != entry.recipe_hash:
        return f"has another recipe than the sweep gave it (recipe_hash {told(has)}, not {entry.recipe_hash})"
    return "" if run.recipe else "has no recipe.yaml that can be read"
