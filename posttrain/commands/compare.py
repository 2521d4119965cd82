"""`posttrain compare`: which of two or more runs is better, by how much, and how sure that is.

A side is a run, or several seeds of a recipe joined by commas; then the intervals are over seeds too. Left
out: drawing, which `posttrain report` does.
"""

from __future__ import annotations

import argparse
import glob
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from rich.table import Table
from rich.text import Text

from posttrain.base.printable import printable
from posttrain.commands.arguments import add_json, console
from posttrain.errors import RequestError, did_you_mean
from posttrain.report.compare import Entrant, Pair, compared, corrected
from posttrain.report.measured import asked_differently
from posttrain.report.sides import Side, differing, seed, sides
from posttrain.report.text import share, signed, span
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.places import is_pipeline, is_run
from posttrain.rundir.reading import RunData

SEEDS = (
    "Seeds of two sides are taken as independent, also where they have the same numbers, which widens the"
    " interval where these go together."
)
COLUMNS = """\
columns:
  Holm        p after Holm's correction over all tasks and pairs, at two k of each
  detectable  the difference that about four of five repetitions would find clear
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join([COLUMNS, *wrap(SEEDS, 78)])
    parser.add_argument(
        "sides",
        nargs="+",
        metavar="SIDE",
        help="a run, a checkpoint of it (runs/a@step-000400, runs/a@best:gsm8k/pass@1), or seeds of one "
        "recipe: runs/a-0,runs/a-1 or 'runs/a-*'",
    )
    parser.add_argument("--task", action="append", default=[], help="repeatable (default: all tasks)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prints the comparison. Raises `RequestError` where the sides cannot be compared."""
    if len(options.sides) < 2:
        raise RequestError(
            "compare needs at least two sides, each a run or seeds of one recipe joined by commas"
        )
    entrants = _entrants(options.sides)
    every = list(dict.fromkeys(task for e in entrants for run in e.side.runs for task in run.tasks))
    for task in options.task:
        if task not in every:
            raise RequestError(f"--task {task}: no run was scored on it{did_you_mean(task, every)}")
    found, controls = compared(entrants, options.task)
    if not found:
        raise RequestError(_why_none(entrants, options.task or every))
    if options.json:
        every_pair = [p.to_dict() for p in found]
        print(json.dumps({"pairs": every_pair, "controls": controls, "corrected": corrected(found)}))
        return
    out = console()
    for pair in found:
        out.print(_heading(pair))
        out.print(_table(pair))
        out.print(Text(printable(pair.sentence)))
        out.print()
    for text in [*controls, corrected(found), SEEDS * any(map(_independent, found))]:
        if text:
            out.print(Text(printable(text)))


def _entrants(given: Sequence[str]) -> list[Entrant]:
    read = [_side(text) for text in given]
    labels = {
        id(run): side.label for side in sides([r for runs, _ in read for r in runs]) for run in side.runs
    }
    for i, (runs, at) in enumerate(read):
        for others, there in read[:i]:
            if _places(runs, at) & _places(others, there):
                raise RequestError(f"{runs[0].path} is on both sides; name two runs or two checkpoints")
    names = [labels[id(runs[0])] for runs, _ in read]
    places = {run.path.resolve() for runs, _ in read for run in runs}
    if len(set(names)) < len(names) or len(places) < sum(len(runs) for runs, _ in read):
        names = [text.partition(",")[0] for text in given]
    return [Entrant(Side(name, runs), at) for name, (runs, at) in zip(names, read, strict=True)]


def _places(runs: list[RunData], at: str | None) -> set[tuple[Path, str]]:
    """The checkpoint of each run; where none is chosen the last."""
    last = {run.path.resolve(): max(run.scores, key=lambda s: s.step).checkpoint for run in runs}
    return {(path, at or checkpoint) for path, checkpoint in last.items()}


def _side(text: str) -> tuple[list[RunData], str | None]:
    """The runs of a side, and the checkpoint that is named; None where the last one is meant."""
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(pieces):
        raise RequestError(
            f"{text!r}: a run is missing beside a comma; seeds of a side are joined without spaces:"
            " runs/a-0,runs/a-1"
        )
    parts = [part for piece in pieces for part in _expanded(piece)]
    runs, chosen = [], set()
    for part in parts:
        run, at = _run(part)
        runs.append(run)
        chosen.add(at)
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise RequestError(f"{text}: one run is named twice; every seed is a run of its own")
    if len(chosen) > 1:
        raise RequestError(f"{text}: the seeds of a side are compared at one checkpoint, not at several")
    for run in runs[1:]:
        if keys := differing(runs[0], run):
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise RequestError(
                f"{runs[0].path} and {run.path} are not seeds of one recipe: they differ in"
                f" {', '.join(keys[:3])}{more}"
            )
        if seed(run) in [seed(other) for other in runs if other is not run]:
            raise RequestError(f"{run.path} has the seed {seed(run)}, as another run of its side: {text}")
    return runs, chosen.pop()


def _expanded(piece: str) -> list[str]:
    """The runs that a pattern stands for, each with the checkpoint behind it."""
    place, at, choice = piece.partition("@")
    if not any(mark in place for mark in "*?[") or Path(place).exists():
        return [piece]
    found = sorted(glob.glob(str(Path(place).expanduser())))
    runs = [path + at + choice for path in found if is_run(Path(path))]  # logs lie beside
    if not runs:
        raise RequestError(f"{place}: no run matches")
    return runs


def _run(text: str) -> tuple[RunData, str | None]:
    place, _, choice = text.partition("@")
    path = Path(place).expanduser()
    if is_pipeline(path):
        raise RequestError(
            f"{path} is a pipeline or a sweep; name runs in it, or use posttrain report {path}"
        )
    run = RunData.load(path)
    names = list(dict.fromkeys(score.checkpoint for score in run.scores))
    if not names:
        why = f" that can be read ({run.unread[0]})" if run.unread else ""
        raise RequestError(f"{path}: there is no score{why}")
    if not choice:
        if run.status in ("running", "stopped", "failed"):
            raise RequestError(
                f"{path} is not finished ({run.status}): its last checkpoint is not its end; name one to"
                f" compare it all the same: {path}@{names[-1]}"
            )
        return run, None
    if choice.startswith("best:") and "/" in choice:
        task, _, metric = choice.removeprefix("best:").partition("/")
        choice = ckpt.best(path, task, metric) or ""
        if not choice:
            raise RequestError(f"{text}: {path} has no score {task}/{metric}")
    if choice not in names:
        raise RequestError(f"{text}: no scored checkpoint {choice}{did_you_mean(choice, names)}")
    return run, choice


def _why_none(entrants: list[Entrant], tasks: Sequence[str]) -> str:
    """Why nothing can be compared."""
    first, *others = [entrant.side.runs[0] for entrant in entrants]
    for task in tasks:
        for other in others:
            if (
                task in first.tasks
                and task in other.tasks
                and (text := asked_differently(first, other, task))
            ):
                what = f"other problems or settings of {task}: {text}"
                return f"{first.path} and {other.path} were scored on {what}"
    return f"{first.path} and {others[0].path} share no task with a pass@k that both were scored on"


def _independent(pair: Pair) -> bool:
    """Whether an interval is over the seeds of two sides, and not over those of one at two checkpoints."""
    a, b = ([run.path.resolve() for run in entrant.side.runs] for entrant in (pair.a, pair.b))
    return a != b and any(line.difference.over == "seeds" for line in pair.lines)


def _heading(pair: Pair) -> Text:
    text = Text(
        f"{printable(pair.task)}, {pair.problems:,} problem{'s' * (pair.problems != 1)}\n", style="bold"
    )
    for letter, entrant, at in zip("AB", (pair.a, pair.b), pair.checkpoints, strict=True):
        where = ", ".join(str(run.path) for run in entrant.side.runs)
        text.append(
            f"{letter}: {printable(entrant.side.title)}, {at} of {printable(where)}\n", style="not bold"
        )
    text.rstrip()
    return text


def _table(pair: Pair) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    heads = ("pass@", "A", "B", "B − A", "95 % interval", "p", "Holm", "detectable")
    for head in heads:
        table.add_column(head, justify="right")
    for line in pair.lines:
        d = line.difference
        cells = [f"{line.k:,}"]
        cells += [share(d.a), share(d.b), signed(d.mean)] if d.known else ["–"] * 3
        cells += [span(d).strip() or "–", _p(d.p), _p(line.adjusted), "–"]
        if d.detectable is not None:
            cells[-1] = share(d.detectable)
        table.add_row(*map(Text, cells))
    return table


def _p(value: float | None) -> str:
    return "–" if value is None else "<.001" if value < 0.001 else share(value)
