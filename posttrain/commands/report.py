"""`posttrain report`: one HTML page about one or more runs, which `posttrain/report/` writes."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="run, pipeline or sweep directories")
    parser.add_argument("--out", metavar="FILE", help="default: report.html in the first directory")
    parser.add_argument(
        "--x",
        default="step",
        metavar="AXIS",
        help="axis of the scores over training: step (default), tokens, rollouts or flops",
    )


def run(options: argparse.Namespace) -> None:
    from posttrain.report.page import write_report  # matplotlib

    out = Path(options.out).expanduser() if options.out else None
    print(f"report: {write_report([Path(p) for p in options.runs], out, options.x)}")
