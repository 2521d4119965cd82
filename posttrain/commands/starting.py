"""What `posttrain run` and `posttrain sweep` do before they start stages, and after.

Left out: the stages themselves (stages/schedule.py).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from posttrain.base.printable import printable
from posttrain.errors import RequestError, did_you_mean


def refuse_config(config: Path) -> None:
    """Raises `RequestError` for a config that is not there, or that this version of accelerate does not
    read."""
    if not config.is_file():
        near = did_you_mean(config.name, [p.name for p in config.parent.glob("*.yaml")])
        raise RequestError(f"--accelerate {config}: no such file{near}")
    from accelerate.commands.config.config_args import load_config_from_file  # imports torch
    from yaml import YAMLError

    try:
        load_config_from_file(str(config))
    except (ValueError, TypeError, AttributeError, LookupError, OSError, YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(
            f"--accelerate {config}: accelerate {version('accelerate')} cannot read it: {reason}"
        ) from error


def print_findings(page: Path) -> None:
    """What a finished pipeline shows, and the place of its report `page`."""
    from posttrain.report.alerts import alerts
    from posttrain.report.findings import findings
    from posttrain.rundir.reading import PipelineData

    runs = PipelineData.load(page.parent).runs
    for sentence in [*alerts(runs), *findings(runs)]:
        print(printable(sentence))
    print(f"report: {page}")
