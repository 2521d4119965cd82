"""`posttrain show RUN --rollouts`: completions in the terminal, grouped by prompt, the latest batch first.

Every line of a prompt or completion follows a bar, with control characters escaped, so that no text of a
model can be mistaken for output of this command. Left out: editing and searching; `--json` prints the rows
for other tools.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from posttrain.base.printable import printable
from posttrain.errors import RequestError, did_you_mean
from posttrain.report.text import both_ends
from posttrain.rundir.places import is_pipeline
from posttrain.rundir.reading import PipelineData, RunData
from posttrain.rundir.rollouts import FAILED, FILTERS, RolloutRow, Rollouts

SHOWN = 50
"""Completions shown by default."""
TEXT_SHOWN = 4000
"""Characters shown of one text."""
REASON_SHOWN = 500
"""Characters shown of what one reward component reports."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to show: a step (None: all, the latest first), a kind of completion, a source, at most `limit`."""

    step: int | None = None
    where: str = "all"
    source: str | None = None
    limit: int | None = None


def show_rollouts(path: Path, console: Console, wanted: Wanted, as_json: bool = False) -> None:
    """Prints rollouts of the run at `path`, through a pager where `console` is a terminal.

    `as_json`: the rows as they were written, one JSON object a line; all of them unless `wanted.limit` is
    set.

    Raises:
        RequestError: there is no run, it has no rollouts, or it has no such step, kind or source.
    """
    run = _run(Path(path))
    rollouts = run.rollouts
    numbers = _checked(run, rollouts, wanted)
    if as_json:
        for group in _limited(_groups(rollouts, numbers, wanted), wanted.limit):
            for c in group.shown:
                console.file.write(json.dumps(c.raw) + "\n")
        for line in run.unread:
            print(f"could not be read: {printable(line)}", file=sys.stderr)
        return
    with _paged(console):
        _print(run, rollouts, numbers, wanted, console)


def _run(path: Path) -> RunData:
    if not is_pipeline(path):
        return RunData.load(path)
    pipeline = PipelineData.load(path)
    holding = [str(run.path) for run in pipeline.runs if run.rollouts]
    which = f"name one of its runs: {', '.join(holding)}" if holding else "none of its runs has rollouts"
    raise RequestError(f"{path} is a pipeline, and --rollouts shows one run; {which}")


def _checked(run: RunData, rollouts: Rollouts, wanted: Wanted) -> list[int]:
    """Numbers of the files to read, the latest first, once `wanted` is known to fit the run."""
    if wanted.where not in FILTERS:
        raise RequestError(f"--where {wanted.where!r}: no such kind{did_you_mean(wanted.where, FILTERS)}")
    if not rollouts:
        raise RequestError(
            f"{run.path}: no rollouts (no {rollouts.folder.name}/step-*.jsonl);"
            " RLVR and sampling stages write them"
        )
    if wanted.where == "dropped" and rollouts.kind == "chunk":
        raise RequestError(
            f"--where dropped: {run.path} is a sampling stage; it does not train on its completions"
        )
    if wanted.source is not None:
        _known_source(run, rollouts, wanted.source)
    if wanted.step is None:
        return list(reversed(rollouts.files))
    number = _file_of(run, rollouts, wanted.step)
    if number is None:
        raise RequestError(
            f"--step {wanted.step}: {run.path} has no rollouts of that {rollouts.kind};"
            f" it has {_listed(list(rollouts.files))}"
        )
    return [number]


def _file_of(run: RunData, rollouts: Rollouts, step: int) -> int | None:
    """Number of the file with `step`: the recipe may train several steps on one batch."""
    number = max((n for n in rollouts.files if n <= step), default=None)
    return number if number is not None and step < number + _span(run, rollouts) else None


def _span(run: RunData, rollouts: Rollouts) -> int:
    if rollouts.kind == "chunk":
        return 1
    sections = (("rollout", "steps_per_generation"), ("policy", "num_iterations"))
    span = 1
    for section, key in sections:
        value = run.section(section).get(key)
        span *= value if isinstance(value, int) and value > 0 else 1
    return span


def _listed(numbers: list[int]) -> str:
    if len(numbers) <= 8:
        return ", ".join(map(str, numbers))
    ends = [*map(str, numbers[:4]), "…", *map(str, numbers[-2:])]
    return f"{', '.join(ends)} ({len(numbers):,} in all)"


def _known_source(run: RunData, rollouts: Rollouts, source: str) -> None:
    data = run.section("data").get("sources")
    listed = [*(data if isinstance(data, list) else []), *_mixed(run)]
    known = {str(s["name"]) for s in listed if isinstance(s, dict) and s.get("name")}
    known |= set(rollouts.sources())
    if source not in known:
        near = did_you_mean(source, known)
        raise RequestError(f"--source {source!r}: {run.path} has no such source{near}")


def _mixed(run: RunData) -> list:
    sources = run.mixture.get("sources")
    return sources if isinstance(sources, list) else []


@dataclass(slots=True)
class _Group:
    """The samples of one prompt, and which of them to show."""

    number: int
    samples: list[RolloutRow]
    shown: list[RolloutRow]


def _groups(rollouts: Rollouts, numbers: list[int], wanted: Wanted) -> Iterator[_Group]:
    fits = FILTERS[wanted.where]
    for number in numbers:
        for samples in rollouts.groups(number):
            if wanted.source is None or samples[0].source == wanted.source:
                shown = [c for c in samples if fits(c)]
                if shown:
                    yield _Group(number, samples, shown)


def _limited(groups: Iterator[_Group], limit: int | None) -> Iterator[_Group]:
    left = limit
    for group in groups:
        if left is not None:
            if left <= 0:
                return
            group.shown = group.shown[:left]
            left -= len(group.shown)
        yield group


@contextlib.contextmanager
def _paged(console: Console) -> Iterator[None]:
    """The user's pager, on a terminal. `less` gets the options that git gives it unless the user has set
    some; colours are used only if those options pass them through."""
    if not console.is_terminal:
        yield
        return
    os.environ.setdefault("LESS", "FRX")
    with console.pager(styles="R" in os.environ["LESS"]):
        yield


def _print(run: RunData, rollouts: Rollouts, numbers: list[int], wanted: Wanted, console: Console) -> None:
    kind = rollouts.kind
    held = f"{kind}s {_listed(list(rollouts.files))}"
    _say(console, Text(f"rollouts of {printable(run.name)}: {held}", style="dim"))
    limit, count = wanted.limit or SHOWN, 0
    for group in _limited(_groups(rollouts, numbers, wanted), limit):
        _header(group, kind, console)
        for c in group.shown:
            _completion(c, console)
        count += len(group.shown)
    what = "completions" if wanted.where == "all" else f"completions ({wanted.where})"
    if count >= limit:
        text = f"\nthe first {limit:,} {what}; --sample-limit N shows more, --step N another {kind}"
    else:
        text = f"\n{count:,} {what}" if count else f"\nnone: no {what} here"
    _say(console, Text(text, style="dim"))
    for line in run.unread:
        _say(console, Text(f"could not be read: {printable(line)}", style="yellow"))


def _header(group: _Group, kind: str, console: Console) -> None:
    """A summary of the group, the prompt and the reference answer."""
    first, samples = group.samples[0], group.samples
    judged = [c for c in samples if c.success is not None]
    facts = [f"{kind} {group.number}", first.place]
    facts += [f"{sum(c.success for c in judged)} of {len(judged)} right"] if judged else []
    rewards = [c.reward for c in samples if c.reward is not None]
    facts += [f"mean reward {sum(rewards) / len(rewards):.3g}"] if rewards else []
    facts += [f"refill round {first.raw['round']}"] if first.raw.get("round") else []
    hidden = len(samples) - len(group.shown)
    facts += [f"{hidden} of {len(samples)} samples not shown"] if hidden else []
    console.print()
    _say(console, Text(printable(" · ".join(f for f in facts if f)), style="bold"))
    _quoted(first.prompt, "prompt", console)
    _quoted("none" if first.answer is None else first.answer, "answer", console)


def _completion(c: RolloutRow, console: Console) -> None:
    mark, style = ("✓ right", "green") if c.success else ("✗ wrong", "red")
    if c.success is None:
        mark, style = "! check failed" if c.failed else "? not judged", "yellow"
    head = Text("  ")
    head.append(mark, style=style)
    for text in c.notes:
        head.append(f" · {printable(text)}")
    _say(console, head)
    for part in c.components:
        style = "yellow" if part.status in FAILED else "dim"
        _say(console, Text(f"      {both_ends(part.line, REASON_SHOWN)}", style=style))
    _quoted(c.text, "", console)


def _quoted(text: str, title: str, console: Console) -> None:
    """`text` with a bar before each line and `title` before the first; on a terminal, lines are wrapped."""
    edge = 11
    for i, line in enumerate(both_ends(text, TEXT_SHOWN).split("\n")):
        parts = [Text(line)]
        if console.is_terminal:
            parts = list(Text(line).wrap(console, max(console.width - edge, 20), overflow="fold"))
        for j, part in enumerate(parts or [Text()]):
            bar = Text(f"  {title if i == j == 0 else '':<7}│ ", style="dim")
            _say(console, Text.assemble(bar, part))


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)
