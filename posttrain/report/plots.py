"""The pictures of the report, each a function from plain numbers to an inline SVG string.

pass@N by checkpoint and across runs, the mixture, the distribution of the answer's probability, prompts by
how often they were solved. Left out: lines over steps (`step_plots.py`), where the numbers come from, and the
page.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from posttrain.report.comparison import attempts
from posttrain.report.numbers import Curve, crossovers
from posttrain.report.svg import GRID, INK, MUTED, colour, end_labels, panel, wrapped, y_name


def pass_curves(
    name: str,
    steps: dict[int, Curve],
    run: int = 0,
    pooled: dict[int, float] | None = None,
    ks: list[int] | None = None,
) -> str:
    """pass@N of one run, one line per checkpoint (faint = early, strong = last), with a band for the last
    one's interval.

    `steps` maps step -> curve; `pooled` maps N -> value, drawn dashed; `ks` sets the axis that the page
    shares.
    """
    ks = ks or sorted({k for curve in steps.values() for k in curve})
    alt = f"pass@N against N for {len(steps)} checkpoints"
    with panel(name, alt, right=84) as p:
        attempts_axis(p.ax, ks)
        order = sorted(steps)
        interval_band(p.ax, steps[order[-1]], colour(run))
        for step in order:
            _line(p.ax, steps[step], colour(run), **_rank(order, step))
        if pooled:
            x = [math.log2(n) for n in sorted(pooled)]
            y = [pooled[n] for n in sorted(pooled)]
            p.ax.plot(x, y, color=INK, linestyle=(0, (4, 2.5)), linewidth=1.4)
        _step_key(p.ax, order, colour(run), bool(pooled))
    return p.svg


def comparison(name: str, curves: list[tuple[str, Curve, int]], union: dict[int, float] | None = None) -> str:
    """The last checkpoints of several runs. `curves`: (label, curve, index of the run). `union` maps N ->
    value of all of them together, drawn dashed.

    Intervals are drawn for up to three runs, and a single crossing is marked for two: more would hide the
    lines.
    """
    ks = sorted({k for _, curve, _ in curves for k in curve})
    alt = "pass@N against N, last checkpoints of " + ", ".join(label for label, _, _ in curves)
    with panel(name, alt, right=106) as p:
        attempts_axis(p.ax, ks)
        ends = []
        for label, points, i in curves:
            if len(curves) <= 3:
                interval_band(p.ax, points, colour(i))
            _line(p.ax, points, colour(i))
            ends.append((list(points.values())[-1].value, wrapped(label), colour(i)))
        if union:
            x, y = [math.log2(n) for n in union], [*union.values()]
            p.ax.plot(x, y, color=INK, linestyle=(0, (4, 2.5)), linewidth=1.4)
            ends.append((y[-1], wrapped(f"union of the {len(curves)} runs"), INK))
        end_labels(p.ax, ends)
        if len(curves) == 2:
            crossings = crossovers(curves[0][1], curves[1][1])
            if len(crossings) == 1:
                _mark_crossing(p.ax, crossings[0], curves[0][1])
    return p.svg


def _mark_crossing(ax: Axes, n: float, points: Curve) -> None:
    x = math.log2(n)
    y = float(np.interp(x, [math.log2(k) for k in points], [s.value for s in points.values()]))
    ax.plot([x, x], [0, y], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    ax.plot([x], [y], marker="o", markersize=6, color=INK, markerfacecolor="none", markeredgewidth=1.4)
    late = x > math.log2(list(points)[-1]) * 0.6
    place = {"ha": "right", "x": x - 0.25} if late else {"ha": "left", "x": x + 0.25}
    ax.text(y=0.03, s=f"cross at N ≈ {attempts([n])}", color=INK, va="bottom", **place)


def attempts_axis(ax: Axes, ks: list[int]) -> None:
    low, high = math.log2(ks[0]), math.log2(ks[-1])
    stride = 2 if high - low > 6 else 1
    ticks = [t for t in range(math.ceil(low), math.floor(high) + 1) if (t - math.ceil(low)) % stride == 0]
    ax.set_xlim(low - 0.15 - 0.4 * (low == high), high + 0.15 + 0.4 * (low == high))
    ax.set_ylim(0, 1.02)
    ax.set_xticks(ticks, [f"{2**t:g}" for t in ticks])
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", ".25", ".5", ".75", "1"])
    ax.set_xlabel("N (attempts)")
    y_name(ax, "pass@N")


def _line(ax: Axes, points: Curve, c: str, alpha: float = 1.0, linewidth: float = 2.6) -> None:
    x = [math.log2(k) for k in points]
    marker = "o" if len(x) < 3 else None
    values = [s.value for s in points.values()]
    ax.plot(x, values, color=c, alpha=alpha, linewidth=linewidth, marker=marker, markersize=4)


def _rank(steps: list[int], step: int) -> dict[str, float]:
    """Early checkpoints faint and thin, the last one opaque and thick."""
    rank = steps.index(step) / (len(steps) - 1) if len(steps) > 1 else 1.0
    return {"alpha": 0.22 + 0.78 * rank**1.3, "linewidth": 2.6 if rank == 1.0 else 1.5}


def interval_band(ax: Axes, points: Curve, c: str) -> None:
    known = {k: s for k, s in points.items() if s.low is not None and s.high is not None}
    if known:
        x = [math.log2(k) for k in known]
        low, high = [s.low for s in known.values()], [s.high for s in known.values()]
        ax.fill_between(x, low, high, color=c, alpha=0.16, linewidth=0)


def _step_key(ax: Axes, steps: list[int], c: str, pooled: bool) -> None:
    """A legend of line samples beside the axes: at most seven steps, the last on top."""
    shown = steps if len(steps) <= 7 else [steps[round(i * (len(steps) - 1) / 5)] for i in range(6)]
    rows: list[tuple[str, dict]] = [(f"{s:,}", _rank(steps, s)) for s in reversed(shown)]
    ax.text(1.03, 0.98, "step", transform=ax.transAxes, va="center", color=MUTED)
    if pooled:
        rows.append(("pooled", {"color": INK, "linestyle": (0, (4, 2.5)), "linewidth": 1.4}))
    for i, (text, style) in enumerate(rows):
        y = 0.98 - 0.075 * (i + 1)
        ax.plot([1.03, 1.09], [y, y], transform=ax.transAxes, clip_on=False, **({"color": c} | style))
        ax.text(1.11, y, text, transform=ax.transAxes, va="center", color=INK)


def mixture_bars(name: str, sources: list[tuple[str, float | None, float | None]]) -> str:
    """Share of each source, requested (a tick) and realised (a bar). `sources`: (name, asked, realised)."""
    height = 46 + 26 * len(sources)
    longest = max((len(label[:28]) for label, _, _ in sources), default=0)
    left = 14 + round(6.3 * longest)
    with panel(name, "shares of the mixture", 560, height, left=left, right=60, bottom=24, top=18) as p:
        for i, (_, asked, realised) in enumerate(sources):
            if realised is not None:
                p.ax.barh(i, realised, height=0.5, color=colour(0), alpha=0.8)
                p.ax.text(realised + 0.012, i, f"{realised:.1%}", va="center", fontsize=10)
            if asked is not None:
                p.ax.plot([asked, asked], [i - 0.4, i + 0.4], color=INK, linewidth=2)
        p.ax.grid(False)
        p.ax.grid(True, axis="x")
        p.ax.set_ylim(len(sources) - 0.4, -0.6)
        p.ax.set_yticks(range(len(sources)), [label[:28] for label, _, _ in sources])
        top = max([v for _, a, r in sources for v in (a, r) if v is not None], default=1.0)
        p.ax.set_xlim(0, min(1.0, top * 1.08) or 1.0)
        p.ax.xaxis.set_major_locator(MaxNLocator(4))
        p.ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
        p.ax.spines["bottom"].set_visible(False)
    return p.svg


def probability_histogram(name: str, runs: list[tuple[str, np.ndarray, float | None, int]]) -> str:
    """Share of problems by the probability of their answer, log scale, bins of half a decade.

    `runs`: (label, logp [problems], N of the loss or None, index of the run). The lowest bin includes
    everything below it; 1/N, where N attempts make one success likely, is marked for each run that has an N
    above 1.
    """
    low = min(float(np.quantile(logp, 0.05)) for _, logp, _, _ in runs) / math.log(10)
    lowest = min(-3.0, math.floor(max(low, -8.0)))
    edges = np.arange(lowest, 0.25, 0.5)
    with panel(name, "distribution of the answer's probability", height=240, right=106) as p:
        ends = []
        for label, logp, n, i in runs:
            p10 = np.clip(np.asarray(logp) / math.log(10), edges[0] + 1e-9, -1e-9)
            counts = np.histogram(p10, edges)[0] / len(p10)
            p.ax.stairs(counts, edges, color=colour(i), linewidth=2, fill=False)
            if len(runs) <= 3:
                p.ax.stairs(counts, edges, color=colour(i), alpha=0.16, fill=True, linewidth=0)
            ends.append((float(counts.max()), wrapped(label), colour(i)))
            if n and n > 1:
                x = -math.log10(n)
                p.ax.axvline(x, color=colour(i), linewidth=1, linestyle=(0, (1, 2)))
                p.ax.text(x, 1.01, "1/N", transform=p.ax.get_xaxis_transform(), color=colour(i), ha="center")
        ticks = list(range(math.ceil(edges[0]), 1))
        p.ax.set_xticks(ticks, [_power(t, t == edges[0]) for t in ticks])
        p.ax.set_xlim(edges[0], 0)
        p.ax.set_ylim(bottom=0)
        p.ax.yaxis.set_major_locator(MaxNLocator(4))
        p.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
        p.ax.set_xlabel("probability of the right answer")
        y_name(p.ax, "problems")
        end_labels(p.ax, ends)
        p.ax.spines["bottom"].set_color(GRID)
    return p.svg


def _power(exponent: int, lowest: bool) -> str:
    text = {0: "1", -1: ".1", -2: ".01"}.get(exponent)
    text = text or "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"≤ {text}" if lowest else text


def success_bars(name: str, counts: list[int], run: int = 0, kept: tuple[int, int] | None = None) -> str:
    """Share of prompts by how many of their n completions were right. `counts` has n + 1 numbers.

    `kept`: bars in this range (first, last) are opaque, the others faint.
    """
    n, total = len(counts) - 1, sum(counts)
    few = n <= 16
    alt = f"share of prompts by number of right completions of {n}"
    with panel(name, alt, height=240, left=46) as p:
        low, high = kept or (0, n)
        for i, c in enumerate(counts):
            inside = low <= i <= high
            p.ax.bar(i, c / total, width=0.82, color=colour(run), alpha=0.85 if inside else 0.3)
            if few and c:
                text = f"{c / total:.0%}" if c / total >= 0.005 else "<1%"
                p.ax.text(i, c / total, text, ha="center", va="bottom", fontsize=9 if n > 8 else 10)
        p.ax.set_xlim(-0.6, n + 0.6)
        p.ax.set_ylim(0, max(counts) / total * 1.12)
        if few:  # each bar is labelled with its share: no axis
            p.ax.set_xticks(range(n + 1))
            p.ax.set_yticks([])
        else:
            p.ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            p.ax.yaxis.set_major_locator(MaxNLocator(4))
            p.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
        p.ax.set_xlabel(f"right of {n}")
        y_name(p.ax, "prompts")
    return p.svg
