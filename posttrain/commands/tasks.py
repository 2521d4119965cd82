"""`posttrain tasks list | show | check`: the tasks, what one asks, and whether it judges right.

No model and no tokenizer: messages are shown before the chat template. Left out: scoring a checkpoint, which
is `posttrain eval`.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.base.files import counted
from posttrain.base.printable import printable
from posttrain.commands.arguments import add_json, add_overrides, console, positive
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate.tasks.catalogue import changed, known, metrics, named_task, names, resolved
from posttrain.evaluate.tasks.file_task import FileTask
from posttrain.evaluate.tasks.files import HERE, LOCAL
from posttrain.evaluate.tasks.kinds.generate import BY_ROW
from posttrain.evaluate.tasks.reading import read_rows
from posttrain.recipe.schema import Task
from posttrain.types import Problem, Verdict

FAILURES = 5
"""Rows of `check` that are named."""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="names, kinds, rows, whether the data are at hand")
    show = actions.add_parser("show", help="what a task asks, its right answers and how replies are judged")
    check = actions.add_parser("check", help="score a right and a wrong reply to every row")
    for made in (show, check):
        made.add_argument("name", metavar="NAME", help="a task, or the path of a task file")
        add_overrides(made, "settings of the task: options.scorer=reference ...")
        made.add_argument("--path", help="rows to read instead of the task's own")
    show.add_argument("--rows", type=positive, default=2, metavar="N", help="rows to show (default: 2)")
    for made in (listing, check):
        add_json(made)


def run(options: argparse.Namespace) -> None:
    """Does what `options.action` names. Raises `WorkError` where a check fails."""
    if options.action == "list":
        return _list(options.json)
    given = named_task(options.name)
    given.path = options.path
    task = changed(given, options.overrides)
    if options.action == "show":
        _show(task, options.rows)
    else:
        _check(task, options.json)


def _list(as_json: bool) -> None:
    facts = [_facts(Task(name)) for name in names()]
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("task", "kind", "rows", "data", "published"):
        table.add_column(head, justify="right" if head == "rows" else "left")
    for fact in facts:
        rows = "-" if fact["rows"] is None else f"{fact['rows']:,}"
        figure = re.match(r"[\d.]+", fact["published"])
        published = figure[0] if figure else "not measured"
        table.add_row(*map(Text, (fact["name"], fact["kind"], rows, fact["data"], published)))
    out = console()
    out.print(table)
    if any(fact["data"] == "hub" for fact in facts):
        out.print(Text(f"hub: downloaded when scored; set ${LOCAL} to a folder of local copies", style="dim"))


def _facts(task: Task) -> dict[str, Any]:
    built = known(task)
    if not isinstance(built, FileTask):
        about = (type(built).__doc__ or "").partition("\n")[0]
        facts = {"name": task.name, "about": about, "kind": built.kind, "data": "generated"}
        return facts | {"rows": len(built.problems()), "published": "not measured"}
    return {"name": task.name, "about": built.spec.about, "kind": built.spec.kind} | {
        "data": (data := _data(built)),
        "rows": sum(1 for _ in built.rows()) if data == "here" else None,
        "published": built.spec.published,
    }


def _data(built: FileTask) -> str:
    """Where the rows of a task are."""
    try:
        return "here" if built.is_local else "hub"
    except RequestError:
        return "not at hand"


def _show(task: Task, rows: int) -> None:
    built, out = known(task), console()
    problems = built.problems() if not isinstance(built, FileTask) or built.is_local else []
    facts = {"about": (type(built).__doc__ or "").partition("\n")[0], "kind": built.kind}
    if isinstance(built, FileTask):
        facts = {"about": built.spec.about, "kind": built.spec.kind} | _source(built, problems)
    facts |= _scored(built, resolved(task))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(Text(key, style="dim"), Text(printable(value)))
    out.print(Text(task.name, style="bold"))
    out.print(table)
    shown: list[Any] = []
    for problem, where in list(zip(problems, _places(built, problems), strict=True))[:rows]:
        out.print()
        group = f", group {problem.group}" if problem.group else ""
        out.print(Text(printable(f"{where}  (id {problem.id}{group})"), style="bold"))
        shown = _print_asked(problem, shown, out)
        out.print(Text("[answer]", style="green"))
        own = problem.extra.get(BY_ROW)
        out.print(Text(printable(problem.answer + (f"  ({_options(own)})" if own else ""))))


def _source(built: FileTask, problems: list[Problem]) -> dict[str, str]:
    """Where the rows are, how many are asked, and how to make a local copy."""
    source, facts = built.spec.source, {}
    hub = " ".join(filter(None, (source.hub, source.subset, source.split))) if source.hub else ""
    hub += f" at {source.revision}" if source.revision else ""
    facts["rows"] = f"{len(problems):,} of {built.place}" if problems else f"on the hub: {hub}"
    if problems and built.spec.where:
        every = sum(1 for _ in read_rows(built.task.name, source, built.place))
        left_out = every - sum(1 for _ in built.rows())
        facts["left out"] = f"{left_out:,} of {every:,}, for which this is false: {built.spec.where}"
    beside = f"below ${LOCAL}" if built.path.parent == HERE else "beside the task file"
    places = [f"{source.file} {beside}" if source.file else "", source.origin, f"hub {hub}" if hub else ""]
    facts["source"] = "; ".join(filter(None, (*places, f"licence {source.licence}")))
    if hub and not problems and source.file and source.file.endswith(".jsonl"):
        loading = ", ".join(repr(name) for name in (source.hub, source.subset) if name)
        to = f'to_json("${LOCAL}/{source.file}")'
        facts["local copy"] = f"datasets.load_dataset({loading}, split={source.split!r}).{to}"
    return facts


def _scored(built: Any, task: Task) -> dict[str, str]:
    sampled = built.kind == "sampled"
    facts = {"judged by": built.scoring() if isinstance(built, FileTask) else _reward(built)}
    if sampled:
        sampler = f"temperature {task.temperature:g}, top_p {task.top_p:g}"
        stop = f", until {', '.join(map(repr, built.stop))}" if built.stop else ""
        facts["sampled"] = (
            f"{counted(task.samples, 'completion')}, {sampler}, {task.max_new_tokens} tokens{stop}"
        )
    found = metrics(task)
    facts["metrics"] = ", ".join(found if len(found) < 9 else [*found[:3], "...", *found[-3:]])
    return facts | ({"published": built.spec.published} if isinstance(built, FileTask) else {})


def _options(given: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None)


def _reward(built: Any) -> str:
    return f"reward {built.reward.name}" if built.kind == "sampled" else "the probability of the answer"


def _print_asked(problem: Problem, shown: list[Any], out: Any) -> list[Any]:
    """Prints what is asked, but for turns that stand in `shown`, too; returns its turns."""
    turns = [(m["role"], m["content"]) for m in problem.messages or []]
    if problem.messages is None:
        turns = [("user" if not problem.plain else "text to continue", problem.prompt or "")]
    same = 0
    while same < len(turns) - 1 and turns[same : same + 1] == shown[same : same + 1]:
        same += 1
    if same:
        out.print(Text(f"({counted(same, 'message')} as above)", style="dim"))
    for role, text in [*turns[same:], *([("begun reply", problem.prefill)] if problem.prefill else [])]:
        out.print(Text(f"[{role}]", style="cyan"))
        out.print(Text(printable(text)))
    if problem.tools:
        out.print(Text(f"({counted(len(problem.tools), 'tool')})", style="dim"))
    return turns


def _places(built: Any, problems: list[Problem]) -> list[str]:
    """`file:line` of each problem, or its id where a row is not one problem."""
    rows = [row.where for row in built.rows()] if isinstance(built, FileTask) and problems else []
    return rows if len(rows) == len(problems) else [problem.id for problem in problems]


def _check(task: Task, as_json: bool) -> None:
    built = known(task)
    problems = built.problems()
    facts: dict[str, Any] = {"name": task.name, "rows": len(problems)}
    failed: list[str] = []
    for kind, wanted in (("right", 1.0), ("spoiled", 0.0)):
        reply = getattr(built, "gold_reply" if kind == "right" else "spoiled_reply", lambda problem: None)
        replies = [(i, text) for i, problem in enumerate(problems) if (text := reply(problem)) is not None]
        if replies:
            of = [problems[i] for i, _ in replies]
            verdicts = built.verdicts([text for _, text in replies], of)
            wrong = [(i, t, v) for (i, t), v in zip(replies, verdicts, strict=True) if v.value != wanted]
            failed += [_failure(_places(built, problems)[i], kind, t, v) for i, t, v in wrong[:FAILURES]]
            facts[kind] = {"of": len(replies), "as wanted": len(replies) - len(wrong)}
    if as_json:
        print(json.dumps(facts | {"failures": failed}))
    else:
        _print_check(facts, failed, built.kind)
    if failed:
        raise WorkError(f"task {task.name}: replies are not judged as they should be")


def _print_check(facts: dict[str, Any], failed: list[str], kind: str) -> None:
    out = console()
    out.print(Text(f"{facts['name']}: {counted(facts['rows'], 'row')} read"))
    for name, value in (("right", "1.0"), ("spoiled", "0")):
        if found := facts.get(name):
            out.print(Text(f"{name} replies: {found['as wanted']:,} of {found['of']:,} score {value}"))
    if "right" not in facts:
        why = (
            "nothing is sampled" if kind == "exact" else "no right reply is known; set gold in the task file"
        )
        out.print(Text(f"not judged: {why}"))
    for line in failed:
        out.print(Text(printable(line)))


def _failure(where: str, kind: str, reply: str, verdict: Verdict) -> str:
    value = "no value" if verdict.value is None else f"{verdict.value:g}"
    said = " ".join(filter(None, (verdict.status, verdict.reason)))
    return f"{where}: the {kind} reply {reply[:200]!r} scores {value} ({said})"
