"""`posttrain show`: a run, pipeline or sweep in the terminal, or with `--rollouts` what the run sampled.

Left out: drawing; `report/terminal.py` prints a run, `commands/rollouts.py` its rollouts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.commands.arguments import add_json, console, count, positive
from posttrain.errors import RequestError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run, pipeline or sweep directory")
    add_json(parser)
    rollouts = parser.add_argument_group("rollouts", "what the run sampled, the latest step first")
    rollouts.add_argument(
        "--rollouts", action="store_true", help="page through completions, prompt by prompt"
    )
    rollouts.add_argument(
        "--step", type=count, metavar="N", help="the batch that step N was trained on, or chunk N"
    )
    rollouts.add_argument(
        "--where",
        metavar="KIND",
        help="all (default), right, wrong, failed (the check failed), cut (too long), dropped",
    )
    rollouts.add_argument("--source", metavar="NAME", help="only prompts of this source")
    rollouts.add_argument(
        "--sample-limit", type=positive, metavar="N", help="completions (default: 50; all with --json)"
    )


def run(options: argparse.Namespace) -> None:
    if options.rollouts:
        from posttrain.commands.rollouts import Wanted, show_rollouts

        wanted = Wanted(options.step, options.where or "all", options.source, options.sample_limit)
        show_rollouts(Path(options.run), console(), wanted, as_json=options.json)
        return
    stray = [
        f"--{key.replace('_', '-')}"
        for key in ("step", "where", "source", "sample_limit")
        if getattr(options, key) is not None
    ]
    if stray:
        raise RequestError(f"{', '.join(stray)}: only with --rollouts")
    from posttrain.report.terminal import show

    show(Path(options.run), console(), json=options.json)
