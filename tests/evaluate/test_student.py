"""Student's t with scipy as the judge."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluate.student import t_quantile, t_tail


def test_by_hand():
    """df 1: tan(pi (q - 1/2)), tail 1/2 - atan(t) / pi. df 2: t = p sqrt(2 / (1 - p^2)), p = 2q - 1."""
    assert t_quantile(0.975, 1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_tail(3.0, 1) == pytest.approx(0.5 - math.atan(3.0) / math.pi, rel=1e-12)
    assert t_quantile(0.9, 2) == pytest.approx(0.8 * math.sqrt(2 / (1 - 0.64)), rel=1e-12)
    assert t_quantile(0.975, math.inf) == pytest.approx(1.959963985, abs=1e-9)
    assert t_tail(0.0, 4.5) == 0.5 and t_quantile(0.5, 4.5) == 0.0


@pytest.mark.parametrize("df", [0.3, 1, 1.5, 2, 2.7, 3, 9.3, 29, 99.5, 1318, 99_999, 1e6, 1e7, math.inf])
def test_as_scipy(df):
    t = pytest.importorskip("scipy.stats", reason="scipy judges the quantiles").t
    for q in (0.025, 0.6, 0.8, 0.95, 0.975, 0.995, 0.9999):
        assert t_quantile(q, df) == pytest.approx(t.ppf(q, df), rel=1e-6 if df > 1e4 else 1e-10), q
    for x in (-1.5, 0.1, 1.0, 2.0, 5.0, 20.0):
        assert t_tail(x, df) == pytest.approx(t.sf(x, df), rel=1e-4 if df > 1e4 else 1e-9), x


@given(st.floats(0.5, 1e4), st.floats(1e-6, 1 - 1e-6))
def test_the_tail_undoes_the_quantile(df, q):
    assert t_tail(t_quantile(q, df), df) == pytest.approx(1 - q, rel=1e-7)


@pytest.mark.parametrize(("q", "df"), [(0.0, 3), (1.0, 3), (0.5, 0.0), (0.5, -1), (0.5, math.nan)])
def test_what_has_no_quantile_is_refused(q, df):
    with pytest.raises(ValueError):
        t_quantile(q, df)
