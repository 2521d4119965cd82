"""The sft command in which a step and a sampled token take a quarter of a second each, for tests that send
signals to ranks: `python -m tests.stages.slow_scores PIDS argv...`; the process id of rank R is in PIDS/R.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

SLOW_S = 0.25


def slowed(plain: Callable) -> Callable:
    def slow(*args, **kwargs):
        time.sleep(SLOW_S)
        return plain(*args, **kwargs)

    return slow


def main(pids: str, *argv: str) -> int:
    from posttrain.generation import local
    from posttrain.sft import main as command
    from posttrain.training.trainer import RunTrainer

    local.choose = slowed(local.choose)
    RunTrainer.training_step = slowed(RunTrainer.training_step)
    Path(pids, os.environ["RANK"]).write_text(str(os.getpid()))
    return command([*argv])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
