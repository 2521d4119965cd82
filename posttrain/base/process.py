"""Runs a piece of work for a command line: failures become one sentence on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
)
"""What the machine refuses. Not ENOENT: a file we expected and did not make is a defect of ours."""


def guarded(work: Callable[[], Any]) -> int:
    """The exit code of `work()`: what it returns where that is an int, else 0; 1 or 2 where it fails."""
    try:
        code = work()
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what is whole stays, the same command goes on from it", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `posttrain show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in FULL:
            place = f" ({error.filename})" if error.filename else ""
            reason = f"the disk is full{place}; free some space and run the same command again"
        elif error.errno in REFUSED and error.filename:
            reason = f"{os.fspath(error.filename)}: {error.strerror}"
        else:
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C while the libraries are imported ends the process at once: nothing has begun, and some of them swallow
    a KeyboardInterrupt half-way and fail later with something else."""

    def leave(number: int, frame: Any) -> None:
        os.write(2, b"interrupted before anything had begun\n")
        os._exit(1)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def cores() -> int:
    """Cores this process may run on, at least 1."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def quiet_libraries() -> None:
    """No progress bars where nobody watches; no word from DeepSpeed that a machine without a GPU has none.

    DeepSpeed says so on standard output, where `--json` prints. Whatever the user has set stays.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    devices = ("nvidia0", "nvidiactl", "kfd", "dri", "dxg", "accel")
    if not any((Path("/dev") / name).exists() for name in devices):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
