"""The order in which the back-ends are tried, and which of them this machine can use.

`auto` takes the first back-end of `LADDER` that passes its self-test. A back-end that a recipe names is used
or refused, never replaced. With `unsafe_local` and no usable back-end, programs run without walls. Left out:
how a back-end is started (`backends`) and what it must prove (`selftest`).
"""

from __future__ import annotations

import os
import threading

from posttrain.errors import RequestError
from posttrain.rewards.code.sandbox import selftest

LADDER = ("bubblewrap", "namespaces", "landlock")
UNSAFE = "none"
"""No walls: only with `unsafe_local: true`."""
INSTALL = {
    "bubblewrap": "install bubblewrap (Debian, Ubuntu: apt install bubblewrap) and allow user namespaces",
    "namespaces": "allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
    "kernel.apparmor_restrict_unprivileged_userns=0) or run as root with CAP_SYS_ADMIN",
    "landlock": "boot Linux 5.13 or later with Landlock (`lsm=landlock,...` on its command line)",
}
_lock = threading.Lock()
_tested: dict[str, str | None] = {}


def tested(backend: str) -> str | None:
    """What the self-test found wrong with a back-end, or None. It runs once per process and back-end."""
    with _lock:
        if backend not in _tested:
            _tested[backend] = selftest.run(backend)
        return _tested[backend]


def choose(backend: str = "auto", unsafe_local: bool = False) -> str:
    """The back-end to use.

    Raises:
        RequestError: the named back-end cannot isolate programs, or none can (with what to install).
    """
    if backend != "auto":
        wrong = tested(backend)
        if wrong is None:
            return backend
        raise RequestError(
            f"sandbox back-end {backend!r} cannot isolate programs on this machine: {wrong}; "
            f"{INSTALL[backend]}"
        )
    reasons = []
    for name in LADDER:
        wrong = tested(name)
        if wrong is None:
            return name
        reasons.append(f"{name}: {wrong} ({INSTALL[name]})")
    if unsafe_local:
        return UNSAFE
    raise RequestError(
        "no sandbox back-end can isolate programs on this machine; "
        + "; ".join(reasons)
        + "; or set `unsafe_local: true` to run the model's programs with your own rights"
    )


def _after_fork() -> None:
    """A forked copy gets its own lock: another thread of the parent may hold the old one for good."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
