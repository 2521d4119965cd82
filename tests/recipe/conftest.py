"""Recipe files whose model and rows need not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.minimal import MINIMAL
from tests.tiny import RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The smallest sft recipe, of a model with random weights."""
    path = tmp_path / "small.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """An sft recipe that starts from a model, and so may have an adapter."""
    path = tmp_path / "case.yaml"
    path.write_text(RECIPE.format(out=tmp_path, model="org/model", rows="rows.jsonl"))
    return path
