"""Fixtures shared by all tests, and the rule that a required kind of test may not skip.

`POSTTRAIN_DATA` names the folder of real data sets (default `../shared/data`). `POSTTRAIN_REQUIRE` lists
kinds (`data,slurm,sandbox,chromium`) whose absence is a failure instead of a skip.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("POSTTRAIN_DATA", str((ROOT / ".." / "shared" / "data").resolve()))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def require(kind: str, present: bool, reason: str) -> None:
    """Skip with `reason` where `present` is false; fail instead if `kind` is required here."""
    if present:
        return
    if kind in os.environ.get("POSTTRAIN_REQUIRE", "").split(","):
        pytest.fail(f"{kind} is required by POSTTRAIN_REQUIRE, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets."""
    folder = Path(os.environ["POSTTRAIN_DATA"])
    require("data", (folder / "gsm8k").is_dir(), f"no data sets at {folder} (set POSTTRAIN_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Tests never read or fill the user's cache of tokenised rows."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
