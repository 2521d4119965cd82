"""A part of the matrix of launch/README.md, one family of a kind under every engine; and what the page says.

The whole of it is made by `python -m tests.launch.matrix`.
"""

from __future__ import annotations

import pytest

from tests.launch.matrix import ALL, ENGINES, FAMILIES, KINDS, PAGE, SLICE, Key, Matrix, page_cells

RANKED = [name for name, config in ENGINES.items() if config is not None]
LESS_OFTEN = {"ZeRO-2": [pytest.mark.exhaustive]}
"""Engines whose launch the usual run leaves out: ZeRO-3 does what they do, and more."""
PARTS = {"slice": SLICE, "kinds": [key for key in ALL if key[0] in KINDS and key not in SLICE]}


@pytest.fixture(
    scope="module", params=["slice", pytest.param("kinds", marks=pytest.mark.exhaustive)], name="part"
)
def one_process(request, tmp_path_factory) -> tuple[Matrix, list[Key]]:
    """A part of the matrix, and what one process makes of it."""
    matrix, keys = Matrix(tmp_path_factory.mktemp("matrix"), {}), PARTS[request.param]
    assert matrix.cells("one process", keys) == shown("one process", keys)
    return matrix, keys


def shown(engine: str, keys: list[Key]) -> dict[Key, str]:
    """What the page says of them."""
    found = page_cells(PAGE.read_text(encoding="utf-8"))
    return {key: found[engine][key] for key in keys}


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("engine", [pytest.param(name, marks=LESS_OFTEN.get(name, [])) for name in RANKED])
def test_a_family_of_each_kind(part, engine):
    matrix, keys = part
    assert matrix.cells(engine, keys) == shown(engine, keys)


def test_the_page_has_every_kind_and_nothing_that_fails():
    found = page_cells(PAGE.read_text(encoding="utf-8"))
    assert {*found} == {*ENGINES} and len(FAMILIES) >= 20
    assert {FAMILIES[name][0] for name in KINDS} == {kind for kind, _, _ in FAMILIES.values()}
    for cells in found.values():
        assert {*cells} == {*ALL}
        assert not [said for said in cells.values() if said.startswith("fails")]
