"""What several commands share: common arguments, checks of their values, and the console for their output.

Left out: the arguments of a single command, which its own module declares.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

CHECKPOINT = "path, hub id, runs/<name> or runs/<name>@best:<task>/<metric>"


def add_recipe(parser: argparse.ArgumentParser, what: str = "recipe") -> None:
    """RECIPE and its overrides. `what` the file may be: `recipe, pipeline or sweep`."""
    parser.add_argument("recipe", help=f"a {what} YAML")
    add_overrides(parser, "keys of the file: train.max_steps=10 ...")


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead, for programs")


def console(**options: Any) -> Console:
    """A console that neither wraps lines nor colours what it takes for numbers and paths."""
    return Console(soft_wrap=True, highlight=False, **options)


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def temperature(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0")
    return value
