"""The place of a run in its sweep: stage and values, from the sweep.json beside it; what the run is called in
sentences; and how far a sweep is.

Left out: whether sweep.json is right (`members.py`), sides and their numbers (`sides.py`,
`side_tables.py`), the page (`sweep_page.py`).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.base.printable import printable
from posttrain.errors import RequestError
from posttrain.recipe.sweep_names import short_keys, value_text
from posttrain.report.members import contradicted
from posttrain.report.tables import described
from posttrain.report.text import labels
from posttrain.rundir.reading import PipelineData, RunData
from posttrain.rundir.sweeps import SweepData, SweptRun, is_sweep

MOST_NAMED = 12
"""Runs named in one sentence; more are counted."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of a sweep. `name`: its values, alike for all its seeds; `title`: its folder, values and seed;
    `values`: title of a key -> value; `asked`: how many runs, one a seed, the sweep has of it; `order` sorts
    as the sweep lists its stages and values."""

    name: str
    title: str
    stage: str
    values: dict[str, Any]
    asked: int
    order: tuple[int, ...]


def load_sweep(pipeline: PipelineData | None) -> tuple[SweepData | None, list[str]]:
    """The sweep that `pipeline` is, None where it is none that can be read, without the runs that it has
    other values of than they have themselves (`strangers` says so); and what could not be read of either."""
    if pipeline is None:
        return None, []
    try:
        found = _members(pipeline.path, pipeline.runs)
    except RequestError as error:
        return None, [*pipeline.unread, f"{error}. The runs are not sorted by their values."]
    return found, [*pipeline.unread, *(found.unread if found else [])]


def cells(runs: list[RunData]) -> dict[int, Cell]:
    """id of each run that belongs to a sweep -> its cell."""
    found = {}
    for folder, inside in _folders(runs).items():
        with contextlib.suppress(RequestError):  # said by `load_sweep`
            if data := _members(folder, inside):
                known = cells_of(data)
                at = {id(run): run.path.resolve().name for run in inside}
                found |= {key: known[name] for key, name in at.items() if name in known}
    return found


def _members(folder: Path, runs: list[RunData]) -> SweepData | None:
    """The sweep in `folder`, without those of `runs` that are not what it says; None where there is none."""
    if not is_sweep(folder):
        return None
    found = SweepData.load(folder)
    wrong = contradicted(found, runs)
    return replace(found, runs=[run for run in found.runs if run.run not in wrong])


def run_names(runs: list[RunData]) -> list[str]:
    """What each run is called in a sentence about it alone: `n-16_seed-1 (n 16, seed 1)` in a sweep, else its
    label."""
    swept = cells(runs)
    return [
        swept[id(run)].title if id(run) in swept else label
        for run, label in zip(runs, labels(runs), strict=True)
    ]


def strangers(runs: list[RunData]) -> list[str]:
    """A sentence for each run that has not the values or the seed that the sweep.json beside it says."""
    found: list[str] = []
    for folder, inside in _folders(runs).items():
        if is_sweep(folder):
            with contextlib.suppress(RequestError):  # said by `load_sweep`
                found += contradicted(SweepData.load(folder), inside).values()
    left = len(found) - MOST_NAMED
    return found[:MOST_NAMED] + ([f"{left} more runs contradict their sweep.json."] if left > 0 else [])


def _folders(runs: list[RunData]) -> dict[Path, list[RunData]]:
    """The folders in which `runs` lie, and those in each."""
    found: dict[Path, list[RunData]] = {}
    for run in runs:
        found.setdefault(run.path.resolve().parent, []).append(run)
    return found


def cells_of(data: SweepData) -> dict[str, Cell]:
    """Run -> its cell."""
    stages = list(dict.fromkeys(run.stage for run in data.runs))
    titles = titles_of(list(dict.fromkeys([*data.keys, *(key for run in data.runs for key in run.values)])))
    alike: dict[str, int] = {}
    for run in data.runs:
        alike[_text(run)] = alike.get(_text(run), 0) + 1
    found = {}
    for run in data.runs:
        values = {title: _spelt(run.values[key]) for key, title in titles.items() if key in run.values}
        parts = [run.stage * (len(stages) > 1), described(values)]
        name = ", ".join(part for part in parts if part)
        parts.append(f"seed {run.seed}" if len(data.seeds) > 1 and run.seed is not None else "")
        told = ", ".join(part for part in parts if part)
        title = f"{run.run} ({told})" if told else run.run
        order = [stages.index(run.stage)]
        for key, listed in data.keys.items():
            places = [i for i, value in enumerate(listed) if value == run.values.get(key, ...)]
            order.append(places[0] if places else -1 if key not in run.values else len(listed))
        found[run.run] = Cell(
            printable(name), printable(title), run.stage, values, alike[_text(run)], tuple(order)
        )
    return found


def _spelt(value: Any) -> Any:
    """16 for 16.0, which is how the names of the runs have it."""
    return value_text(value) if isinstance(value, float) else value


def _text(run: SweptRun) -> str:
    return json.dumps([run.stage, run.values], sort_keys=True, default=str)


def titles_of(keys: list[str]) -> dict[str, str]:
    """Key -> the shortest ending that no other has: `learning_rate`; `loss` of loss.name."""
    plain = {key: key.removesuffix(".name") for key in keys}
    if len(set(plain.values())) < len(keys):
        plain = {key: key for key in keys}
    short = short_keys([*plain.values()])
    return {key: short[text] for key, text in plain.items()}


def progress(pipeline: PipelineData, data: SweepData) -> tuple[list[str], list[str]]:
    """(how far the sweep is, its failures): sentences, none where every run is finished."""
    held = {run.path.resolve().name: run for run in pipeline.runs}
    stages = {str(stage.get("name")): stage for stage in pipeline.stages}
    known = cells_of(data)
    where: dict[str, list[str]] = {}
    failures = []
    for run in data.runs:
        status, why = _status(held.get(run.run), stages.get(run.run, {}))
        name = known[run.run].title
        where.setdefault(status, []).append(name)
        if status in ("failed", "missing"):
            failures.append(f"{name} {'failed' if status == 'failed' else 'is missing'}: {printable(why)}.")
    done = len(where.pop("finished", []))
    if not where:
        return [], []
    counts = ", ".join(f"{len(names)} {status}" for status, names in where.items())
    told = [f"{done} of {len(data.runs)} runs are finished; {counts}."]
    for status, names in where.items():
        if status not in ("failed", "missing"):
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            told.append(f"{status[0].upper()}{status[1:]}: {'; '.join(names[:MOST_NAMED])}{more}.")
    return told, failures


def _status(run: RunData | None, stage: dict[str, Any]) -> tuple[str, str]:
    """finished | failed | missing | not started | running ..., and why it failed."""
    asked = str(stage.get("status") or "")
    if run is not None and run.status == "finished":
        return "finished", ""
    if asked == "failed" or (run is not None and run.status == "failed"):
        error = stage.get("error") or (run.run.get("error") if run is not None else None)
        return "failed", str(error or "no reason given").rstrip(".")
    if run is not None:
        return (run.status if run.status != "unknown" else asked or "of unknown status"), ""
    if asked == "finished":
        return "missing", "pipeline.json calls it finished, but it has no directory"
    return ("running", "") if asked == "running" else ("not started", "")
