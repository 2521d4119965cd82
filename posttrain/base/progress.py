"""Progress on standard error: bars on a terminal; without one, a line every half minute at most.

Training, data preparation, sampling stages, pipelines and scoring of files show their progress with
`ProgressBars`, and only in the main process.
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
from rich.table import Column

from posttrain.base.process import rank

LINE_SECONDS = 30.0
"""Minimum time between two lines of a task if there is no terminal."""


class ProgressBars:
    """Progress of one or more named tasks; a context manager. Methods may be called from any thread.

    Args:
        unit: what the tasks count, in the singular ("step", "row").
        main: whether this process shows anything. Default: whether it is rank 0.
        line_seconds: minimum time between two lines of a task without a terminal. None: only lines that are
            requested with `print_line`.
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
        """Whether bars are drawn, rather than lines or nothing."""
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
            BarColumn(None, table_column=Column(max_width=40)),  # the bar gives way to names, not they to it
            MofNCompleteColumn(),
            TimeElapsedColumn() if elapsed else TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(overflow="fold")),
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
        """Stop drawing. The bars stay on the screen unless they are transient."""
        if self.drawn:
            self._bars.stop()

    def add(self, name: str, total: int | None = None, done: int = 0, note: str = "") -> None:
        """Add a task. `total` is None if it is not known yet."""
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
        """Change what is given. `print_line`: without a terminal, print a line now in any case."""
        fields = {} if note is None else {"note": note}
        self._bars.update(self._ids[name], completed=done, total=total, **fields)
        self._line(name, print_line)

    def advance(self, name: str) -> None:
        """Count one more unit of a task as done."""
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
