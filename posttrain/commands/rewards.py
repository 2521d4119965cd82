"""`posttrain rewards list | check | score`: the rewards, how they do on their corpora, scores of a file.

Left out: scoring itself, which is in `score_rewards.py` for a file and in `posttrain/rewards/` for everything
else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.base.printable import printable
from posttrain.base.progress import ProgressBars
from posttrain.commands.arguments import add_json, console
from posttrain.commands.score_rewards import open_file, score_file, score_rows
from posttrain.errors import RequestError, WorkError
from posttrain.rewards import load_all
from posttrain.rewards.conformance import Conformance, conformance, corpus_of, read_corpus
from posttrain.rewards.registry import Spec, find

SHOWN = 20
"""Surprises printed of each reward."""
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
"""Columns of the table of `rewards check`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="names, columns, options")
    add_json(listing)
    check = actions.add_parser("check", help="run rewards over their own corpora")
    check.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    check.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    add_json(check)
    check.add_argument("--file", help="score the references of this data set instead of the corpora")
    check.add_argument(
        "--reference",
        default="completion",
        metavar="COLUMN",
        help="the references, with --file (default: completion)",
    )
    score = actions.add_parser("score", help="print one JSON verdict a line, in the order of the rows")
    score.add_argument("name", metavar="NAME", help="a reward, or package.module:function")
    score.add_argument("--file", required=True, help="rows with `completion` and the reward's columns")
    for made in (check, score):
        made.add_argument(
            "--option", action="append", default=[], metavar="k=v", help="option of the reward, repeatable"
        )
        made.add_argument(
            "--column",
            action="append",
            default=[],
            metavar="name=own",
            help="the file's own name of a column, repeatable",
        )
    score.add_argument("--explain", action="store_true", help="print for people instead of programs")


def run(options: argparse.Namespace) -> int | None:
    """Does what `options.action` names; returns the exit code of `score`."""
    if options.action == "score":
        file = Path(options.file)
        return score_file(options.name, file, options.option, options.column, options.explain)
    if options.action == "check" and options.file is not None:
        _check_file(options)
        return None
    wide = console(width=None if sys.stdout.isatty() else 160)  # a file has no edge to wrap at
    if options.action == "list":
        list_rewards(wide, options.json)
    else:
        check_rewards(options.names, wide, options.json, options.markdown)
    return None


def list_rewards(console: Console, as_json: bool) -> None:
    """Prints every registered reward with its columns, options and the first line of its description."""
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
    table = Table("reward", "columns", "options", "what it scores", show_lines=True)
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
    """Prints the conformance of the named rewards, or of all. Raises `WorkError` where one fails."""
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
        raise WorkError(f"{', '.join(broken)}: contradicts its corpus")


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
            line = f"{each.name}:{s.line} {s.kind} {s.category}: expected {s.expected}; got {said}"
            console.print(Text(printable(line)))
            console.print(Text(printable(f"    {s.completion!r}"), style="dim"))
        if len(each.surprises) > SHOWN:
            console.print(f"{each.name}: {len(each.surprises) - SHOWN} more; --json has them all")


def _check_file(options: argparse.Namespace) -> None:
    """Scores the reference of every row of a data set; a row whose reference does not get 1.0 cannot be
    trained on.

    Raises:
        RequestError: as `score_file`, or not exactly one reward is named.
        WorkError: there are such rows; they are printed.
    """
    if len(options.names) != 1:
        raise RequestError("rewards check --file takes one reward")
    (name,) = options.names
    file = Path(options.file)
    bound, completions, examples = open_file(name, file, options.option, options.column, options.reference)
    with ProgressBars("row", transient=True) as bars:
        bars.add(name, len(examples))
        verdicts = score_rows(bound, completions, examples, lambda: bars.advance(name))
    bad = [(e, v) for e, v in zip(examples, verdicts, strict=True) if v.value != 1.0]
    out = console()
    for example, verdict in bad:
        value = "no value" if verdict.value is None else f"{verdict.value:g}"
        line = f"{example.where}: {value}, {verdict.status} {verdict.reason}".rstrip()
        out.print(Text(printable(line)))
    summary = f"{len(examples) - len(bad)} of {len(examples)} references score 1.0"
    if bad:
        raise WorkError(f"{file}: {summary}")
    out.print(summary)
