"""The back-ends: how the zygote of each one is started, with which files and limits.

`bubblewrap` is the program of that name; `namespaces` does the same with unshare(2); `landlock` needs neither
namespaces, root nor packages; `none` runs without walls. Left out: which back-end is used on a machine
(`ladder`).
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

from posttrain.rewards.code.sandbox import runtime
from posttrain.rewards.code.sandbox.bundle import BOOT

SCRATCH_BYTES, SCRATCH_INODES = 16 << 20, 1024
FIRST_UID = 0x60000000
"""User ids of the slots: unused on any machine, one per slot and process, so that per-user limits work."""
TASKS, SPARE_TASKS = 64, 4096
"""RLIMIT_NPROC of a separate user; added to the caller's own tasks if the sandbox runs as the caller."""


class Unusable(Exception):
    """Why a back-end cannot run here."""


@functools.cache
def staged() -> runtime.Runtime:
    """The interpreter for a back-end without mounts, in a folder that the unprivileged user can read."""
    return runtime.without_sites(runtime.staged(runtime.locate()))


# the folder is removed when the process that made it ends: a forked copy makes one of its own
os.register_at_fork(after_in_child=staged.cache_clear)


def plan(backend: str, slot: int) -> tuple[list[str], dict]:
    """(command, configuration) of the zygote of slot number `slot`.

    Raises:
        Unusable: a program is not installed.
    """
    root = os.geteuid() == 0
    found = runtime.locate()
    if backend == "landlock":
        found = staged() if root else runtime.without_sites(found)
    isolated = backend in ("bubblewrap", "namespaces")
    place = runtime.shelf if isolated else str
    in_tmp = any(runtime.within(path, "/tmp") for path in found.shown)
    uid = FIRST_UID + (os.getpid() * 256 + slot % 256) % 0x10000000
    config = {
        "backend": backend,
        "root": root,
        "uid": uid,
        "path": [place(p) for p in found.path],
        "readable": list(found.readable),
        "hidden": list(found.hidden),
        "shown": [[p, place(p)] for p in found.shown],
        "listable": list(found.listable),
        "devices": list(runtime.DEVICES),
        "base": "/tmp" if os.path.isdir("/tmp") and not in_tmp else "/mnt",
        "scratch_bytes": SCRATCH_BYTES,
        "scratch_inodes": SCRATCH_INODES,
        "tasks": TASKS if root or isolated else own_tasks() + SPARE_TASKS,
    }
    command = [found.executable, "-P", "-s", "-S", "-B", "-c", BOOT]
    if backend == "bubblewrap":
        program = shutil.which("bwrap")
        if program is None:
            raise Unusable("`bwrap` is not installed")
        command = [program, *arguments(found, root), *command]
    return command, config


def arguments(found: runtime.Runtime, root: bool) -> list[str]:
    """The options of bwrap: only the interpreter, read-only; no network, no other processes."""
    out = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    out += ["--as-pid-1"]
    out += [] if root else ["--unshare-user"]
    out += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    out += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else []
    out += parents([*found.readable, *map(runtime.shelf, found.shown), *runtime.DEVICES])
    for path in found.readable:
        out += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for path in found.hidden:
        out += ["--tmpfs", path]
    for path in found.shown:
        out += ["--ro-bind", path, runtime.shelf(path)]
    for path in found.hidden:
        out += ["--remount-ro", path]
    for path in runtime.DEVICES:
        out += ["--dev-bind-try", path, path]
    return [*out, "--dir", "/tmp", "--chdir", "/", "--remount-ro", "/", "--"]


def parents(paths: list[str]) -> list[str]:
    """Options that create every folder above `paths` for all users; bwrap creates some for root alone."""
    links = {p for p in paths if os.path.islink(p)}
    above = {str(a) for p in paths for a in Path(p).parents if str(a) != "/"}
    above = [a for a in above if not any(runtime.within(a, p) for p in [*links, *paths])]
    return [word for a in sorted(above) for word in ("--perms", "0755", "--dir", a)]


def own_tasks() -> int:
    """The number of tasks that this user runs already: RLIMIT_NPROC counts them too."""
    total = 0
    try:
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    if os.stat(f"/proc/{name}").st_uid == os.getuid():
                        total += len(os.listdir(f"/proc/{name}/task"))
                except OSError:
                    continue
    except OSError:
        pass
    return total
