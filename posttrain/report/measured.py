"""Which runs measured the same on a task: only those share a curve, a picture or a sentence.

Two runs measured the same where problems, options and sampler are the same (the first half of the settings
hash). The chat template and the dtype, its other half, belong to a model; where they differ a caveat says it.
Left out: the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.report.tables import plain
from posttrain.rundir.reading import RunData


@dataclass(frozen=True, slots=True)
class Measured:
    """A task, and the runs that measured the same on it. `title` is the name of the task, with what differs
    where other runs of the page measured something else under that name."""

    task: str
    title: str
    runs: list[RunData]


def own_settings(run: RunData, task: str) -> str:
    """The hash of the settings that are the run's own; empty where it has no score of the task."""
    return next(iter(run.settings(task)), "")


def measured(runs: list[RunData]) -> list[Measured]:
    """Every task of `runs`, in their order; several times where they measured different things under its
    name."""
    found = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        groups: dict[str, list[RunData]] = {}
        for run in runs:
            if task in run.tasks:
                groups.setdefault(own_settings(run, task).partition("-")[0], []).append(run)
        titles = _titles(task, [group[0] for group in groups.values()])
        pairs = zip(titles, groups.values(), strict=True)
        found += [Measured(task, title, group) for title, group in pairs]
    return found


def _titles(task: str, runs: list[RunData]) -> list[str]:
    """One title for each of `runs`, which measured different things."""
    if len(runs) < 2:
        return [task]
    asked = [_asked(run, task) for run in runs]
    keys = list(dict.fromkeys(key for a in asked for key in a))
    apart = [key for key in keys if len({plain(a.get(key)) for a in asked}) > 1]
    named = [f"{task} ({described({key: a.get(key) for key in apart})})" for a in asked]
    if len(set(named)) == len(named):
        return named
    return [f"{task} (settings {own_settings(run, task)[:6]})" for run in runs]


def _asked(run: RunData, task: str) -> dict[str, Any]:
    """The settings of a task in the recipe of a run; empty where they are unknown."""
    listed = run.section("evaluate").get("tasks")
    for given in listed if isinstance(listed, list) else []:
        if isinstance(given, dict) and given.get("name") == task:
            options = given.get("options")
            return {**given, **(options if isinstance(options, dict) else {}), "options": None}
    return {}


def asked_differently(a: RunData, b: RunData, task: str) -> str:
    """In which settings two runs measured different things on `task`: `limit 100 against no limit`; empty
    where they measured the same."""
    if own_settings(a, task).partition("-")[0] == own_settings(b, task).partition("-")[0]:
        return ""
    one, other = _asked(a, task), _asked(b, task)
    keys = [k for k in {**one, **other} if plain(one.get(k)) != plain(other.get(k))]
    told = [f"{described({k: one.get(k)})} against {described({k: other.get(k)})}" for k in keys]
    return ", ".join(told) or "the recipes say the same, the problems differ"


def described(differs: dict[str, Any]) -> str:
    """`temperature 1.5, limit 100`: settings and their values; `no limit` where there is none."""
    return ", ".join(f"no {k}" if v is None else f"{k} {plain(v)}" for k, v in differs.items())


def controls(run: RunData, task: str) -> dict[float, str]:
    """temperature -> settings hash, ascending, of the scores that differ from the run's own in it alone, the
    own among them. Empty where there is no other."""
    every = run.settings(task).items()
    at = {float(d["temperature"]): found for found, d in every if [*d] == ["temperature"]}
    if not at:
        return {}
    own = _asked(run, task).get("temperature", 1.0)
    return dict(sorted((at | {float(own): own_settings(run, task)}).items()))


def beside(run: RunData, task: str) -> list[str]:
    """A sentence for each way in which the task was measured besides the run's own and its controls."""
    found = []
    for settings, differs in [*run.settings(task).items()][1:]:
        if [*differs] == ["temperature"]:
            continue
        steps = sorted({s.step for m in run.rows(task, settings).values() for s in m.values()})
        at = f"step {', '.join(f'{step:,}' for step in steps)}"
        how = f"with {described(differs)}" if differs else "on other problems or with other settings"
        found.append(f"{task} was also scored {how} ({at}), which is not compared with the rest.")
    return found
