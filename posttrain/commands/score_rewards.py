"""A plain row (JSON object) as the `Example` that rewards take, and files of such rows.

Left out: training rows; data/shapes/rows.py maps those by their recipe.
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

from posttrain.base.progress import ProgressBars
from posttrain.data import readers
from posttrain.data.shapes.prompts import reward_example
from posttrain.errors import RequestError, did_you_mean
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.registry import Bound, bind, failed
from posttrain.types import Example, Verdict


def read_rows(
    path: Path, columns: dict[str, str] | None = None, completion: str = "completion"
) -> tuple[list[str], list[Example]]:
    """Completions and rows of a file of rollouts (JSONL, JSON, CSV, Parquet, Arrow, `.gz`).

    `columns` maps a name that a reward asks for to the file's own; `completion` is the column of the text to judge.

    Raises:
        RequestError: no such file, a broken line, a row without the column; with file and line.
    """
    if not path.is_file():
        there = path.parent.glob("*") if path.parent.is_dir() else ()
        raise RequestError(f"{path}: no such file{did_you_mean(path.name, [p.name for p in there])}")
    if readers.kind_of(path) is None:
        kinds = ", ".join(readers.KINDS)
        raise RequestError(f"{path}: not a kind of file that is read ({kinds}, .gz)")
    completions, examples = [], []
    for where, row in readers.read(path):
        for name, own in (columns or {}).items():
            if own not in row:
                raise RequestError(f"{where}: no column {own!r}{did_you_mean(own, row)}")
            row[name] = row[own]
        text = row.pop(completion, None)
        if not isinstance(text, str):
            near = did_you_mean(completion, row) if text is None else f": {type(text).__name__}"
            raise RequestError(f"{where}: needs a column {completion!r} with text{near}")
        completions.append(text)
        examples.append(reward_example(row, where))
    return completions, examples


LOT = 256
"""Rows scored between two writes: a pipe sees verdicts while the rest is checked."""


def score_file(name: str, file: Path, options: list[str], columns: list[str], explain: bool) -> int:
    """One verdict a line on stdout, in the order of the rows; 1 where a row itself could not be judged.

    Raises:
        RequestError: unknown reward or option, a broken file, a row without a column the reward needs.
    """
    bound, completions, examples = _opened(name, file, options, columns)
    broken = 0
    with ProgressBars("completion", transient=True) as bars:
        bars.add(name, len(examples))
        for start in range(0, len(examples), LOT):
            lot = slice(start, start + LOT)
            verdicts = _score(bound, completions[lot], examples[lot], lambda: bars.advance(name))
            broken += sum(verdict.details.get("row") == "broken" for verdict in verdicts)
            for completion, example, verdict in zip(completions[lot], examples[lot], verdicts, strict=True):
                _say(completion, example, verdict, explain)
            sys.stdout.flush()
    if broken:
        print(f"error: {broken} of {len(examples)} rows cannot be judged; see their reasons", file=sys.stderr)
    return int(broken > 0)


def _score(bound: Bound, completions: list[str], examples: list[Example], done: Any) -> list[Verdict]:
    """A row whose gold answer is broken is an `error` of its own; the others are judged."""
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


def _opened(
    name: str, file: Path, options: list[str], columns: list[str], completion: str = "completion"
) -> tuple[Bound, list[str], list[Example]]:
    """The reward and the rows, once nothing is wrong with either."""
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
    head = Text(f"{value}  {verdict.status}  {verdict.reason}  {verdict.ms:.1f} ms", style=f"bold {colour}")
    tail = (
        completion
        if len(completion) <= 2000
        else f"[... {len(completion) - 2000:,} characters ...]\n{completion[-2000:]}"
    )
    parts = [Text(tail), head]
    if example.answer is not None:
        parts.insert(1, Text(f"gold: {example.answer}", style="bold"))
    parts += [Text(f"{key}: {value}", style="dim") for key, value in verdict.details.items()]
    console = Console(highlight=False)
    console.print(Text(example.where, style="dim"), soft_wrap=True)
    console.print(Panel(Group(*parts)))


def _parsed(options: list[str]) -> dict[str, Any]:
    """`k=v` words as YAML values, as on the rest of the command line."""
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
