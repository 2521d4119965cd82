"""Progress: bars on a terminal, sparse lines without one, and nothing from other ranks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from posttrain.base import progress
from posttrain.base.progress import ProgressBars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_where_there_is_no_terminal(clock):
    out = io.StringIO()
    with ProgressBars("chunk", console=Console(file=out)) as bars:
        bars.add("a [b] :smile:", 90)
        for _ in range(75):
            clock[0] += 1
            bars.advance("a [b] :smile:")
    assert out.getvalue() == "a [b] :smile:: chunk 30/90\na [b] :smile:: chunk 60/90\n"


def test_a_line_on_request_even_if_none_is_due(clock):
    out = io.StringIO()
    with ProgressBars("step", line_seconds=None, console=Console(file=out)) as bars:
        bars.add("run", note="waiting")
        clock[0] += 1000
        bars.update("run", 2)
        assert out.getvalue() == ""
        bars.update("run", 3, note="loss 0.5", print_line=True)
        bars.update("run", 4, 9, print_line=True)
    assert out.getvalue() == "run: step 3/?  loss 0.5\nrun: step 4/9  loss 0.5\n"


def test_a_long_line_is_not_wrapped(clock):
    out = io.StringIO()
    with ProgressBars("step", console=Console(file=out, width=20)) as bars:
        bars.add("run", 5)
        bars.update("run", 1, note="x" * 100, print_line=True)
    assert out.getvalue() == f"run: step 1/5  {'x' * 100}\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_terminal_is_too_narrow_for_a_name(clock, width):
    """It is folded; the bar gives way first."""
    name, note, out = "rlvr_n-16_learning_rate-0.0003_seed-1", "failed: the disk is full", Terminal()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    with ProgressBars("step", elapsed=True, console=console) as bars:
        bars.add(name, 600, note=note)
    shown = [line.replace("\x1b[2K", "") for line in out.getvalue().splitlines()]
    rows = [line for line in shown if not line.startswith("\x1b")] or shown
    assert "…" not in out.getvalue()
    assert name in "".join(row.split(" ")[0] for row in rows), rows


def test_other_ranks_show_nothing(clock, monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    terminal = Terminal()
    with ProgressBars("row", line_seconds=0, console=Console(file=terminal)) as bars:
        bars.add("a", 1)
        bars.update("a", 1, print_line=True)
    assert not bars.drawn and terminal.getvalue() == "" and capfd.readouterr() == ("", "")


def test_bars_on_a_terminal():
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=100)
    with ProgressBars("row", console=console) as bars:
        bars.add("a [b]", 7)
        bars.update("a [b]", 3, note="half [way]", print_line=True)
    assert bars.drawn
    shown = terminal.getvalue()
    assert "a [b]" in shown and "3/7" in shown and "half [way]" in shown
