"""The pictures of training of each kind of stage, and what sampling stages did.

A picture has one metric (or a few related ones), a colour per run and a line style per series; losses that
are not the same have a picture each. Left out: which metrics are shown (`training_pictures.py`), how a
picture is drawn (`step_plots.py`), tables and sentences.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from posttrain.report.facts import (
    FAILED_CHECKS,
    SAMPLING,
    component_rows,
    facts,
    none_reasons,
    sampled,
    success_counts,
)
from posttrain.report.losses import by_loss
from posttrain.report.numbers import mean, series
from posttrain.report.plots import success_bars
from posttrain.report.step_plots import Line, over_steps, smoothing
from posttrain.report.tables import short
from posttrain.report.training_pictures import NLL, STAGES, Picture, pictures
from posttrain.rundir.reading import RunData

LOSS_SHOWN = 90
"""Characters of what a loss differs in, in a title."""


def sections(runs: list[RunData], names: list[str], prefix: str = "") -> list[dict[str, Any]]:
    """One section per kind of stage, in order of appearance: title, facts, pictures, tables of rewards.
    `prefix` begins the ids of the pictures."""
    kinds: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        if run.stage in SAMPLING:
            continue
        kinds.setdefault(run.stage if run.stage in STAGES else "sft", []).append(i)
    found = []
    for stage, members in kinds.items():
        held = [runs[i] for i in members]
        figures = []
        apart = by_loss(stage, {i: runs[i] for i in members})
        for picture in pictures(stage, held):
            if picture.title == "Loss" and len(apart) > 1 and stage == "sft":
                figures += _each(NLL, {"": members}, members, runs, names, f"{prefix}m{len(found)}n")
            groups = apart if picture.by_loss else {"": members}
            figures += _each(picture, groups, members, runs, names, f"{prefix}m{len(found)}x{len(figures)}")
        rewards = [(i, component_rows(runs[i])) for i in members] if stage == "rlvr" else []
        if figures:
            section = {"title": STAGES[stage], "figures": figures, "runs": members}
            section |= {"facts": fact_table(members, runs), "rewards": [r for r in rewards if r[1]]}
            found.append(section)
    return found


def _each(
    picture: Picture,
    groups: dict[str, list[int]],
    members: list[int],
    runs: list[RunData],
    names: list[str],
    prefix: str,
) -> list[dict]:
    """The picture of each group of runs, with the loss in its title where there are several."""
    figures = []
    for n, (loss, held) in enumerate(groups.items()):
        figure = _figure(picture, f"{prefix}{f'l{n}' * bool(loss)}", held, runs, names, len(members) > 1)
        if figure and loss:
            figure["title"] += f": {short(loss, LOSS_SHOWN)}"
            figure["note"] = "; ".join(filter(None, [figure["note"], "not comparable with another loss"]))
        figures += [figure] if figure else []
    return figures


def fact_table(members: list[int], runs: list[RunData]) -> dict[str, Any]:
    """Columns that any of the runs has, and (run, one value per column); empty where there are none."""
    each = {i: facts(runs[i]) for i in members}
    columns = list(dict.fromkeys(what for told in each.values() for what in told))
    rows = [(i, [told.get(what, "–") for what in columns]) for i, told in each.items()]
    return {"columns": columns, "rows": rows} if columns else {}


def sampling(runs: list[RunData]) -> list[dict[str, Any]]:
    """Runs that sampled and judged: their counts, how often prompts were solved, why prompts gave no pair."""
    found = []
    for i, run in enumerate(runs):
        told = sampled(run.outcome)
        if not told:
            continue
        counts = success_counts(run.outcome)
        svg = Markup(success_bars(f"o{i}", counts, i, kept_range(run))) if counts else ""
        note = "full bars: kept" if kept_range(run) else ""
        reasons = none_reasons(run.outcome)
        found.append({"run": i, "facts": told, "svg": svg, "note": note, "reasons": reasons})
    return found


def kept_range(run: RunData) -> tuple[int, int] | None:
    """(least, most) right completions of a prompt that is kept; None for stages that keep all."""
    low, high = (run.section("keep").get(key) for key in ("at_least", "at_most"))
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (low, high))
    return (low, high) if run.stage == "pass_rate" and whole else None


def _figure(
    picture: Picture, prefix: str, members: list[int], runs: list[RunData], names: list[str], several: bool
) -> dict | None:
    lines, shown = [], {}
    for i in members:
        for s in picture.series:
            rows = runs[i].metrics.get(s.split, [])
            steps, values = series(rows, s.key)
            if not steps or (picture.unless and mean(rows, picture.unless) is not None):
                continue
            shown[s.name] = s.style
            smooth = smoothing(len(steps)) if picture.smooth else 1
            lines.append((s, Line("", steps, values, i, s.style, smooth=smooth)))
    if not lines:
        return None
    for s, line in lines:
        if several:
            line.label = names[line.run] if s.style == picture.series[0].style else ""
        elif len(shown) > 1:
            line.label = s.name
    y = picture.y or picture.title[0].lower() + picture.title[1:]
    svg = over_steps(prefix, y, [line for _, line in lines], picture.scale, picture.rule)
    warns = picture.rule == FAILED_CHECKS and any(max(line.values) > FAILED_CHECKS for _, line in lines)
    return {
        "title": picture.title,
        "note": _note(picture, shown, several),
        "svg": Markup(svg),
        "run": None,
        "highlight": warns,
    }


def _note(picture: Picture, shown: dict[str, str], several: bool) -> str:
    parts = [picture.note] if picture.note else []
    if several and len(shown) > 1:
        parts.append(", ".join(f"{name} {style}" for name, style in shown.items()))
    return "; ".join(parts)
