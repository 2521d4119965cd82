"""The segment kernel against `segments` and `family`, on log p from -1e-8 to -1e4, 0, -inf and NaN.

Left out: rows of logits; the tables are what `chunked` makes of them.
"""

import itertools
import math

import pytest
import torch

from posttrain_kernels import segments, segments_triton
from posttrain_kernels.family import value_and_weight
from posttrain_kernels.spec import REDUCTIONS, Spec
from tests.kernels.test_family import AT_MINUS_LOG_N, TABLE, TINY

GRID = [-(10 ** (k / 3)) for k in range(-24, 13)] + [0.0, 1e-7, -math.inf, math.nan]
MEMBERS = [
    ("confidence", None),
    ("cross_entropy", None),
    ("dft", None),
    ("power", 0.5),
    ("power", 2.0),
    ("focal", 0.0),
    ("focal", 0.5),
    ("focal", 1.0),
    ("focal", 2.0),
    ("maxrl", 1),
    ("maxrl", 16),
]


@pytest.fixture
def device(triton_place) -> str:
    return triton_place.device


def closed(kind, device, logps, spec, groups=1, lengths=None):
    """Tables after closing segments 1..S, one row each, in `groups` calls. `lengths` [S] are said to
    be the numbers of rows where they matter."""
    ids = torch.arange(len(logps), device=device) + 1
    tables = kind(ids, spec, torch.float32)
    if lengths is not None:
        tables.lengths[1:] = torch.tensor(lengths)
    values = torch.tensor(logps, device=device)
    for part in torch.arange(len(logps)).chunk(groups):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        tables.close(rows.start + 1, rows.stop, ids[rows], values[rows])
    return tables


def agree(ours, theirs, rel):
    for name in ("sums", "value", "scale", "coef"):
        a, b = getattr(ours, name).double().cpu(), getattr(theirs, name).double().cpu()
        torch.testing.assert_close(
            a, b, rtol=rel, atol=TINY, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("member,exponent", MEMBERS)
def test_every_member_over_the_grid(device, member, exponent):
    grid = GRID[:-1] if (member, exponent) == ("focal", 0.0) else GRID  # F = 1 needs no log p
    spec = Spec(n=64.0, member=member, exponent=exponent, num_segments=len(grid))
    ours = closed(segments_triton.Segments, device, grid, spec)
    agree(ours, closed(segments.Segments, "cpu", grid, spec), 2e-5)
    exact = value_and_weight(torch.tensor(grid).double(), 64.0, member, exponent)
    for got, want in zip((ours.value[1:], ours.coef), exact, strict=True):
        want = torch.where(want.abs() < TINY, 0.0, want)
        torch.testing.assert_close(got.double().cpu(), want, rtol=3e-5, atol=1.1 * TINY, equal_nan=True)


def test_table_of_the_specification(device):
    """L and F of LOSS_SPEC for every N at once: N is a table."""
    rows = [(x, n, w) for x, row in TABLE.items() for n, w in row.items()]
    rows += [(-math.log(n), n, w) for n, w in AT_MINUS_LOG_N.items()]
    n = torch.tensor([float(n) for _, n, _ in rows], device=device)
    tables = closed(
        segments_triton.Segments, device, [x for x, _, _ in rows], Spec(n=n, num_segments=len(rows))
    )
    for (_, _, want), value, weight in zip(
        rows, tables.value[1:].tolist(), tables.coef.tolist(), strict=True
    ):
        if want is None:
            assert 0 <= value <= TINY and 0 <= weight <= TINY
        else:
            assert value == pytest.approx(want[0], rel=2e-5)
            assert -weight == pytest.approx(want[1], rel=2e-5)


@pytest.mark.parametrize("n", [2.0, 1000.0, 65536.0, 1e6])
def test_confidence_for_other_n(device, n):
    spec = Spec(n=n, num_segments=len(GRID))
    agree(
        closed(segments_triton.Segments, device, GRID, spec),
        closed(segments.Segments, "cpu", GRID, spec),
        2e-5,
    )


def tables_of(size, device):
    gen = torch.Generator().manual_seed(2)
    p = torch.rand(size, generator=gen)
    p[0], p[1] = 0, 1
    weights = torch.randn(size, generator=gen)
    weights[[0, 2]] = 0
    n = torch.tensor([1.0, 2.0, 64.0]).repeat(size)[:size]
    return {"p": p.to(device), "segment_weights": weights.to(device), "n": n.to(device)}


# On small integers and powers of two the gates meet their thresholds exactly.
GATES = {"none": {}, "p": {"p_threshold": 0.5}, "F": {"weight_threshold": 0.25}}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("value", ["exact", "surrogate"])
def test_gates_weights_lengths_and_tables(device, gate, value):
    logps = [-math.inf, -1.0, 0.0, -0.25, -math.log(2), -3.0, -40.0, math.nan]
    for reduction, weighted, n_table in itertools.product(REDUCTIONS[::3], (0, 1), (0, 1)):
        made = []
        for kind, where in ((segments_triton.Segments, device), (segments.Segments, "cpu")):
            given = tables_of(len(logps), where)
            options = {"n": given["n"] if n_table else 4.0}
            if value == "surrogate":
                options["p"] = given["p"]
            if weighted:
                options["segment_weights"] = given["segment_weights"]
            spec = Spec(value=value, reduction=reduction, num_segments=len(logps), **options, **GATES[gate])
            made.append(closed(kind, where, logps, spec, 2, lengths=[1, 2, 3, 4, 5, 0, 7, 8]))
        agree(*made, 2e-5)
        assert made[0].coef[5] == 0 and (made[1].scale[1:].abs() > 0).sum() >= 2


def test_gates_are_strict(device):
    """p = 1/2 and F = p = 1/2 (dft) sit on the thresholds: closed. One step beyond: open."""
    p = torch.tensor([0.5, 0.5 - 2**-25, 0.5 + 2**-24], device=device)
    for gate, want in (("p_threshold", [0, 1, 0]), ("weight_threshold", [0, 0, 1])):
        spec = Spec(member="dft", value="surrogate", p=p, num_segments=3, **{gate: 0.5})
        tables = closed(segments_triton.Segments, device, [-1.0, -1.0, -1.0], spec)
        assert (tables.coef > 0).int().tolist() == want, gate


def test_sums_are_fp64_and_in_order(device):
    """3000 rows (three steps of a program) of two interleaved segments and of none; a chain of small
    numbers after a large one, which fp32 would lose."""
    ids = torch.arange(3000) % 3
    log_probs = torch.full((3000,), -1e-4)
    log_probs[:3] = -5000.0
    spec = Spec(n=4.0, num_segments=2)
    tables = segments_triton.Segments(ids.to(device), spec, torch.float32)
    for rows in (slice(0, 1700), slice(1700, 3000)):  # an id that is open is filled again
        tables.close(1, 2, ids[rows].to(device), log_probs[rows].to(device))
    want = -5000 - 999 * float(torch.tensor(1e-4))
    assert tables.sums.tolist() == pytest.approx([want] * 3, rel=1e-12)
    theirs = segments.Segments(ids, spec, torch.float32)
    theirs.close(1, 2, ids, log_probs)
    agree(tables, theirs, 1e-6)
    assert tables.lengths.tolist() == [1000] * 3
    assert tables.loss().item() == pytest.approx(theirs.loss().item(), rel=1e-6)


def test_only_the_range_is_touched(device):
    """Closing id 2 of 3, and a group of rows outside every segment: the others stay as they were."""
    ids = torch.tensor([1, 2, 3, 0], device=device)
    tables = segments_triton.Segments(ids, Spec(n=4.0, num_segments=3), torch.float32)
    tables.close(2, 2, ids[1:2], torch.tensor([-1.0], device=device))
    tables.close(1, 0, ids[3:], torch.tensor([-2.0], device=device))
    assert tables.sums.tolist() == [-2, 0, -1, 0]
    assert (tables.coef > 0).tolist() == [False, True, False]
    assert tables.scale.tolist()[0] == 1


def test_one_variant_for_all_groups():
    """Groups differ in rows, first id and alignment; none of that may compile the kernel again."""
    kernel = segments_triton.close_segments
    if not hasattr(kernel, "params"):  # the interpreter's stand-in keeps only the options it was given
        asked = kernel.kwargs
        assert set(asked["do_not_specialize"]) >= {"rows", "low", "terms"}
        assert set(asked["do_not_specialize_on_alignment"]) >= {"ids_ptr", "log_p_ptr"}
        return
    free = {p.name for p in kernel.params if p.do_not_specialize}
    assert free >= {"rows", "low", "terms"}
