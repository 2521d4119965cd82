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


def test_the_longest_hundredth_has_a_bin_of_its_own():
    """0 to 99 and one of 1,000: of 101 rows 99 % are up to 99, ten bins of 10."""
    found = lengths_of(np.array([*range(100), 1000]))
    assert found["bins"] == [*[[n, n + 9, 10] for n in range(0, 100, 10)], [100, 1000, 1]]


def test_equal_lengths():
    assert lengths_of(np.array([7, 7]))["bins"] == [[7, 7, 2]]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_bin(seed):
    draw = np.random.default_rng(seed)
    lengths = 1 + draw.lognormal(draw.uniform(0, 9), draw.uniform(0.01, 3), draw.integers(1, 500)).astype(int)
    bins = lengths_of(lengths)["bins"]
    assert len(bins) <= BINS + 1
    assert [n for *_, n in bins] == [int(((lengths >= a) & (lengths <= b)).sum()) for a, b, _ in bins]
    assert sum(n for *_, n in bins) == len(lengths)
    assert [a for a, *_ in bins[1:]] == [b + 1 for _, b, _ in bins[:-1]]
