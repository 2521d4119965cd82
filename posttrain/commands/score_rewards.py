"""Scores a file of completions with one reward: `posttrain rewards score`, `posttrain rewards check --file`.

A row is a plain JSON object with a completion and the columns of the reward. Left out: training rows, which
`data/shapes/` maps as their recipe says.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from posttrain.base.printable import printable
from posttrain.base.progress import ProgressBars
from posttrain.data import readers
from posttrain.data.shapes.prompts import reward_example
from posttrain.errors import RequestError, did_you_mean, what_is_there
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.registry import Bound, bind, failed
from posttrain.types import Example, Verdict

LOT = 256
"""Rows scored between two writes: a reader of the pipe gets verdicts while the rest is scored."""
TAIL = 2000
"""Characters of a completion that `--explain` shows: its last."""


def score_file(name: str, file: Path, options: list[str], columns: list[str], explain: bool) -> int:
    """Prints one verdict a line in the order of the rows; returns 1 if a row could not be scored, else 0.

    Raises:
        RequestError: the reward or an option is unknown, the file is broken, or a row lacks a column of the
        reward.
    """
    bound, completions, examples = open_file(name, file, options, columns)
    broken = 0
    with ProgressBars("completion", transient=True) as bars:
        bars.add(name, len(examples))
        for start in range(0, len(examples), LOT):
            lot = slice(start, start + LOT)
            verdicts = score_rows(bound, completions[lot], examples[lot], lambda: bars.advance(name))
            broken += sum(verdict.details.get("row") == "broken" for verdict in verdicts)
            for completion, example, verdict in zip(completions[lot], examples[lot], verdicts, strict=True):
                _say(completion, example, verdict, explain)
            sys.stdout.flush()
    if broken:
        print(f"error: {broken} of {len(examples)} rows cannot be scored; see their reasons", file=sys.stderr)
    return int(broken > 0)


def read_rows(
    path: Path, columns: dict[str, str] | None = None, completion: str = "completion"
) -> tuple[list[str], list[Example]]:
    """Completions and rows of a file (JSONL, JSON, CSV, Parquet, Arrow, `.gz`).

    `columns` maps the name of a reward's column to its name in the file; `completion` is the column of the
    text to score.

    Raises:
        RequestError: there is no such file, a line is broken, or a row lacks a column; with file and line.
    """
    if not path.is_file():
        there = path.parent.glob("*") if path.parent.is_dir() else ()
        raise RequestError(f"{path}: no such file{did_you_mean(path.name, [p.name for p in there])}")
    if readers.kind_of(path) is None:
        kinds = ", ".join(readers.KINDS)
        raise RequestError(f"{path}: unknown kind of file; it must be one of {kinds}, or .gz of one")
    completions, examples = [], []
    for where, row in readers.read(path):
        for name, own in (columns or {}).items():
            if own not in row:
                raise RequestError(f"{where}: no column {own!r}{what_is_there(own, row)}")
            row[name] = row[own]
        text = row.pop(completion, None)
        if not isinstance(text, str):
            near = what_is_there(completion, row) if text is None else f": {type(text).__name__}"
            raise RequestError(f"{where}: needs a column {completion!r} with text{near}")
        completions.append(text)
        examples.append(reward_example(row, where))
    return completions, examples


def score_rows(bound: Bound, completions: list[str], examples: list[Example], done: Any) -> list[Verdict]:
    """Verdicts in the order of the rows; a row whose gold answer is broken gets an `error`."""
    verdicts: list[Verdict | None] = []
    for example in examples:
        try:
            bound.check_row(example)
            verdicts.append(None)
        except RequestError as error:
            verdict = failed(str(error))
            verdict.details["row"] = "broken"
            verdicts.append(verdict)
    good = [i for i, verdict in enumerate(verdicts) if verdict is None]
    scored = score_batch(bound, [completions[i] for i in good], [examples[i] for i in good], done=done)
    for i, verdict in zip(good, scored, strict=True):
        verdicts[i] = verdict
    return verdicts


def open_file(
    name: str, file: Path, options: list[str], columns: list[str], completion: str = "completion"
) -> tuple[Bound, list[str], list[Example]]:
    """The reward and the rows, checked against each other."""
    bound = bind(name, _parsed(options))
    if lacks := bound.spec.lacks:
        raise RequestError(f"reward {name!r}: {lacks}")
    mapped = {key: str(value) for key, value in _parsed(columns).items()}
    completions, examples = read_rows(file, mapped, completion)
    for example in examples:
        bound.check_columns(example)
    return bound, completions, examples


def _say(completion: str, example: Example, verdict: Verdict, explain: bool) -> None:
    if not explain:
        print(json.dumps(asdict(verdict), default=str))
        return
    colour = {None: "yellow", 1.0: "green"}.get(verdict.value, "red")
    value = "no value" if verdict.value is None else f"{verdict.value:g}"
    told = f"{value}  {verdict.status}  {verdict.reason}  {verdict.ms:.1f} ms"
    head = Text(printable(told), style=f"bold {colour}")
    tail = completion[-TAIL:]
    if len(completion) > TAIL:
        tail = f"[... {len(completion) - TAIL:,} characters ...]\n{tail}"
    parts = [Text(printable(tail)), head]
    if example.answer is not None:
        parts.insert(1, Text(printable(f"gold: {example.answer}"), style="bold"))
    parts += [Text(printable(f"{key}: {value}"), style="dim") for key, value in verdict.details.items()]
    console = Console(highlight=False)
    console.print(Text(printable(example.where), style="dim"), soft_wrap=True)
    console.print(Panel(Group(*parts)))


def _parsed(options: list[str]) -> dict[str, Any]:
    """`key=value` words as YAML values, like overrides of a recipe."""
    found = {}
    for word in options:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise RequestError(f"{word!r}: write it as key=value")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[key] = value
    return found
