"""Which runs measured the same on a task: only those share a curve, a picture or a sentence.

Two runs measured the same where problems, options and sampler are the same (the first half of the settings
hash). The chat template and the dtype, its other half, belong to a model; where they differ a caveat says it.
Left out: the numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from posttrain.base.files import number
from posttrain.report.swept import run_names
from posttrain.report.tables import described, plain
from posttrain.rundir.reading import RunData
from posttrain.rundir.scores import halves

MOST_TOLD = 4
"""Other ways of measuring a task that have a sentence each."""
MOST_NAMED = 3
"""Of more ways, those that are named; the rest is counted."""


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
                groups.setdefault(halves(own_settings(run, task))[0], []).append(run)
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
    if halves(own_settings(a, task))[0] == halves(own_settings(b, task))[0]:
        return ""
    one, other = _asked(a, task), _asked(b, task)
    keys = [k for k in {**one, **other} if plain(one.get(k)) != plain(other.get(k))]
    told = [f"{described({k: one.get(k)})} against {described({k: other.get(k)})}" for k in keys]
    return ", ".join(told) or "the recipes say the same, the problems differ"


def apart(groups: list[Measured]) -> list[str]:
    """A sentence for each task under whose name the runs measured different things."""
    found = []
    for task in dict.fromkeys(group.task for group in groups):
        titles = [group.title for group in groups if group.task == task]
        if len(titles) > 1:
            found.append(
                f"{task}: runs that were scored on other problems or with other settings are not compared:"
                f" {'; '.join(titles)}."
            )
    return found


def others(run: RunData, task: str) -> dict[str, str]:
    """settings hash -> how the task was measured under it, each with a text of its own, of the settings that
    are neither the run's own nor its controls: `limit 100`."""
    known = {own_settings(run, task), *controls(run, task).values()}
    found = {s: differs for s, differs in run.settings(task).items() if s not in known}
    texts = {s: described(differs) or "other problems or settings" for s, differs in found.items()}
    alike = Counter(texts.values())
    return {s: f"{text} ({s})" if alike[text] > 1 else text for s, text in texts.items()}


def controls(run: RunData, task: str) -> dict[float, str]:
    """temperature -> settings hash, ascending, of the scores that differ from the run's own in it alone, the
    own among them. Empty where there is no other.

    Of several at one temperature (the problems changed) the one of most checkpoints, of equals the one
    written first, as in `RunData.settings`.
    """
    own = own_settings(run, task)
    at: dict[float, list[str]] = {}
    for settings, differs in run.settings(task).items():
        t = number(differs.get("temperature")) if [*differs] == ["temperature"] else None
        if t is not None and halves(settings)[1] == halves(own)[1]:
            at.setdefault(float(t), []).append(settings)
    if not at:
        return {}
    found = {t: max(alike, key=lambda s: len(run.rows(task, s))) for t, alike in at.items()}
    return dict(sorted((found | {own_temperature(run, task): own}).items()))


def own_temperature(run: RunData, task: str) -> float:
    """The temperature of a task in the recipe of a run; 1, the default, where it is unknown."""
    t = number(_asked(run, task).get("temperature"))
    return 1.0 if t is None else float(t)


def beside(run: RunData, task: str) -> list[str]:
    """A sentence for each way in which the task was measured besides the run's own and its controls, or one
    for many."""
    ways = others(run, task)
    if len(ways) > MOST_TOLD:
        told = f"{task} was also scored in {len(ways):,} other ways ({some([*ways.values()])})"
        return [f"{told}, which are not compared with the rest."]
    found = []
    for settings in ways:
        differs = run.settings(task)[settings]
        steps = sorted({s.step for m in run.rows(task, settings).values() for s in m.values()})
        at = f"step {', '.join(f'{step:,}' for step in steps)}"
        how = f"with {described(differs)}" if differs else "on other problems or with other settings"
        found.append(f"{task} was also scored {how} ({at}), which is not compared with the rest.")
    return found


def some(names: list[str]) -> str:
    """`limit 5; limit 9; no limit; and 4 more`."""
    more = [f"and {len(names) - MOST_NAMED:,} more"] if len(names) > MOST_NAMED else []
    return "; ".join([*names[:MOST_NAMED], *more])


def renderings(runs: list[RunData]) -> list[str]:
    """A sentence for each task that runs with the same problems and settings were scored on with another chat
    template or in another dtype."""
    called = dict(zip(map(id, runs), run_names(runs), strict=True))
    found = []
    for m in measured(runs):
        apart: dict[str, list[str]] = {}
        for run in m.runs:
            apart.setdefault(halves(own_settings(run, m.task))[1], []).append(called[id(run)])
        if len(apart) > 1:
            groups = " against ".join(", ".join(group) for group in apart.values())
            found.append(
                f"{m.title}: the runs were not all scored with the same chat template and dtype"
                f" of the weights ({groups}), and a part of their difference can come from that."
            )
    return found
