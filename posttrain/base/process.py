"""This process: its CPU cores and GPUs, its rank within a launch, and what it and the libraries log.

Launchers (accelerate, torchrun) set the ranks of each process in its environment.
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
    """The index of this process within its launch; 0 is the main process."""
    return _from_launcher("RANK", 0)


def world_size() -> int:
    """Number of processes of the launch, over all machines."""
    return _from_launcher("WORLD_SIZE", 1)


def local_rank() -> int:
    """The index of this process on its machine, which is also the index of its GPU."""
    return _from_launcher("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Number of processes of the launch on this machine."""
    return _from_launcher("LOCAL_WORLD_SIZE", 1)


def _from_launcher(variable: str, alone: int) -> int:
    return int(os.environ.get(variable) or alone)


def flag(name: str) -> bool:
    """Whether the environment variable `name`, of accelerate, is on."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def why_on_cpu() -> str | None:
    """Why a launch from here would train on the CPU, in a few words; None where it would use a GPU.

    Torch is not asked, for it takes seconds to import. `CUDA_VISIBLE_DEVICES` is believed: a login node
    without a GPU says with `CUDA_VISIBLE_DEVICES=0` that the job will have one.
    """
    if flag("ACCELERATE_USE_CPU"):
        return "accelerate is told to use the CPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return None if visible.strip() not in ("", "-1") else "CUDA_VISIBLE_DEVICES hides all GPUs"
    devices = Path("/dev")
    found = any(devices.glob("nvidia[0-9]*")) or any((devices / name).exists() for name in ("kfd", "dxg"))
    return None if found else "this machine has no GPU"


def log_to_stderr() -> None:
    """Log to standard error: messages of posttrain from the main process, and warnings of the libraries."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    level = logging.INFO if rank() == 0 else logging.ERROR
    for name in ("posttrain", "posttrain_kernels"):
        logging.getLogger(name).setLevel(level)


def quiet_libraries() -> None:
    """Turn off the hub's progress bars if there is no terminal, and DeepSpeed's message that there is no GPU.

    DeepSpeed prints that message on standard output, where `--json` prints. Variables that are already set
    are kept.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    devices = ("nvidia0", "nvidiactl", "kfd", "dri", "dxg", "accel")
    if not any((Path("/dev") / name).exists() for name in devices):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
