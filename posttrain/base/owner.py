"""Who holds a lock, in words: written beside it by the process that took it, read by one that was refused.

The lock decides, never this text: after a kill it may name a process that is gone. Left out: the locks.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
from pathlib import Path
from typing import Any

from posttrain.base.files import timestamp
from posttrain.base.process import may_run


def owner() -> dict[str, Any]:
    """This process, as it writes itself beside a lock."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container without a line in /etc/passwd
        user = str(os.getuid())
    return {"pid": os.getpid(), "user": user, "host": socket.gethostname(), "since": timestamp()}


def read_owner(path: Path) -> dict[str, Any]:
    """What was written beside a lock; empty where nothing, or nothing whole, was."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def described(found: dict[str, Any]) -> str:
    """`process 123 of alice on host a (since 2026-01-01T00:00:00Z)`; `another process` where it is unknown.

    A lock outlives its process in the children that inherited it, so the words say where the process has
    ended on this machine.
    """
    if not {"pid", "user", "host", "since"} <= found.keys():
        return "another process"
    words = "process {pid} of {user} on host {host} (since {since})".format(**found)
    return words if alive(found) else f"a child of {words}, which itself has ended"


def alive(found: dict[str, Any]) -> bool:
    """Whether the process may still run: False only where it ran on this machine and is gone."""
    pid = found.get("pid")
    return found.get("host") != socket.gethostname() or not isinstance(pid, int) or may_run(pid)
