"""A run at its best: pass@N where its temperature, its checkpoint or both may be chosen for each N.

These are the controls of a claim that one loss keeps pass@N and another loses it: a hotter sampler or an
earlier checkpoint of the second run could do as much. A best is chosen on the problems that it is shown on,
which flatters it. Left out: pictures (`control_plots.py`), sentences, a choice on other problems.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from posttrain.report.measured import controls, own_settings, own_temperature
from posttrain.report.numbers import Curve, curves
from posttrain.report.text import loss_name
from posttrain.rundir.reading import RunData

Over = Literal["temperature", "checkpoint", "both"]


class Best(NamedTuple):
    """The best pass@k for one k, and where it was measured."""

    value: float
    checkpoint: str
    settings: str
    """Its hash; the run's own where no other temperature is better."""


def options(run: RunData, task: str) -> list[str]:
    """The checkpoints that a run may choose from: those after the start, at its own temperature."""
    found = curves(run, task, own_settings(run, task))
    return [checkpoint for checkpoint, points in found.items() if next(iter(points.values())).step > 0]


def envelope(run: RunData, task: str, over: Over) -> dict[int, Best]:
    """k -> the best pass@k, over the temperatures of the last checkpoint, over the checkpoints at the run's
    own temperature, or over both; of equals the last checkpoint, and its own temperature.

    k are those of the last checkpoint at its own temperature; empty where it has none. The start model (step
    0) is no checkpoint of the run, and a score of more or fewer problems is not compared. A run that was
    measured at one temperature only has its own curve as the envelope over `temperature`: `temperatures`
    tells.
    """
    own = own_settings(run, task)
    at = {own: curves(run, task, own)}
    if not at[own]:
        return {}
    last, among = next(reversed(at[own])), options(run, task)
    if over != "checkpoint":
        at |= {s: curves(run, task, s) for s in controls(run, task).values() if s != own}
    found = {k: Best(score.value, last, own) for k, score in at[own][last].items()}
    for settings, table in at.items():
        for checkpoint in reversed(table) if over != "temperature" else [last]:
            for k, score in table.get(checkpoint, {}).items():
                alike = k in found and score.n == at[own][last][k].n
                if alike and checkpoint in among and score.value > found[k].value:
                    found[k] = Best(score.value, checkpoint, settings)
    return found


def last_by_temperature(run: RunData, task: str) -> dict[float, Curve]:
    """temperature -> pass@k of the last checkpoint, ascending, the run's own among them; empty where it has
    no pass@k. Temperatures at which that checkpoint was not scored are left out."""
    own = own_settings(run, task)
    table = curves(run, task, own)
    if not table:
        return {}
    last = next(reversed(table))
    every = controls(run, task) or {own_temperature(run, task): own}
    found = {t: curves(run, task, settings).get(last) for t, settings in every.items()}
    return {t: points for t, points in found.items() if points}


def temperatures(run: RunData, task: str) -> list[float]:
    """The temperatures at which the last checkpoint was scored, its own among them."""
    return list(last_by_temperature(run, task))


def pairs(runs: list[RunData], task: str) -> list[tuple[RunData, RunData]]:
    """Each cross-entropy run that has controls, with each run of another objective. `runs` measured the
    same."""
    held = [run for run in runs if curves(run, task, own_settings(run, task))]
    entropy = [r for r in held if loss_name(r) == "cross_entropy" and len(temperatures(r, task)) > 1]
    return [(a, b) for a in entropy for b in held if loss_name(b) != "cross_entropy"]
