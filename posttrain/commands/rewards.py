"""`posttrain rewards list | check | score`: what there is, whether it holds, and what it says of your rollouts."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.base.progress import ProgressBars
from posttrain.commands.score_rewards import _opened, _score
from posttrain.errors import WorkError
from posttrain.rewards import load_all
from posttrain.rewards.conformance import Conformance, conformance, corpus_of, read_corpus
from posttrain.rewards.registry import Spec, find

SHOWN = 20
"""Surprises printed a reward."""


def list_rewards(console: Console, as_json: bool) -> None:
    """Every registered reward with its columns, options and first line."""
    specs = [find(name) for name in load_all()]
    if as_json:
        facts = [
            {
                "name": s.name,
                "about": s.about,
                "columns": s.columns,
                "options": _options(s),
                "shaping": s.shaping,
                "runs": s.runs,
            }
            for s in specs
        ]
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
    with ProgressBars("row", transient=True) as bars:
        for spec in specs:
            path = corpus_of(spec)
            bars.add(spec.name, len(read_corpus(path)) if path else 0)
            found.append(conformance(spec, done=lambda name=spec.name: bars.advance(name)))
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
    return (c.name, str(c.gold), rejects, bad, accepts, other, *times, "holds" if c.holds else "FAILS")


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
                Text(f"{each.name}:{s.line} {s.kind} {s.category}: expected {s.expected}; got {said}")
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
    with ProgressBars("row", transient=True) as bars:
        bars.add(name, len(examples))
        verdicts = _score(bound, completions, examples, lambda: bars.advance(name))
    bad = [(e, v) for e, v in zip(examples, verdicts, strict=True) if v.value != 1.0]
    for example, verdict in bad:
        value = "no value" if verdict.value is None else f"{verdict.value:g}"
        console.print(Text(f"{example.where}: {value}, {verdict.status} {verdict.reason}".rstrip()))
    said = f"{len(examples) - len(bad)} of {len(examples)} references score 1.0"
    if bad:
        raise WorkError(f"{file}: {said}")
    console.print(said)
