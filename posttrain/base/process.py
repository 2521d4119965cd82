"""What this process is: its cores, its rank among the processes of a launch, and what it prints on standard error.

The launchers (accelerate, torchrun, Slurm through accelerate) give each process its ranks in the environment.
Left out: signals (stop.py), exit codes (exit_codes.py).
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """CPU cores this process may run on, at least 1."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def rank() -> int:
    """The number of this process among those of its launch; 0 is the main process."""
    return _from_launcher("RANK", 0)


def world_size() -> int:
    """Processes of the launch, over all machines."""
    return _from_launcher("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those of its machine: the index of its GPU."""
    return _from_launcher("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Processes of the launch on this machine."""
    return _from_launcher("LOCAL_WORLD_SIZE", 1)


def _from_launcher(variable: str, alone: int) -> int:
    return int(os.environ.get(variable) or alone)


def log_to_stderr() -> None:
    """Messages of posttrain on standard error, from the main process; other libraries' only from warnings up."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    level = logging.INFO if rank() == 0 else logging.ERROR
    for name in ("posttrain", "posttrain_kernels"):
        logging.getLogger(name).setLevel(level)


def quiet_libraries() -> None:
    """No progress bars of libraries without a terminal, and no message from DeepSpeed that there is no GPU.

    DeepSpeed prints it on standard output, where `--json` prints. Variables that the user has set are kept.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    devices = ("nvidia0", "nvidiactl", "kfd", "dri", "dxg", "accel")
    if not any((Path("/dev") / name).exists() for name in devices):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
