"""Lengths of the rows of a table in tokens, as the few numbers and bars that a page or a terminal shows.

Left out: drawing them (commands/prepared_text.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10
"""Bins of equal width; one more has the longest hundredth where it does not fit into them."""


def lengths_of(lengths: np.ndarray) -> dict[str, Any]:
    """`lengths` [rows] in tokens, described: {"count", "shortest", "median", "mean", "longest", "bins"}.

    A bin is [first, last, rows] with both ends included. Bins have equal widths of 1, 2 or 5 times a power of
    ten, at most `BINS` of them, wide enough for 99 % of the rows; where rows are longer, a last bin goes up
    to the longest. There must be a row.
    """
    low, high = int(lengths.min()), int(lengths.max())
    most = int(np.percentile(lengths, 99, method="higher"))
    width = next(w for w in _widths() if most // w - low // w < BINS)
    start = low // width * width
    # as far as the longest row if there is room
    count = min(BINS, high // width - low // width + 1)
    rows = np.bincount(np.minimum((lengths - start) // width, count), minlength=count + 1)
    bins = [[start + i * width, start + (i + 1) * width - 1, int(rows[i])] for i in range(count)]
    if rows[count]:
        bins.append([start + count * width, high, int(rows[count])])
    return {
        "count": len(lengths),
        "shortest": low,
        "median": float(np.median(lengths)),
        "mean": round(float(lengths.mean()), 1),
        "longest": high,
        "bins": bins,
    }


def _widths():
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
