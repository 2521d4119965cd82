"""Fixtures of this folder."""

from __future__ import annotations

import pytest

from tests.tiny import RECIPE


@pytest.fixture
def recipe(tmp_path):
    """An sft recipe file; what it names need not exist."""
    path = tmp_path / "case.yaml"
    path.write_text(RECIPE.format(out=tmp_path, model="org/model", rows="rows.jsonl"))
    return path
