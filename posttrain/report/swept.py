"""The place of a run in its sweep: stage and values, from the sweep.json beside it; what the run is called in
sentences; and how far a sweep is.

Left out: whether a run is the one that sweep.json lists (`members.py`), sides and their numbers (`sides.py`,
`side_tables.py`), the page (`sweep_page.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.printable import printable
from posttrain.errors import RequestError
from posttrain.recipe.sweep_names import short_keys, value_text
from posttrain.report.members import doubted
from posttrain.report.tables import described
from posttrain.report.text import labels
from posttrain.rundir.reading import PipelineData, RunData
from posttrain.rundir.sweeps import SweepData, SweptRun, is_sweep

MOST_NAMED = 12
"""Runs named in one sentence; more are counted."""
UNSORTED = "The runs are not sorted by their values."


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
    """The sweep that `pipeline` is, None where it is none whose sweep.json can be read and is as it was
    written; and what could not be read of either."""
    if pipeline is None or not is_sweep(pipeline.path):
        return None, pipeline.unread if pipeline else []
    try:
        found = SweepData.load(pipeline.path)
    except RequestError as error:
        return None, [*pipeline.unread, f"{error}. {UNSORTED}"]
    if not found.intact:
        return None, [*pipeline.unread, *(f"{text}. {UNSORTED}" for text in found.unread)]
    return found, [*pipeline.unread, *found.unread]


def cells(runs: list[RunData]) -> dict[int, Cell]:
    """id of each run that belongs to a sweep -> its cell."""
    found = {}
    for data, inside in _sweeps(runs):
        wrong = doubted(data, inside)
        known = {name: cell for name, cell in cells_of(data).items() if name not in wrong}
        at = {id(run): run.path.resolve().name for run in inside}
        found |= {key: known[name] for key, name in at.items() if name in known}
    return found


def run_names(runs: list[RunData]) -> list[str]:
    """What each run is called in a sentence about it alone: `n-16_seed-1 (n 16, seed 1)` in a sweep, else its
    label."""
    swept = cells(runs)
    return [
        swept[id(run)].title if id(run) in swept else label
        for run, label in zip(runs, labels(runs), strict=True)
    ]


def strangers(runs: list[RunData]) -> list[str]:
    """A sentence for each run that is not the one that the sweep.json beside it lists."""
    found = [text for data, inside in _sweeps(runs) for text in doubted(data, inside).values()]
    left = len(found) - MOST_NAMED
    more = f"{left} more {'run is' if left == 1 else 'runs are'} not what sweep.json lists."
    return found[:MOST_NAMED] + ([more] if left > 0 else [])


def _sweeps(runs: list[RunData]) -> Iterator[tuple[SweepData, list[RunData]]]:
    """The sweeps in whose folders `runs` lie, and those in each."""
    found: dict[Path, list[RunData]] = {}
    for run in runs:
        found.setdefault(run.path.resolve().parent, []).append(run)
    for folder, inside in found.items():
        if is_sweep(folder):
            with contextlib.suppress(RequestError):  # said by `load_sweep`
                yield SweepData.load(folder), inside


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
    """(how far the sweep is, its failures): sentences, none where every run is finished and is the one that
    sweep.json lists."""
    held = {run.path.resolve().name: run for run in pipeline.runs}
    stages = {str(stage.get("name")): stage for stage in pipeline.stages}
    known, wrong = cells_of(data), doubted(data, pipeline.runs)
    where: dict[str, list[str]] = {}
    failures = []
    for run in data.runs:
        status, why = _status(held.get(run.run), stages.get(run.run, {}))
        name = printable(run.run) if run.run in wrong else known[run.run].title
        where.setdefault(status, []).append(name)
        if status in ("failed", "missing"):
            failures.append(f"{name} {'failed' if status == 'failed' else 'is missing'}: {printable(why)}.")
    done = len(where.pop("finished", []))
    apart = f"{len(wrong)} of them not sorted by {'its' if len(wrong) == 1 else 'their'} values"
    if not where:
        return [f"{len(data.runs)} runs, all finished, {apart}."] * bool(wrong), []
    counts = ", ".join(f"{len(names)} {status}" for status, names in where.items())
    told = [f"{done} of {len(data.runs)} runs are finished; {counts}{f'; {apart}' * bool(wrong)}."]
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
