"""Fixtures shared by all tests, the kinds of tests, and the rule that a required kind may not skip.

`POSTTRAIN_DATA` names the folder of real data sets (default `../shared/data`). `POSTTRAIN_REQUIRE` lists
kinds (`data,slurm,sandbox,chromium`) whose absence is a failure instead of a skip.

`make fast` leaves out the tests with a marker of `KINDS`, and a run that leaves out any prints how many and
why. Some markers are set here, from the fixtures and helpers that a test uses; `slow` and `exhaustive` are
written at the test.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("POSTTRAIN_DATA", str((ROOT / ".." / "shared" / "data").resolve()))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
if not any((Path("/dev") / name).exists() for name in ("nvidia0", "kfd", "dxg")):
    # Triton decides when it is imported whether kernels are interpreted, and transformers imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

KINDS = ("exhaustive", "slurm", "ranks", "browser", "data", "interpreter", "slow", "gpu")
"""Markers of tests that `make fast` leaves out. A test with several is counted under the first."""
BY_FIXTURE = {
    "cluster": "slurm",
    "launch": "ranks",
    "chromium": "browser",
    "data_dir": "data",
    "tiled_forward": "interpreter",
}
BY_HELPER = {"run_ranks": "ranks"}
"""Functions that a test, or a fixture it uses, calls -> marker."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sets the markers that follow from what a test uses. Before `-m` selects: conftest hooks run first."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        found = {BY_FIXTURE[name] for name in item.fixturenames if name in BY_FIXTURE}
        names = {name for function in _functions(item) for name in function.__code__.co_names}
        found |= {marker for helper, marker in BY_HELPER.items() if helper in names}
        if _interpreted(item):
            found.add("interpreter")
        for marker in sorted(found):
            item.add_marker(marker)


def _functions(item: pytest.Function) -> Iterator[Callable]:
    """The test's own function and those of its fixtures."""
    yield item.function
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            function = getattr(definition.func, "__func__", definition.func)
            if hasattr(function, "__code__"):
                yield function


def _interpreted(item: pytest.Function) -> bool:
    """Whether a parameter of the test is Triton without a GPU, which is slow."""
    values = getattr(item, "callspec", None)
    return values is not None and any(
        value == "triton" or value == ("triton", "cpu") for value in values.params.values()
    )


def _left_out(config: pytest.Config) -> Counter[str]:
    return config.stash.setdefault(LEFT_OUT, Counter())


LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        kind = next((kind for kind in KINDS if item.get_closest_marker(kind)), "")
        _left_out(item.config)[kind] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under xdist only the workers collect; each has left out the same."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(_left_out(session.config))


class NamesOfFailures:
    """The name of a failed test at once: a run that is cut short has no summary."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"failed: {report.nodeid} ({report.when}, {report.duration:.0f} s)")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(NamesOfFailures(config))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, exitstatus, config: pytest.Config) -> None:
    found = config.stash.get(LEFT_OUT, Counter())
    if not found:
        return
    about = dict(line.split(": ", 1) for line in config.getini("markers") if ": " in line)
    terminalreporter.write_sep("-", f"{found.total():,} tests left out")
    for kind in (*KINDS, ""):
        if found[kind]:
            terminalreporter.write_line(
                f"{found[kind]:6,}  {kind or 'not asked for'}: {about.get(kind, '-m, -k')}"
            )


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
