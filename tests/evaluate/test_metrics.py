"""pass@k, pass^k, maj@k and exact pass@N against enumeration, exact fractions and hand-worked values."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluate.metrics import log1mexp, maj_at_k, pass_all_k, pass_at_k, pass_at_n, pooled_pass_at_n


def test_pass_at_k_by_hand():
    """n = 4, k = 2: C(4,2) = 6 pairs. c = 1: C(3,2) = 3 miss, 1/2. c = 2: C(2,2) = 1 misses, 5/6."""
    np.testing.assert_allclose(pass_at_k([0, 1, 2, 3, 4], 4, 2), [0, 1 / 2, 5 / 6, 1, 1], rtol=1e-15)
    np.testing.assert_allclose(pass_all_k([0, 1, 2, 3, 4], 4, 2), [0, 0, 1 / 6, 1 / 2, 1], rtol=1e-15)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets(n):
    for k, c in itertools.product(range(1, n + 1), range(n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(c, n, k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-14)
        assert pass_all_k(c, n, k)[0] == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-14)


@pytest.mark.slow
@given(st.integers(1, 2000), st.data())
def test_pass_at_k_is_exact_for_many_samples(n, data):
    k, c = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert float(pass_at_k(c, n, k)[0]) == pytest.approx(float(exact), rel=1e-11, abs=1e-13)
    assert pass_at_k(c, n, 1)[0] == pytest.approx(c / n, abs=1e-12)


def test_problems_may_have_different_numbers_of_samples():
    together = pass_at_k([1, 1, 3], [4, 8, 8], 2)
    assert together.tolist() == [pass_at_k(1, 4, 2)[0], *pass_at_k([1, 3], 8, 2)]


@pytest.mark.parametrize(
    ("correct", "n", "k"),
    [([1], 4, 5), ([1], 4, 0), ([5], 4, 2), ([-1], 4, 2), ([0.5], 4, 2), ([1, 1], [4, 1], 2), ([True], 4, 2)],
)
def test_counts_that_cannot_be_are_refused(correct, n, k):
    """A published "64 samples" had 8: the closed form would have answered all the same."""
    for measure in (pass_at_k, pass_all_k):
        with pytest.raises(ValueError):
            measure(correct, n, k)
    with pytest.raises(ValueError):
        pass_at_k([1, 2, 3], [4, 4], 2)


def test_log1mexp_at_both_ends():
    for logp in (-1e-300, -1e-17, -1e-9, -0.1, -math.log(2), -1.0, -40.0, -700.0):
        with mpmath.workdps(400):
            exact = mpmath.log(-mpmath.expm1(logp))
        assert float(log1mexp(logp)) == pytest.approx(float(exact), rel=1e-14)
    assert log1mexp(0.0) == -np.inf
    assert log1mexp(1e-7) == -np.inf  # a rounding error above certainty
    assert log1mexp(-np.inf) == 0.0


@given(st.floats(-745, -1e-12), st.sampled_from([1, 2, 16, 256, 4096]))
def test_exact_pass_at_n(logp, n):
    with mpmath.workdps(60):
        exact = 1 - (1 - mpmath.exp(logp)) ** n if logp > -60 else n * mpmath.exp(logp)
    assert float(pass_at_n(logp, n)) == pytest.approx(float(exact), rel=1e-12)


def test_exact_pass_at_n_by_hand():
    """p = 1/2, N = 3: 1 - 1/8. p = 1 is certain, p = 0 hopeless, p = 1e-30 with 4096 attempts 4.096e-27."""
    values = pass_at_n([math.log(0.5), 0.0, -np.inf, math.log(1e-30)], 3)
    np.testing.assert_allclose(values, [7 / 8, 1, 0, 3e-30], rtol=1e-12)
    np.testing.assert_allclose(pass_at_n([-3.0, -0.1], 1), np.exp([-3.0, -0.1]), rtol=1e-14)


def test_pooled_over_checkpoints():
    """Two checkpoints, p = (1/2, 1/4), N = 4, two attempts each: 1 - (1/2)^2 (3/4)^2 = 55/64."""
    logps = np.log([[0.5, 0.1], [0.25, 0.1]])
    np.testing.assert_allclose(pooled_pass_at_n(logps, 4)[0], 55 / 64, rtol=1e-14)
    np.testing.assert_allclose(pooled_pass_at_n(logps, 4)[1], pass_at_n(np.log(0.1), 4), rtol=1e-14)


def test_maj_by_hand():
    """Answers A A B, A correct, k = 3: A wins. k = 2: AA 1 way of 3 wins, AB 2 ways tie: 1/3 + 2/3 * 1/2."""
    assert maj_at_k(2, [1], 0, 3) == 1.0
    assert maj_at_k(2, [1], 0, 2) == pytest.approx(2 / 3)
    assert maj_at_k(1, [2], 0, 3) == 0.0
    assert maj_at_k(1, [], 3, 4) == 1.0  # who abstains does not vote
    assert maj_at_k(1, [], 3, 1) == pytest.approx(1 / 4)  # and is no answer either
    assert maj_at_k(0, [1], 1, 2) == 0.0
    with pytest.raises(ValueError):
        maj_at_k(1, [1], 0, 3)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.data())
def test_maj_is_the_vote_of_every_subset(answers, data):
    """0 is the correct answer, 3 stands for no answer."""
    k = data.draw(st.integers(1, len(answers)))
    won = []
    for subset in itertools.combinations(answers, k):
        votes = Counter(a for a in subset if a != 3)
        top = [a for a in votes if votes[a] == max(votes.values())]
        won.append(Fraction(int(0 in top), max(len(top), 1)))
    counts = Counter(answers)
    got = maj_at_k(counts[0], [counts[1], counts[2]], counts[3], k)
    assert got == pytest.approx(float(sum(won) / len(won)), abs=1e-12)


@given(st.lists(st.integers(1, 12), max_size=6), st.integers(0, 12), st.integers(0, 5))
def test_maj_at_1_is_the_share_and_maj_at_n_the_plurality(wrong, correct, abstained):
    n = correct + sum(wrong) + abstained
    if n:
        assert maj_at_k(correct, wrong, abstained, 1) == pytest.approx(correct / n)
        ties = wrong.count(correct)
        expected = 0.0 if correct == 0 or max(wrong, default=0) > correct else 1 / (1 + ties)
        assert maj_at_k(correct, wrong, abstained, n) == pytest.approx(expected)
