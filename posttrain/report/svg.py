"""A matplotlib panel as an inline SVG string that adopts the page's font and colours, light or dark.

Text remains text, ink becomes `currentColor`, the other colours become CSS variables with a fallback, ids are
unique to the panel, and equal numbers give equal bytes. Left out: what the panels show (`plots.py`,
`step_plots.py`).
"""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, GRID, MUTED = "#010101", "#020202", "#030303"
"""Placeholders that `inline` replaces by the page's colours."""
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#9b4f96", "#b8860b", "#5c5c5c")
"""Blue, vermilion, green, purple, ochre, grey: distinguishable with the common colour blindnesses (Okabe &
Ito)."""
LABEL_WIDTH = 16
"""Characters per line of a direct label."""
RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "posttrain",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


def colour(i: int) -> str:
    """The colour of run `i`; with more runs than colours they repeat."""
    return RUN_COLOURS[i % len(RUN_COLOURS)]


class Panel:
    """What `panel` yields: `ax` to draw on; `svg` is set when the block ends."""

    ax: Axes
    svg: str = ""


def figure(title: str, svg: str, note: str = "", run: int | None = None) -> dict[str, Any]:
    """A picture as the page's template takes it; `run`: the index of the run whose name is its title."""
    return {"title": title, "svg": Markup(svg), "note": note, "run": run}


@contextmanager
def panel(
    name: str,
    alt: str,
    width: int = 420,
    height: int = 290,
    left: int = 40,
    right: int = 16,
    bottom: int = 40,
    top: int = 22,
) -> Iterator[Panel]:
    """One axes in a figure of `width` x `height` CSS pixels, with margins in pixels.

    `name` prefixes the ids (it must be unique on the page), `alt` is the description for screen readers.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        box = (left / width, bottom / height)
        size = ((width - left - right) / width, (height - top - bottom) / height)
        result = Panel()
        result.ax = figure.add_axes((*box, *size))
        result.ax.patch.set_visible(False)
        yield result
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        result.svg = inline(buffer.getvalue(), name, alt)


def y_name(ax: Axes, text: str) -> None:
    """Writes the name of the y axis horizontally above its upper end."""
    ax.text(0, 1.03, text, transform=ax.transAxes, color=MUTED, ha="left", va="bottom")


def wrapped(label: str) -> str:
    """`label` as at most three lines of a direct label."""
    return "\n".join(textwrap.wrap(label, LABEL_WIDTH, max_lines=3, placeholder="…"))


def end_labels(ax: Axes, labels: list[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Direct labels (y, text, colour) beside the right edge, at least `gap` of the axes' height apart."""
    ax.get_ylim()  # autoscales before the transform is read
    height = (ax.transScale + ax.transLimits).transform
    places = sorted((float(height((ax.get_xlim()[1], y))[1]), text, c) for y, text, c in labels)
    heights = [min(max(y, 0.0), 1.0) for y, _, _ in places]
    lines = [text.count("\n") + 1 for _, text, _ in places]
    apart = [gap * (a + b) / 2 for a, b in itertools.pairwise(lines)]
    for i, room in enumerate(apart, 1):
        heights[i] = max(heights[i], heights[i - 1] + room)
    if heights:
        heights[-1] = min(heights[-1], 1.0)
    for i, room in reversed(list(enumerate(apart))):
        heights[i] = min(heights[i], heights[i + 1] - room)
    for y, (_, text, c) in zip(heights, places, strict=True):
        ax.text(1.02, y, text, transform=ax.transAxes, color=c, va="center", linespacing=1.05)


def inline(svg: str, name: str, alt: str) -> str:
    """matplotlib's document -> an SVG element for the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', svg))
    svg = re.sub(r"<[a-zA-Z][^>]*>", lambda tag: _tag(tag[0], name, used), svg)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert view, "matplotlib writes a viewBox"
    head = (
        f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="0 0 {view[1]} {view[2]}"'
        f' width="{view[1]}" height="{view[2]}">'
    )
    svg = head + svg[svg.index(">") + 1 :]
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _tag(tag: str, name: str, used: set[str]) -> str:
    """One tag with its ids renamed, or removed where nothing refers to them, and its colours replaced."""
    tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r"url\(#", f"url(#{name}-", tag).replace('xlink:href="#', f'href="#{name}-')
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag).replace(' transform="rotate(-0 ', ' data-r="(')
    tag = re.sub(r' data-r="[^"]*"', "", tag)
    tag = tag.replace(INK, "currentColor").replace(GRID, "var(--grid, #d8d8d8)")
    tag = tag.replace(MUTED, "var(--muted, #767676)")
    for i, value in enumerate(RUN_COLOURS):
        tag = tag.replace(value, f"var(--run{i}, {value})")
    return tag
