"""This process: its CPU cores and GPUs, its rank within a launch, what it and the libraries log; and whether
others still run.

Launchers (accelerate, torchrun) set the ranks of each process in its environment.
Left out: signals (stop.py), exit codes (exit_codes.py).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.base.printable import printable

if TYPE_CHECKING:
    import psutil

PR_SET_PDEATHSIG = 1


def may_run(pid: int) -> bool:
    """Whether there is a process `pid` on this machine; True where that cannot be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def runs(process: psutil.Process) -> bool:
    """Whether `process` has not ended; True where that cannot be told."""
    import psutil  # late: most commands do without

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def die_with_parent(parent: int) -> None:
    """Makes this process end when `parent`, which started it, ends, however it ends; on Linux.

    The kernel counts the end of the thread that started it as that of the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    level = logging.INFO if rank() == 0 else logging.ERROR
    for name in ("posttrain", "posttrain_kernels"):
        logging.getLogger(name).setLevel(level)


UNTRUE = (
    "`is_gradient_checkpointing` is deprecated",
    "Could not find a config file in .* - will assume that the vocabulary was not modified",
    "Setting `save_embedding_layers` to `True`",
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
)
"""Warnings of transformers and peft about what posttrain sees to by itself."""


class _Printable(logging.Formatter):
    """The message, control characters spelt out: it may quote rows and names of files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def quiet_libraries() -> None:
    """Turn off the hub's progress bars if there is no terminal, warnings that do not apply, and DeepSpeed's
    message that there is no GPU.

    DeepSpeed prints that message on standard output, where `--json` prints. Variables that are already set
    are kept.
    """
    for message in UNTRUE:
        warnings.filterwarnings("ignore", message=message)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    devices = ("nvidia0", "nvidiactl", "kfd", "dri", "dxg", "accel")
    if not any((Path("/dev") / name).exists() for name in devices):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
