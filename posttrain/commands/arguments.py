"""What may be typed after `posttrain`: commands, arguments, their help. Does nothing with them."""

from __future__ import annotations

import argparse

from posttrain import __version__


def build_parser(about: dict[str, str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command by name. `about`: the commands with a line of help each."""
    parser = argparse.ArgumentParser(
        prog="posttrain",
        description="Post-training by recipe: data, training, a score for every checkpoint, a report.",
    )
    parser.add_argument("--version", action="version", version=f"posttrain {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in about.items()}
    for name in ("check", "run", "sft", "dpo", "rlvr", "pairs", "pass-rate"):
        made[name].add_argument("recipe", help="a recipe YAML")
        made[name].add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="train.max_steps=10 ..."
        )
    made["check"].add_argument(
        "--ranks", type=_positive, default=1, metavar="R", help="processes to plan the batch for"
    )
    made["check"].add_argument(
        "--rows",
        type=_positive,
        default=0,
        metavar="N",
        help="show the first N rows of each source as trained",
    )
    made["run"].add_argument(
        "--accelerate", metavar="CONFIG", help="launch with this accelerate config (a pipeline: each stage)"
    )
    made["eval"].add_argument(
        "checkpoint", help="path, hub id, runs/<name>, runs/<name>@best:<task>/<metric>"
    )
    made["eval"].add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings of the task: limit=100 samples=8",
    )
    made["eval"].add_argument(
        "--task", action="append", default=[], help="default: the tasks of the run's recipe"
    )
    made["eval"].add_argument(
        "--out", help="folder of the scores (default: the run of the checkpoint, else eval/<name>)"
    )
    made["eval"].add_argument("--template", help="default: that of the run, else the tokenizer's")
    _show_parser(made["show"])
    made["report"].add_argument("runs", nargs="+", help="run or pipeline directories")
    made["report"].add_argument("--out", help="default: report.html in the first directory")
    for name in ("export", "chat"):
        made[name].add_argument(
            "checkpoint", help="path, hub id, runs/<name> or runs/<name>@best:<task>/<metric>"
        )
    made["export"].add_argument("out", help="a folder that does not exist yet")
    made["export"].add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    made["chat"].add_argument("--system", help="system message")
    made["chat"].add_argument("--temperature", type=_temperature, default=0.7, metavar="T")
    made["chat"].add_argument("--max-new-tokens", type=_positive, default=512, metavar="N")
    _rewards_parser(made["rewards"])
    for name in ("check", "eval", "show"):
        made[name].add_argument("--json", action="store_true", help="for programs")
    return parser, made


def _show_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run or pipeline directory")
    rollouts = parser.add_argument_group("rollouts", "what the run sampled, the latest step first")
    rollouts.add_argument(
        "--rollouts", action="store_true", help="page through completions, prompt by prompt"
    )
    rollouts.add_argument(
        "--step", type=_count, metavar="N", help="the batch that trained step N, or chunk N"
    )
    rollouts.add_argument(
        "--where",
        metavar="KIND",
        help="all (default), right, wrong, failed (its check), cut (too long), dropped",
    )
    rollouts.add_argument("--source", metavar="NAME", help="prompts of this source only")
    rollouts.add_argument(
        "--sample-limit", type=_positive, metavar="N", help="completions (default: 50; with --json all)"
    )


def _rewards_parser(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="names, columns, options")
    check = actions.add_parser("check", help="run rewards over their own corpora")
    check.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    check.add_argument("--markdown", action="store_true", help="the table as in the documentation")
    for made in (listing, check):
        made.add_argument("--json", action="store_true", help="for programs")
    check.add_argument("--file", help="judge the references of this data set instead of the corpora")
    check.add_argument("--reference", default="completion", metavar="COLUMN", help="with --file")
    score = actions.add_parser("score", help="one JSON verdict a line, in the order of the rows")
    score.add_argument("name", metavar="NAME", help="a reward, or package.module:function")
    score.add_argument("--file", required=True, help="rows with `completion` and the reward's columns")
    for made in (check, score):
        made.add_argument("--option", action="append", default=[], metavar="k=v", help="repeatable")
        made.add_argument(
            "--column", action="append", default=[], metavar="name=own", help="the file's own column names"
        )
    score.add_argument("--explain", action="store_true", help="for people instead of programs")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0")
    return value
