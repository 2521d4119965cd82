"""Lengths as bins: the numbers are worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.data.lengths import BINS, lengths_of


def test_one_bin_a_length_where_they_fit():
    found = lengths_of(np.array([3, 5, 5, 4, 12]))  # 12 - 3 + 1 = 10 lengths
    assert found["bins"] == [[3, 3, 1], [4, 4, 1], [5, 5, 2], *[[n, n, 0] for n in range(6, 12)], [12, 12, 1]]
    assert (found["count"], found["shortest"], found["longest"]) == (5, 3, 12)
    assert (found["median"], found["mean"]) == (5.0, 5.8)  # 29 / 5
    assert lengths_of(np.array([1, 1, 2]))["mean"] == 1.3


TENS = [[n, n + 9, 10] for n in range(0, 100, 10)]
HUNDREDS = [[n, n + 99, 0] for n in range(300, 900, 100)]
FIFTIES = [[n, n + 49, int(n == 200)] for n in range(100, 500, 50)]


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([7, 7], [[7, 7, 2]]),
        ([3, 13], [[2, 3, 1], *[[n, n + 1, 0] for n in range(4, 12, 2)], [12, 13, 1]]),  # 11 bins of 1
        ([*range(100), 1000], [*TENS, [100, 1000, 1]]),  # of 101 rows 99 % are up to 99
        # of 101 rows 99 % are up to 200, which ten bins of 20 do not reach
        ([*range(99), 200, 1000], [[0, 49, 50], [50, 99, 49], *FIFTIES, [500, 1000, 1]]),
        # half of the rows are no hundredth: 0 to 1,000 is 11 bins of 100
        (
            [5, 1000],
            [[0, 199, 1], [200, 399, 0], [400, 599, 0], [600, 799, 0], [800, 999, 0], [1000, 1199, 1]],
        ),
        ([250, 999, 1000], [[200, 299, 1], *HUNDREDS, [900, 999, 1], [1000, 1099, 1]]),
    ],
)
def test_bins(lengths, bins):
    assert lengths_of(np.array(lengths))["bins"] == bins


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_bin(seed):
    draw = np.random.default_rng(seed)
    lengths = 1 + draw.lognormal(draw.uniform(0, 9), draw.uniform(0.01, 3), draw.integers(1, 500)).astype(int)
    bins = lengths_of(lengths)["bins"]
    assert len(bins) <= BINS + 1
    assert len(bins) <= BINS or bins[-1][2] * 100 <= len(lengths), "a bin of its own has a hundredth"
    assert [n for *_, n in bins] == [int(((lengths >= a) & (lengths <= b)).sum()) for a, b, _ in bins]
    assert sum(n for *_, n in bins) == len(lengths)
    assert [a for a, *_ in bins[1:]] == [b + 1 for _, b, _ in bins[:-1]]
