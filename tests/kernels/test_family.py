"""The family against the specification's tables, 50-digit arithmetic and its own inequalities."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_kernels import family

mpmath.mp.dps = 50
TINY = 1.1754944e-38  # smallest normal fp32

# (log p, N): (L, dL/dlog p). None: below the fp32 normal range, where 0 or a denormal is right.
TABLE = {
    -1e-3: {4: (9.98002165e-13, -3.990012988e-9), 16: None, 64: None, 256: None, 4096: None},
    -0.1: {
        4: (8.201299579e-5, -0.003119355063),
        16: (4.523342466e-17, -6.881510667e-15),
        64: None,
        256: None,
        4096: None,
    },
    -1.0: {
        4: (0.1739502543, -0.4422938403),
        16: (6.500395674e-4, -0.006054893935),
        64: (1.783177534e-13, -6.641713849e-12),
        256: None,
        4096: None,
    },
    -10.0: {
        4: (8.613773739, -0.9999318996),
        16: (7.227751763, -0.9996595289),
        64: (5.842546695, -0.9985705407),
        256: (4.460605549, -0.9942225034),
        4096: (1.773751799, -0.9099196615),
    },
    -100.0: {
        4: (98.61370564, -1),
        16: (97.22741128, -1),
        64: (95.84111692, -1),
        256: (94.45482256, -1),
        4096: (91.68223383, -1),
    },
    -1000.0: {
        4: (998.6137056, -1),
        16: (997.2274113, -1),
        64: (995.8411169, -1),
        256: (994.4548226, -1),
        4096: (991.6822338, -1),
    },
}
AT_MINUS_LOG_N = {
    4: (0.3803914706, -0.6171428571),
    16: (0.4401716689, -0.5898387125),
    64: (0.4541090587, -0.5838930594),
    256: (0.4575372661, -0.5824528385),
    4096: (0.4586040986, -0.5820064079),
}
ROWS = [(lp, n, want) for lp, row in TABLE.items() for n, want in row.items()]
ROWS += [(-math.log(n), n, want) for n, want in AT_MINUS_LOG_N.items()]


def at(logp, n=1.0, member="confidence", exponent=None, dtype=torch.float32):
    value, weight = family.value_and_weight(torch.tensor(logp, dtype=dtype), n, member, exponent)
    return value.item(), weight.item()


@pytest.mark.parametrize("logp,n,want", ROWS)
@pytest.mark.parametrize("dtype,rel", [(torch.float32, 2e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_table_of_the_specification(logp, n, want, dtype, rel, as_tensor):
    given_n = torch.tensor(float(n)) if as_tensor else n
    value, weight = at(logp, given_n, dtype=dtype)
    if want is None:
        assert 0 <= value <= TINY and 0 <= weight <= TINY
    else:
        assert value == pytest.approx(want[0], rel=rel)
        assert -weight == pytest.approx(want[1], rel=rel)


@pytest.mark.parametrize(
    "member,exponent,weights",
    [
        ("dft", None, (0.9990005, 0.90483742, 0.36787944, 4.539993e-5)),
        ("focal", 2, (2.9960029e-6, 0.02627725, 0.86466472, 1.0008172)),
        ("maxrl", 16, (1, 1, 0.99935017, 7.2615159e-4)),
    ],
)
def test_weights_of_the_other_members(member, exponent, weights):
    for logp, want in zip((-1e-3, -0.1, -1.0, -10.0), weights, strict=True):
        # fp32 keeps 1 - p at p = .999 to 6e-5 of itself when it goes through log p = -1e-3
        assert at(logp, member=member, exponent=exponent)[1] == pytest.approx(want, rel=1e-5)


def exact_confidence(logp, n):
    p = mpmath.e ** mpmath.mpf(logp)
    q = (1 - p) ** n
    return -mpmath.log(1 - q), n * (1 - p) ** (n - 1) * p / (1 - q)


@pytest.mark.slow
def test_fp32_against_fifty_digits():
    """N = 2 .. 1e6, log p = -1e-8 .. -1e4: relative error at most 2e-5 outside denormals.
    p = 1e-4343 in 1 - (1 - p)^N needs more than 50 digits on the exact side: 50 beyond its size."""
    logps = [-(10 ** (k / 6)) for k in range(-48, 25)]
    ns = [2, 3, 4, 7, 16, 64, 100, 256, 1000, 4096, 65536, 10**6]
    logp = torch.tensor(logps, dtype=torch.float32)
    worst = 0.0
    for n in ns:
        values, weights = family.value_and_weight(logp, float(n))
        for x, value, weight in zip(logp.tolist(), values.tolist(), weights.tolist(), strict=True):
            with mpmath.workdps(50 + int(-x)):
                wants = exact_confidence(x, n)
            for got, want in ((value, wants[0]), (weight, wants[1])):
                if want < TINY:
                    assert 0 <= got <= 1.01 * TINY
                else:
                    worst = max(worst, float(abs(got - want) / want))
    assert worst <= 2e-5, worst


def exact_member(member, logp, e):
    p, x = mpmath.e ** mpmath.mpf(logp), mpmath.mpf(logp)
    q = 1 - p
    return {
        "dft": lambda: (q, p),
        "power": lambda: ((1 - p**e) / e, p**e),
        "focal": lambda: (-(q**e) * x, q**e - e * p * q ** (e - 1) * x),
        "maxrl": lambda: (mpmath.fsum(q**k / k for k in range(1, e + 1)), 1 - q**e),
    }[member]()


@pytest.mark.parametrize(
    "member,exponent",
    [
        ("dft", None),
        ("power", 0.5),
        ("power", 2.0),
        ("focal", 0.5),
        ("focal", 2),
        ("maxrl", 1),
        ("maxrl", 16),
        ("maxrl", 300),
    ],
)
def test_other_members_against_fifty_digits(member, exponent):
    logp = torch.tensor([-(10 ** (k / 3)) for k in range(-24, 6)], dtype=torch.float32)
    values, weights = family.value_and_weight(logp, 1.0, member, exponent)
    for x, value, weight in zip(logp.tolist(), values.tolist(), weights.tolist(), strict=True):
        want_value, want_weight = exact_member(member, x, exponent)
        assert value == pytest.approx(float(want_value), rel=2e-5, abs=TINY)
        assert weight == pytest.approx(float(want_weight), rel=2e-5, abs=TINY)


def test_n_of_one_is_cross_entropy_bit_for_bit():
    logp = -torch.logspace(-8, 4, 200)
    mixed = torch.tensor([1.0, 256.0]).repeat(100)
    for n in (1, 1.0, torch.ones(200)):
        value, weight = family.value_and_weight(logp, n)
        assert torch.equal(value, -logp) and torch.equal(weight, torch.ones(200))
    value, weight = family.value_and_weight(logp, mixed)
    assert torch.equal(value[::2], -logp[::2]) and bool((weight[::2] == 1).all())
    both = family.value_and_weight(logp[1::2], 256.0)
    torch.testing.assert_close(value[1::2], both[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(weight[1::2], both[1], rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("n", [2.0, 256.0, torch.tensor([256.0]), torch.tensor([1.0, 4.0])])
def test_certain_and_impossible_segments(n):
    """log p = 0: L = 0 and F = 0 for N > 1 (F = 1 for N = 1). log p = -inf: L = inf, F = 1."""
    shape = n.shape if isinstance(n, torch.Tensor) else (1,)
    plain = torch.as_tensor(n) == 1
    value, weight = family.value_and_weight(torch.zeros(shape), n)
    assert torch.equal(value, torch.zeros(shape))
    assert torch.equal(weight, plain.float().expand(shape))
    value, weight = family.value_and_weight(torch.full(shape, -math.inf), n)
    assert torch.equal(value, torch.full(shape, math.inf))
    assert torch.equal(weight, torch.ones(shape))


@pytest.mark.parametrize(
    "member,exponent,certain,impossible",
    [
        ("cross_entropy", None, (0, 1), (math.inf, 1)),
        ("dft", None, (0, 1), (1, 0)),
        ("power", 0.5, (0, 1), (2, 0)),  # (1 - p^a) / a -> 1 / a
        ("focal", 0, (0, 1), (math.inf, 1)),
        ("focal", 0.5, (0, 0), (math.inf, 1)),
        ("focal", 1, (0, 0), (math.inf, 1)),
        ("focal", 2, (0, 0), (math.inf, 1)),
        ("maxrl", 3, (0, 1), (1 + 1 / 2 + 1 / 3, 0)),
    ],
)
def test_limits_of_the_other_members(member, exponent, certain, impossible):
    assert at(0.0, 1.0, member, exponent) == pytest.approx(certain)
    assert at(-math.inf, 1.0, member, exponent) == pytest.approx(impossible)


@pytest.mark.parametrize("member,exponent", [("confidence", None), ("focal", 0.5), ("maxrl", 3)])
def test_rounding_above_zero_counts_as_zero(member, exponent):
    assert at(1e-7, 4.0, member, exponent) == at(0.0, 4.0, member, exponent)


def test_nan_stays_nan():
    for member, exponent in [("confidence", None), ("dft", None), ("focal", 2), ("maxrl", 3)]:
        value, weight = at(math.nan, 8.0, member, exponent)
        assert math.isnan(value) and math.isnan(weight)


logps = st.floats(min_value=-1e4, max_value=-1e-8)
ns = st.floats(min_value=2, max_value=1e6)
SLACK = 1e-9  # fp64, series branch


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(logps, ns)
def test_bounds(logp, n):
    """0 <= F <= 1; max(0, -log p - log N) <= L <= -log p; 1 - F <= (N - 1) p."""
    value, weight = at(logp, n, dtype=torch.float64)
    assert 0 <= weight <= 1 + SLACK
    assert max(0, -logp - math.log(n)) - SLACK <= value <= -logp * (1 + SLACK)
    assert 1 - weight <= (n - 1) * math.exp(logp) + SLACK


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(logps, ns, st.floats(min_value=1.01, max_value=100))
def test_more_samples_need_less(logp, n, factor):
    """L and F fall as N grows."""
    value, weight = at(logp, n, dtype=torch.float64)
    more_value, more_weight = at(logp, n * factor, dtype=torch.float64)
    assert more_value <= value + SLACK and more_weight <= weight + SLACK


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(logps, ns, st.floats(min_value=1.01, max_value=100))
def test_confidence_lowers_the_weight(logp, n, factor):
    """F falls as p grows; so does L."""
    value, weight = at(logp, n, dtype=torch.float64)
    surer_value, surer_weight = at(logp / factor, n, dtype=torch.float64)
    assert surer_value <= value + SLACK and surer_weight <= weight + SLACK


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.floats(min_value=-12, max_value=-0.05), st.floats(min_value=2, max_value=1e4))
def test_derivatives(logp, n):
    """dL/dlogp = -F and d2L/dlogp2 = F (F - 1 + (N-1) p/(1-p)), by central differences."""
    h = 1e-4
    (low, f_low), (_, f), (high, f_high) = (at(logp + d, n, dtype=torch.float64) for d in (-h, 0, h))
    assert (high - low) / (2 * h) == pytest.approx(-f, rel=1e-4, abs=1e-6)
    p = math.exp(logp)
    curve = f * (f - 1 + (n - 1) * p / (1 - p))
    assert -(f_high - f_low) / (2 * h) == pytest.approx(curve, rel=1e-3, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(min_value=-12, max_value=-0.05),
    st.sampled_from([("dft", None), ("power", 0.3), ("focal", 2), ("focal", 0.7), ("maxrl", 5)]),
)
def test_the_weight_is_minus_the_slope_of_the_value(logp, member):
    h = 1e-5
    (low, _), (_, f), (high, _) = (at(logp + d, 1.0, *member, dtype=torch.float64) for d in (-h, 0, h))
    assert (high - low) / (2 * h) == pytest.approx(-f, rel=1e-5, abs=1e-8)
