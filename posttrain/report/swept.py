"""The place of a run in its sweep: stage and values, from the sweep.json beside it; and how far a sweep is.

Left out: sides and their numbers (`sides.py`, `side_tables.py`), the page (`sweep_page.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.printable import printable
from posttrain.errors import RequestError
from posttrain.recipe.sweep import short_keys, value_text
from posttrain.report.measured import described
from posttrain.rundir.reading import PipelineData, RunData
from posttrain.rundir.sweeps import SweepData, SweptRun, is_sweep

MOST_NAMED = 12
"""Runs named in one sentence; more are counted."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of a sweep, whatever its seed. `values`: title of a key -> value; `asked`: how many runs, one a
    seed, the sweep has of it; `order` sorts as the sweep lists its stages and values."""

    name: str
    stage: str
    values: dict[str, Any]
    asked: int
    order: tuple[int, ...]


def load_sweep(path: Path) -> tuple[SweepData | None, list[str]]:
    """The sweep in the folder `path`, None where there is none that can be read; what could not be read."""
    if not is_sweep(path):
        return None, []
    try:
        found = SweepData.load(path)
    except RequestError as error:
        return None, [f"{error}. The runs are not sorted by their values."]
    return found, found.unread


def cells(runs: list[RunData]) -> dict[int, Cell]:
    """id of each run that belongs to a sweep -> its cell."""
    known: dict[Path, dict[str, Cell]] = {}
    found = {}
    for run in runs:
        place = run.path.resolve()
        if place.parent not in known:
            data, _ = load_sweep(place.parent)
            known[place.parent] = cells_of(data) if data else {}
        if place.name in known[place.parent]:
            found[id(run)] = known[place.parent][place.name]
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
        name = ", ".join(
            part for part in (run.stage * (len(stages) > 1), described(values) if values else "") if part
        )
        order = [stages.index(run.stage)]
        for key, listed in data.keys.items():
            places = [i for i, value in enumerate(listed) if value == run.values.get(key, ...)]
            order.append(places[0] if places else -1 if key not in run.values else len(listed))
        found[run.run] = Cell(printable(name), run.stage, values, alike[_text(run)], tuple(order))
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
        seed = f"seed {run.seed}" if len(data.seeds) > 1 and run.seed is not None else ""
        name = ", ".join(part for part in (known[run.run].name, seed) if part) or printable(run.run)
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
