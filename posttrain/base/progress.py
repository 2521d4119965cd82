"""Progress on standard error: bars on a terminal, and elsewhere a line every half minute at most.

Every part of posttrain that takes long shows its progress through `ProgressBars`. Only the main process shows
anything. Left out: which tasks there are and what their notes contain; the callers decide that.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from posttrain.base.process import rank

LINE_SECONDS = 30.0
"""Least time between two lines of one task where there is no terminal."""


class ProgressBars:
    """The progress of one or several named tasks; a context manager. Methods may be called from any thread.

    Args:
        unit: what the tasks count, in the singular ("step", "row").
        main: whether this process shows anything. Default: whether it is rank 0.
        line_seconds: least time between two lines of a task without a terminal; None: only lines that `update`
            is told to print.
        elapsed: show the time spent instead of the time left.
        transient: remove the bars at the end.
        console: where to draw. Default: standard error.
    """

    def __init__(
        self,
        unit: str,
        *,
        main: bool | None = None,
        line_seconds: float | None = LINE_SECONDS,
        elapsed: bool = False,
        transient: bool = False,
        console: Console | None = None,
    ) -> None:
        self.unit, self.line_seconds = unit, line_seconds
        self.main = rank() == 0 if main is None else main
        self._console = console or Console(stderr=True)
        self.drawn = self.main and self._console.file.isatty()
        """Whether bars are drawn; otherwise lines are printed, or nothing."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn() if elapsed else TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._bars = Progress(*columns, console=self._console, transient=transient, disable=not self.drawn)
        self._ids: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> ProgressBars:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start drawing."""
        if self.drawn:
            self._bars.start()

    def close(self) -> None:
        """Stop drawing; the bars stay as they are unless they are transient."""
        if self.drawn:
            self._bars.stop()

    def add(self, name: str, total: int | None = None, done: int = 0, note: str = "") -> None:
        """A new task; `total` None: not known yet."""
        self._printed[name] = time.monotonic()
        self._ids[name] = self._bars.add_task(name, total=total, completed=done, note=note)

    def update(
        self,
        name: str,
        done: int | None = None,
        total: int | None = None,
        note: str | None = None,
        print_line: bool = False,
    ) -> None:
        """Set what is given of a task. `print_line`: without a terminal, print a line now."""
        fields = {} if note is None else {"note": note}
        self._bars.update(self._ids[name], completed=done, total=total, **fields)
        self._line(name, print_line)

    def advance(self, name: str) -> None:
        """One more unit of a task is done."""
        self._bars.advance(self._ids[name])
        self._line(name, False)

    def _line(self, name: str, now: bool) -> None:
        if self.drawn or not self.main:
            return
        since = time.monotonic() - self._printed[name]
        if not now and (self.line_seconds is None or since < self.line_seconds):
            return
        self._printed[name] = time.monotonic()
        task = self._bars.tasks[self._ids[name]]
        total = "?" if task.total is None else f"{task.total:.0f}"
        line = f"{name}: {self.unit} {task.completed:.0f}/{total}  {task.fields['note']}".rstrip()
        self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
