"""Lines over optimizer steps as an inline SVG string: scores and training metrics, several runs or several
series.

Left out: which metrics are in a picture (`training_pictures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from posttrain.report.svg import MUTED, colour, end_labels, panel, wrapped, y_name

STYLES = {"solid": "-", "dashed": (0, (4, 2.2)), "dotted": (0, (1, 1.8))}
Scale = Literal["free", "zero", "share", "percent", "log"]
"""`free`: by the values; `zero`: from 0; `share`: 0 to 1; `percent`: from 0, in %; `log`: base 2."""
SMOOTHED_FROM = 60
"""Number of logged steps from which on a noisy line is smoothed."""


def smoothing(count: int) -> int:
    """Width of the moving average over `count` logged steps: odd, about a twentieth; 1 (none) for few
    steps."""
    return 2 * (count // 40) + 1 if count >= SMOOTHED_FROM else 1


@dataclass(slots=True)
class Line:
    """A line over optimizer steps, or what they have cost.

    `run` selects the colour, `style` distinguishes the series of one run, `band` is (low, high), `smooth` is
    the width of the moving average (1: none).
    """

    label: str
    steps: list[float]
    values: list[float]
    run: int = 0
    style: str = "solid"
    band: tuple[list[float], list[float]] | None = None
    marker: bool = False
    smooth: int = 1


def over_steps(
    name: str,
    y: str,
    lines: list[Line],
    scale: Scale = "free",
    rule: float | None = None,
    x: str = "step",
    ticks: Callable[[float], str] = "{:,.0f}".format,
) -> str:
    """Lines over steps, or what `x` says, with direct labels at their right ends. `rule` draws a thin
    horizontal line, `ticks` writes the numbers below the axis."""
    lines = [line for line in lines if line.steps]
    named = [line.label for line in lines if line.label]
    longest = max((len(part) for text in named for part in wrapped(text).split("\n")), default=0)
    right = 16 + 6 * longest if named else 16
    with panel(name, f"{y} against {x}", height=240, left=46, right=right) as p:
        ends = []
        for line in lines:
            last = _draw(p.ax, line)
            if line.label:
                ends.append((last, wrapped(line.label), colour(line.run)))
        if rule is not None:
            p.ax.axhline(rule, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        _y_axis(p.ax, scale)
        p.ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        p.ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: ticks(v)))
        p.ax.set_xlabel(x)
        y_name(p.ax, y)
        end_labels(p.ax, ends, gap=0.1)
    return p.svg


def _draw(ax: Axes, line: Line) -> float:
    """Draws a line; a smoothed one over its unsmoothed values, faint. Returns the value at its end."""
    c, values = colour(line.run), line.values
    if line.band:
        ax.fill_between(line.steps, *line.band, color=c, alpha=0.16, linewidth=0)
    if line.smooth > 1:
        ax.plot(*thin(line.steps, values), color=c, alpha=0.28, linewidth=0.9)
        values = smoothed(values, line.smooth)
    x, shown = thin(line.steps, values)
    marker = "o" if line.marker or len(x) == 1 else None
    ax.plot(x, shown, color=c, linestyle=STYLES[line.style], marker=marker, markersize=4)
    return values[-1]


def _y_axis(ax: Axes, scale: Scale) -> None:
    if scale == "share":
        ax.set_ylim(0, 1.02)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", ".25", ".5", ".75", "1"])
        return
    if scale == "log" and ax.get_ylim()[0] > 0:
        low, high = ax.dataLim.intervaly
        ax.set_yscale("log", base=2)
        ax.set_ylim(2 ** math.floor(math.log2(low)), 2 ** math.ceil(math.log2(high) + 0.05))
        ax.yaxis.set_major_locator(LogLocator(2, numticks=6))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        if scale in ("zero", "percent"):
            ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
    form = "{:.4g}" if scale != "percent" else "{:.3g}%"
    by = 100 if scale == "percent" else 1
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: form.format(v * by).replace("-", "−")))


def smoothed(values: list[float], width: int) -> list[float]:
    """Moving average over `width` values, fewer at both ends."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    i = np.arange(len(values))
    low, high = np.maximum(i - width // 2, 0), np.minimum(i + width // 2 + 1, len(values))
    return ((total[high] - total[low]) / (high - low)).tolist()


def thin(steps: list[float], values: list[float], most: int = 300) -> tuple[list[float], list[float]]:
    """At most `most` points: means of equal groups of neighbours; the last point is kept."""
    if len(steps) <= most:
        return list(steps), list(values)
    parts = np.array_split(np.arange(len(steps) - 1), most - 1)
    x = [float(np.mean([steps[i] for i in part])) for part in parts]
    y = [float(np.mean([values[i] for i in part])) for part in parts]
    return [*x, steps[-1]], [*y, values[-1]]
