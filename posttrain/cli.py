"""The `posttrain` command: each subcommand imports what it needs when it runs, so that `posttrain check` starts
without torch. What may be typed is in parser.py. Exit 0 fine, 1 the work failed, 2 the request was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from posttrain.commands.arguments import build_parser
from posttrain.errors import RequestError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `posttrain` script; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    parser, commands = build_parser({name: text for name, (text, _) in COMMANDS.items()})
    # Known ones only: argparse gives up on `eval X --task gsm8k limit=8`, a positional after an option.
    options, rest = parser.parse_known_args(argv)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    command = commands[options.command]
    unknown = [word for word in rest if word.startswith("-") or "overrides" not in options]
    if unknown:
        flags = [flag for action in command._actions for flag in action.option_strings]
        near = did_you_mean(unknown[0], flags) if unknown[0].startswith("-") else ""
        command.error(f"unrecognized argument {unknown[0]!r}{near}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    from posttrain.base.exit_codes import exit_code_of
    from posttrain.base.process import quiet_libraries

    quiet_libraries()

    return exit_code_of(lambda: COMMANDS[options.command][1](options))


def _console(**options: Any) -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, **options)


def check(options: argparse.Namespace) -> None:
    from posttrain.commands.check import check as run_check

    console = _console(quiet=options.json)
    facts = run_check(options.recipe, options.overrides, options.ranks, options.rows, console)
    if options.json:
        print(json.dumps(facts))


def run(options: argparse.Namespace) -> int:
    from posttrain.recipe import Pipeline, load

    recipe = load(options.recipe, options.overrides)
    if options.accelerate:
        config = Path(options.accelerate)
        if not config.is_file():
            near = did_you_mean(config.name, [p.name for p in config.parent.glob("*.yaml")])
            raise RequestError(f"--accelerate {config}: no such file{near}")
    if isinstance(recipe, Pipeline):
        from posttrain.rundir.reading import PipelineData
        from posttrain.stages.schedule import run_pipeline

        page = run_pipeline(options.recipe, options.overrides, _console(stderr=True), options.accelerate)
        _say_findings(PipelineData.load(page.parent).runs, page)
        return 0
    if options.accelerate:
        return _accelerate(options, recipe.stage)
    return _stage(options, recipe.stage)


def _accelerate(options: argparse.Namespace, stage: str) -> int:
    import subprocess

    from posttrain.stages.stage_process import launcher

    work = ["-m", f"posttrain.{stage}", options.recipe, *options.overrides]
    return subprocess.call([*launcher(options.accelerate), *work])


def sft(options: argparse.Namespace) -> int:
    return _stage(options, "sft")


def dpo(options: argparse.Namespace) -> int:
    return _stage(options, "dpo")


def rlvr(options: argparse.Namespace) -> int:
    return _stage(options, "rlvr")


def pairs(options: argparse.Namespace) -> int:
    return _stage(options, "pairs")


def pass_rate(options: argparse.Namespace) -> int:
    return _stage(options, "pass_rate")


def _stage(options: argparse.Namespace, stage: str) -> int:
    from posttrain.recipe import load_stage

    load_stage(options.recipe, options.overrides, stage)  # before the slow imports
    from posttrain.base.stop import exit_on_interrupt

    with exit_on_interrupt():
        module = importlib.import_module(f"posttrain.{stage}")

    return module.main([options.recipe, *options.overrides])


def _say_findings(runs: list[Any], page: Path) -> None:
    from posttrain.report.alerts import alerts
    from posttrain.report.findings import findings

    for sentence in [*alerts(runs), *findings(runs)]:
        print(sentence)
    print(f"report: {page}")


def evaluate(options: argparse.Namespace) -> None:
    from posttrain.commands.evaluate import evaluate as run_evaluate

    run_evaluate(
        options.checkpoint,
        options.task,
        options.overrides,
        options.out,
        options.template,
        _console(),
        as_json=options.json,
    )


def show(options: argparse.Namespace) -> None:
    asked = {k: getattr(options, k) for k in ("step", "where", "source", "sample_limit")}
    if options.rollouts:
        from posttrain.commands.rollouts import Wanted, show_rollouts

        wanted = Wanted(options.step, options.where or "all", options.source, options.sample_limit)
        show_rollouts(Path(options.run), _console(), wanted, as_json=options.json)
        return
    stray = [f"--{k.replace('_', '-')}" for k, value in asked.items() if value is not None]
    if stray:
        raise RequestError(f"{', '.join(stray)}: only with --rollouts")
    from posttrain.report.terminal import show as run_show

    run_show(Path(options.run), _console(), json=options.json)


def report(options: argparse.Namespace) -> None:
    from posttrain.report.page import write_report

    out = Path(options.out) if options.out else None
    print(f"report: {write_report([Path(p) for p in options.runs], out)}")


def export(options: argparse.Namespace) -> None:
    from posttrain.commands.export import export as run_export

    print(f"exported: {run_export(options.checkpoint, Path(options.out), options.dtype)}")


def chat(options: argparse.Namespace) -> None:
    from posttrain.commands.chat import chat as run_chat

    run_chat(options.checkpoint, options.system, options.temperature, options.max_new_tokens)


def rewards(options: argparse.Namespace) -> int:
    from posttrain.commands import rewards as command

    wide = _console(width=None if sys.stdout.isatty() else 160)  # a file has no edge to wrap at
    if options.action == "list":
        command.list_rewards(wide, options.json)
    elif options.action == "check":
        if options.file is None:
            command.check_rewards(options.names, wide, options.json, options.markdown)
        elif len(options.names) != 1:
            raise RequestError("rewards check --file takes one reward")
        else:
            command.check_file(
                options.names[0],
                Path(options.file),
                options.reference,
                options.option,
                options.column,
                _console(),
            )
    else:
        return command.score_file(
            options.name, Path(options.file), options.option, options.column, options.explain
        )
    return 0


COMMANDS = {
    "check": ("say what a recipe means and what is wrong with it, without torch", check),
    "run": ("run a recipe or a pipeline; an existing run goes on where it stopped", run),
    "sft": ("run a supervised fine-tuning recipe in this process", sft),
    "dpo": ("run a preference optimisation recipe in this process", dpo),
    "rlvr": ("run a reinforcement learning recipe in this process", rlvr),
    "pairs": ("sample completions and make preference pairs of them", pairs),
    "pass-rate": ("sample completions and measure how often each prompt is solved", pass_rate),
    "eval": ("score a checkpoint on tasks", evaluate),
    "show": ("print lineage, mixture and scores of a run, or page through its rollouts", show),
    "report": ("write one HTML page about one or more runs", report),
    "export": ("write a checkpoint as a plain model: adapters merged, safetensors, card", export),
    "chat": ("talk to a checkpoint", chat),
    "rewards": ("list the rewards, prove them on their corpora, score a file with one", rewards),
}


if __name__ == "__main__":
    sys.exit(main())
