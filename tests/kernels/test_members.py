"""Every member of the family on every back-end, and what happens to one that the Triton kernel does not know.

The members come from `family.MEMBERS`, so a new one is tested here without a change. Left out: the formulas
against 50 digits (`test_family`), and the compilation of an unknown member for a GPU (`test_compiled`).
"""

import pytest
import torch

from posttrain_kernels import confidence_limited, family, segments, segments_triton
from posttrain_kernels.spec import Spec
from tests.kernels.problems import confident, random_problem

HALVED = "halved"


def exponent_of(member: str) -> float | None:
    return 2 if member in family.EXPONENTS else None


@pytest.fixture
def halved(monkeypatch):
    """A member added to `family` alone: half of cross-entropy."""
    formula = {HALVED: lambda logp, n, exponent: (-logp / 2, torch.full_like(logp, 0.5))}
    monkeypatch.setattr(family, "FORMULAS", family.FORMULAS | formula)
    monkeypatch.setattr(family, "MEMBERS", (*family.MEMBERS, HALVED))


@pytest.fixture
def problem():
    return confident(random_problem(23))


@pytest.mark.parametrize("member", family.MEMBERS)
def test_every_member_equals_the_reference(place, solve, same, problem, member):
    options = {"member": member, "exponent": exponent_of(member), "n": 8.0}
    want = solve(problem, backend="reference", **options)
    assert want.output.loss > 0.01 and want.d_hidden.norm() > 1e-3 and want.d_weight.norm() > 1e-3
    same(place.solve(problem.to(torch.float32), **options), want, 2e-5)


def test_the_reference_and_torch_follow_the_family_alone(solve, same, problem, halved):
    want = solve(problem, backend="reference", member=HALVED)
    full = solve(problem, backend="reference", member="cross_entropy")
    torch.testing.assert_close(want.output.coef * 2, full.output.coef)
    same(solve(problem, backend="torch", member=HALVED), want, 1e-9)


def test_a_member_without_a_kernel_is_refused(triton_place, problem, halved):
    message = (
        "^member: 'halved' has no Triton kernel; "
        "those of confidence, cross_entropy, dft, power, focal, maxrl have one. "
        'Use backend="torch", or add a branch to segments_triton.py$'
    )
    with pytest.raises(ValueError, match=message):
        triton_place.solve(problem.to(torch.float32), member=HALVED)


def test_a_member_without_a_branch_is_not_computed(triton_place, monkeypatch):
    """Also where its name is in the list: the kernel itself knows what it computes."""
    monkeypatch.setattr(segments_triton, "MEMBERS", (*segments_triton.MEMBERS, HALVED))
    ids = torch.ones(2, dtype=torch.int64, device=triton_place.device)
    tables = segments_triton.Segments(ids, Spec(member=HALVED, num_segments=1), torch.float32)
    with pytest.raises(Exception, match="MEMBER has no branch in segments_triton._value_and_weight"):
        tables.close(1, 1, ids, torch.full((2,), -1.0, device=triton_place.device))


def test_an_unknown_member_is_refused_everywhere():
    ids = torch.ones(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="member: 'halved' is not one of confidence, .*, maxrl"):
        confidence_limited(torch.zeros(2, 3), torch.zeros(4, 3), ids, ids, member=HALVED)
    tables = segments.Segments(ids, Spec(member=HALVED, num_segments=1), torch.float32)
    with pytest.raises(ValueError, match="member: 'halved' is not one of confidence, .*, maxrl"):
        tables.close(1, 1, ids, torch.full((2,), -1.0))


def test_triton_has_every_member():
    assert segments_triton.MEMBERS == family.MEMBERS
