"""Runs commands in forks of this process, which has imported all, on machines where something is wrong.

    python -m tests.stages.faults JOBS.json OUT.json

JOBS.json: [[{"name", "argv", "module", "folder", "faults": [{"kind", ...}]}, ...], ...]; the jobs of an inner
list run at the same time. The first job runs in this process. OUT.json: by name the exit code, what was said
on stderr, the seconds, and how often each function of `COUNTED` was called.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stages.kill_loop import without_figures

COUNTED = ("replace", "rename", "fsync", "rmdir", "unlink", "mkdir")
LIMIT_S = 120
counts: Counter[str] = Counter()
MS_BIND, MS_REC, MS_REMOUNT, MS_RDONLY, MS_PRIVATE, CLONE_NEWNS = (
    1 << 12,
    1 << 14,
    1 << 5,
    1,
    1 << 18,
    1 << 17,
)


def fails(call: str, error: str, at: int, always: bool = False, done: bool = False, where: str = "") -> None:
    """The call number `at` of os.`call` raises `error`; `always`: later ones too; `done`: after its work.
    `where`: only calls on paths that contain it count."""
    number, plain, seen = getattr(errno, error), getattr(os, call), 0

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        seen += where in name
        fault = where in name and (seen == at or (always and seen > at))
        result = plain(path, *args, **kwargs) if done or not fault else None
        if fault:
            raise OSError(number, os.strerror(number), *([] if isinstance(path, int) else [name]))
        return result

    setattr(os, call, failing)


def silly(at: int, times: int) -> None:
    """As on NFS while another process has a file open: from the `at`-th removal of a folder on, the folder
    is not empty yet, `times` times, because of a file `.nfs...`."""
    plain, seen = os.rmdir, 0

    def rmdir(path: Any, *args: Any, dir_fd: int | None = None) -> None:
        nonlocal seen
        seen += 1
        if at <= seen < at + times:
            parent = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else ""
            Path(parent, path, f".nfs{seen:024x}").touch()
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fspath(path))
        plain(path, *args, dir_fd=dir_fd)

    os.rmdir = rmdir


def no_locks(error: str) -> None:
    """flock is refused."""

    def flock(handle: Any, operation: int) -> None:
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    fcntl.flock = flock


def clock(shift: float, after: int = 0) -> None:
    """The clock jumps by `shift` seconds after so many looks."""
    plain, seen = time.time, 0

    def wrong() -> float:
        nonlocal seen
        seen += 1
        return plain() + (shift if seen > after else 0)

    time.time = wrong


def host(name: str) -> None:
    """Another machine."""
    socket.gethostname = lambda: name


def times(folder: str) -> None:
    """Every file below `folder` has a time at random, within an hour of now."""
    for path in Path(folder).rglob("*"):
        os.utime(path, (time.time() + random.uniform(-3600, 3600),) * 2)


def moved(source: str, to: str) -> None:
    """The working directory is the copy `to` of a folder, which is not there any more."""
    subprocess.run(["cp", "-a", source, to], check=True)
    os.rename(source, f"{source}-gone")
    os.chdir(to)


def read_only(folder: str, module: str, name: str, at: int) -> None:
    """`folder` cannot be written from the `at`-th call of a function on. Needs the right to mount."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, flags: int) -> None:
        if libc.mount(source.encode(), folder.encode(), None, flags, None):
            raise OSError(ctypes.get_errno(), "mount")

    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        os._exit(77)
    freeze = lambda: (mount(folder, MS_BIND), mount(folder, MS_BIND | MS_REMOUNT | MS_RDONLY))  # noqa: E731
    _before(module, name, at, freeze)


def killed(module: str, name: str, at: int) -> None:
    """kill -9 at the `at`-th call of a function."""
    _before(module, name, at, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _before(module: str, name: str, at: int, happens: Callable[[], object]) -> None:
    owner, seen = importlib.import_module(module), 0
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == at:
            happens()
        return plain(*args, **kwargs)

    setattr(owner, name, wrapped)


def count() -> None:
    for name in COUNTED:
        plain = getattr(os, name)

        def counted(*args: Any, plain=plain, name=name, **kwargs: Any) -> Any:
            counts[name] += 1
            return plain(*args, **kwargs)

        setattr(os, name, counted)


FAULTS = {f.__name__: f for f in (fails, silly, no_locks, clock, times, host, moved, read_only, killed)}


def child(job: dict, log: Path) -> int:
    """The process of a fork that does the job."""
    if pid := os.fork():
        return pid
    code = 99
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        signal.alarm(LIMIT_S)
        os.chdir(job.get("folder", "."))
        count()
        for fault in job.get("faults", ()):
            FAULTS[fault["kind"]](**{k: v for k, v in fault.items() if k != "kind"})
        random.seed()  # of names of temporary files, in libraries
        code = importlib.import_module(job["module"]).main(job["argv"])
        log.with_suffix(".counts").write_text(json.dumps(counts))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def together(jobs: list[dict], folder: Path) -> dict[str, dict]:
    logs = [folder / f"{job['name']}.log" for job in jobs]
    begun = time.monotonic()
    children = [child(job, log) for job, log in zip(jobs, logs, strict=True)]
    found = {}
    for job, log, pid in zip(jobs, logs, children, strict=True):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        noted = log.with_suffix(".counts")
        found[job["name"]] = {
            "code": code,
            "said": log.read_text(errors="replace"),
            "seconds": time.monotonic() - begun,
            "counts": json.loads(noted.read_text()) if noted.exists() else {},
        }
    return found


def main(jobs: str, out: str) -> None:
    (first,), *others = json.loads(Path(jobs).read_text())
    without_figures()
    here = os.getcwd()
    os.chdir(first.get("folder", "."))
    code = importlib.import_module(first["module"]).main(first["argv"])
    os.chdir(here)
    found = {first["name"]: {"code": code, "said": "", "seconds": 0.0, "counts": {}}}
    for group in others:
        found |= together(group, Path(out).parent)
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
