"""The `posttrain` command: one table of subcommands, of which only the requested one is imported.

What a subcommand accepts and does is in its module of `posttrain/commands/`; this keeps torch out of
`posttrain check`. Exit codes: 0 success, 1 the work failed, 2 the request was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from types import ModuleType

from posttrain import __version__
from posttrain.base.exit_codes import exit_code_of
from posttrain.base.process import quiet_libraries
from posttrain.base.stop import StopRequest, exit_on_interrupt
from posttrain.errors import RequestError, did_you_mean

COMMANDS = {
    "check": (
        "check",
        "check a recipe, pipeline or sweep and show what it resolves to, without importing torch",
    ),
    "prepare": ("prepare", "read and tokenise all rows of a recipe into the cache, and show what they are"),
    "run": ("run", "run a recipe, pipeline or sweep, or resume one that was stopped"),
    "sweep": ("sweep", "run a recipe or a pipeline for each combination of values of some keys, and seeds"),
    "sft": ("train", "run a supervised fine-tuning recipe in this process"),
    "dpo": ("train", "run a preference optimisation recipe in this process"),
    "rlvr": ("train", "run a reinforcement learning recipe in this process"),
    "pairs": ("train", "sample completions and build preference pairs from them"),
    "pass-rate": ("train", "sample completions and measure how often each prompt is solved"),
    "eval": ("evaluate", "score a checkpoint on tasks"),
    "show": ("show", "print the lineage, mixture and scores of a run, or page through its rollouts"),
    "compare": (
        "compare",
        "compare runs, or seeds of recipes: differences, and how sure they are",
    ),
    "report": ("report", "write one HTML page about one or more runs"),
    "export": ("export", "write a checkpoint as a plain model: merged adapters, safetensors, model card"),
    "chat": ("chat", "chat with a checkpoint in the terminal"),
    "tasks": ("tasks", "list the tasks, show what one asks, or check that right replies score 1.0"),
    "rewards": ("rewards", "list the rewards, check them against their corpora, or score a file with one"),
}
"""Command -> (module of `posttrain/commands/`, one line of help). The module defines `arguments(parser)`,
which declares what the command accepts, and `run(options)`, which does the work and may return an exit
code."""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `posttrain` script; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _dispatch(words))


def _dispatch(argv: list[str]) -> int | None:
    name = next((word for word in argv if not word.startswith("-")), None)
    if name not in COMMANDS and name is not None and name == argv[0]:
        print(f"error: unknown command {name!a}{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    parser, commands = _parsers()
    module = None
    if name in COMMANDS:
        quiet_libraries()
        with exit_on_interrupt():  # some imports swallow a KeyboardInterrupt
            module = _module(name)
        module.arguments(commands[name])
    # Known arguments only: argparse rejects a positional after an option: `eval X --task gsm8k limit=8`.
    options, rest = parser.parse_known_args(argv)
    if options.command is None or module is None:
        parser.print_help(sys.stderr)
        return 2
    _take_overrides(commands[name], options, rest)
    _refuse_empty(commands[name], options)
    with StopRequest():
        return module.run(options)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"posttrain.commands.{COMMANDS[name][0]}")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command line, and those of its commands by name, still without arguments."""
    parser = argparse.ArgumentParser(
        prog="posttrain",
        description="Post-training by recipe: data, training, a score for every checkpoint, a report.",
    )
    parser.add_argument("--version", action="version", version=f"posttrain {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made = {
        name: commands.add_parser(name, help=text, description=text) for name, (_, text) in COMMANDS.items()
    }
    return parser, made


def _refuse_empty(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """An option or argument that is given as empty text, as `--name "$UNSET"` gives it, would count as left
    out."""
    flags = {action.dest: action.option_strings for action in parser._actions}
    for key, value in vars(options).items():
        if value == "" or (key != "overrides" and isinstance(value, list) and "" in value):
            raise RequestError(f"{(flags.get(key) or [key])[-1]} is empty; give a value, or leave it out")


def _take_overrides(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: list[str]) -> None:
    """Adds the `key=value` words that argparse left to `options.overrides`; any other word is an error."""
    unknown = [word for word in rest if word.startswith("-") or "overrides" not in options]
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = did_you_mean(unknown[0], flags) if unknown[0].startswith("-") else ""
        parser.error(f"unrecognized argument {unknown[0]!r}{near}")
    if rest:
        options.overrides = [*options.overrides, *rest]


if __name__ == "__main__":
    sys.exit(main())
