from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.minimal import MINIMAL


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(MINIMAL)
    return path
