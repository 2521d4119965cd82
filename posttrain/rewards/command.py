"""`posttrain rewards list | check | score`: what there is, whether it holds, and what it says of your rollouts."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from posttrain.errors import RequestError, WorkError
from posttrain.rewards import load_all
from posttrain.rewards.batch import score_batch
from posttrain.rewards.conformance import Conformance, conformance, corpus_of, read_corpus
from posttrain.rewards.registry import Bound, Spec, bind, failed, find
from posttrain.rewards.rows import read_rows
from posttrain.types import Example, Verdict

LOT = 256
"""Rows scored between two writes: a pipe sees verdicts while the rest is checked."""
SHOWN = 20
"""Surprises printed a reward."""


def list_rewards(console: Console, as_json: bool) -> None:
    """Every registered reward with its columns, options and first line."""
    specs = [find(name) for name in load_all()]
    if as_json:
        facts = [
            {"name": s.name, "about": s.about, "columns": s.columns, "options": _options(s), "shaping": s.shaping,
             "runs": s.runs} for s in specs
        ]  # fmt: skip
        print(json.dumps(facts))
        return
    table = Table("reward", "columns", "options", "what it judges", show_lines=True)
    for spec in specs:
        options = [f"{name}: {o['type']} = {o['default']}" for name, o in _options(spec).items()]
        about = f"{spec.about} (shaping)" if spec.shaping else spec.about
        cells = (spec.name, ", ".join(spec.columns), "\n".join(options), about)
        table.add_row(*map(Text, cells))
    console.print(table)


def _options(spec: Spec) -> dict[str, dict[str, Any]]:
    hints = typing.get_type_hints(spec.fn)
    found = {}
    for f in dataclasses.fields(spec.options):
        required = f.default_factory is dataclasses.MISSING
        found[f.name] = {
            "type": _type(hints.get(f.name)),
            "default": "required" if required else f.default_factory(),
        }
    return found


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def check_rewards(names: list[str], console: Console, as_json: bool, markdown: bool) -> None:
    """Conformance of the named rewards, or of all. Raises `WorkError` where one does not hold."""
    specs = [find(name) for name in names] or [find(name) for name in load_all()]
    found = []
    with _bar() as bar:
        for spec in specs:
            path = corpus_of(spec)
            task = bar.add_task(spec.name, total=len(read_corpus(path)) if path else 0)
            found.append(conformance(spec, done=lambda task=task: bar.advance(task)))
    if as_json:
        print(json.dumps([each.to_dict() for each in found]))
    elif markdown:
        print(_markdown(found))
    else:
        _print(found, console)
    broken = [each.name for each in found if not each.holds]
    if broken:
        raise WorkError(f"{', '.join(broken)}: does not do what the corpus says")


HEADINGS = (
    "reward",
    "gold",
    "false rejects",
    "spoiled + hostile",
    "false accepts",
    "other",
    "median ms",
    "max ms",
    "",
)


def _cells(c: Conformance) -> tuple[str, ...]:
    if c.skipped:
        return (c.name, *["-"] * 7, f"skipped: {c.skipped}")
    rejects = f"{c.false_rejects} ({c.false_reject_rate:.1%})"
    accepts = f"{c.false_accepts} ({c.false_accept_rate:.1%})"
    other = str(c.wrong_status + c.too_slow)
    times = f"{c.median_ms:.2f}", f"{c.max_ms:.0f}"
    bad = str(c.spoiled + c.hostile)
    return (
        c.name,
        str(c.gold),
        rejects,
        bad,
        accepts,
        other,
        *times,
        "holds" if c.holds else "FAILS",
    )


def _markdown(found: list[Conformance]) -> str:
    rows = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, found)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _print(found: list[Conformance], console: Console) -> None:
    table = Table(*HEADINGS)
    for each in found:
        table.add_row(*map(Text, _cells(each)))
    console.print(table)
    for each in found:
        for s in each.surprises[:SHOWN]:
            said = f"{s.verdict['value']}, {s.verdict['status']} {s.verdict['reason']}".rstrip()
            console.print(
                Text(
                    f"{each.name}:{s.line} {s.kind} {s.category}: expected {s.expected}; got {said}"
                )
            )
            console.print(Text(f"    {s.completion!r}", style="dim"))
        if len(each.surprises) > SHOWN:
            console.print(f"{each.name}: {len(each.surprises) - SHOWN} more; --json has them all")


def check_file(
    name: str, file: Path, reference: str, options: list[str], columns: list[str], console: Console
) -> None:
    """Judges the reference of every row of a data set: one that does not score 1.0 cannot be trained on.

    Raises:
        RequestError: as `score_file`.
        WorkError: there are such rows; they are printed.
    """
    bound, completions, examples = _opened(name, file, options, columns, reference)
    with _bar() as bar:
        task = bar.add_task(name, total=len(examples))
        verdicts = _score(bound, completions, examples, lambda: bar.advance(task))
    bad = [(e, v) for e, v in zip(examples, verdicts, strict=True) if v.value != 1.0]
    for example, verdict in bad:
        value = "no value" if verdict.value is None else f"{verdict.value:g}"
        console.print(Text(f"{example.where}: {value}, {verdict.status} {verdict.reason}".rstrip()))
    said = f"{len(examples) - len(bad)} of {len(examples)} references score 1.0"
    if bad:
        raise WorkError(f"{file}: {said}")
    console.print(said)


def score_file(name: str, file: Path, options: list[str], columns: list[str], explain: bool) -> int:
    """One verdict a line on stdout, in the order of the rows; 1 where a row itself could not be judged.

    Raises:
        RequestError: unknown reward or option, a broken file, a row without a column the reward needs.
    """
    bound, completions, examples = _opened(name, file, options, columns)
    broken = 0
    with _bar() as bar:
        task = bar.add_task(name, total=len(examples))
        for start in range(0, len(examples), LOT):
            lot = slice(start, start + LOT)
            verdicts = _score(bound, completions[lot], examples[lot], lambda: bar.advance(task))
            broken += sum(verdict.details.get("row") == "broken" for verdict in verdicts)
            for completion, example, verdict in zip(
                completions[lot], examples[lot], verdicts, strict=True
            ):
                _say(completion, example, verdict, explain)
            sys.stdout.flush()
    if broken:
        print(
            f"error: {broken} of {len(examples)} rows cannot be judged; see their reasons",
            file=sys.stderr,
        )
    return int(broken > 0)


def _score(
    bound: Bound, completions: list[str], examples: list[Example], done: Any
) -> list[Verdict]:
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
    scored = score_batch(
        bound, [completions[i] for i in good], [examples[i] for i in good], done=done
    )
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


def _bar() -> Progress:
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


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


def _say(completion: str, example: Example, verdict: Verdict, explain: bool) -> None:
    if not explain:
        print(json.dumps(asdict(verdict), default=str))
        return
    colour = {None: "yellow", 1.0: "green"}.get(verdict.value, "red")
    value = "no value" if verdict.value is None else f"{verdict.value:g}"
    head = Text(
        f"{value}  {verdict.status}  {verdict.reason}  {verdict.ms:.1f} ms", style=f"bold {colour}"
    )
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
