"""A part of the matrix of launch/README.md, one family of a kind under every engine; and what the page says.

The whole of it is made by `python -m tests.launch.matrix`.
"""

from __future__ import annotations

import pytest

from tests.launch.matrix import ENGINES, FAMILIES, PAGE, SLICE, STAGES, Matrix, page_cells


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Matrix:
    matrix = Matrix(tmp_path_factory.mktemp("matrix"), {})
    alone = matrix.cells("one process", SLICE)
    assert alone == shown("one process")
    return matrix


def shown(engine: str) -> dict[tuple[str, str], str]:
    """The cells of `SLICE` on the page."""
    found = page_cells(PAGE.read_text(encoding="utf-8"))
    return {(family, stage): found[engine][family, stage] for family in SLICE for stage in STAGES}


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("engine", [name for name, config in ENGINES.items() if config is not None])
def test_a_family_of_each_kind(matrix, engine):
    assert matrix.cells(engine, SLICE) == shown(engine)


def test_the_page_has_every_kind_and_nothing_that_fails():
    found = page_cells(PAGE.read_text(encoding="utf-8"))
    assert {*found} == {*ENGINES} and len(FAMILIES) >= 20
    assert {FAMILIES[name][0] for name in SLICE} == {kind for kind, _, _ in FAMILIES.values()}
    for cells in found.values():
        assert {*cells} == {(family, stage) for family in FAMILIES for stage in STAGES}
        assert not [said for said in cells.values() if said.startswith("fails")]
