"""TODO posttrain.rewards.code.sandbox.ladder."""

from __future__ import annotations

import threading

from posttrain.errors import RequestError
from posttrain.rewards.code.sandbox.backends import _staged

LADDER = ("bubblewrap", "namespaces", "landlock")
UNSAFE = "none"
INSTALL = {
    "bubblewrap": "install bubblewrap (Debian, Ubuntu: apt install bubblewrap) and allow user namespaces",
    "namespaces": "allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
    "kernel.apparmor_restrict_unprivileged_userns=0) or run as root with CAP_SYS_ADMIN",
    "landlock": "a kernel of 5.13 or later with Landlock (`lsm=landlock,...` on its command line)",
}
_lock = threading.Lock()
_tested: dict[str, str | None] = {}


def after_fork() -> None:
    """In a forked copy: a lock of its own, and a library of its own where the owner's goes with the owner."""
    global _lock
    _lock = threading.Lock()
    _staged.cache_clear()


def tested(backend: str) -> str | None:
    """What the self-test of a back-end found wrong, None if nothing; run once a process."""
    from posttrain.rewards.code.sandbox.selftest import run

    with _lock:
        if backend not in _tested:
            _tested[backend] = run(backend)
        return _tested[backend]


def choose(backend: str = "auto", unsafe_local: bool = False) -> str:
    """The back-end to use.

    Raises:
        RequestError: the one that was asked for does not hold here, or none does; with reasons and what to install.
    """
    if backend != "auto":
        wrong = tested(backend)
        if wrong is None:
            return backend
        raise RequestError(f"sandbox back-end {backend!r} cannot isolate here: {wrong}; {INSTALL[backend]}")
    reasons = []
    for name in LADDER:
        wrong = tested(name)
        if wrong is None:
            return name
        reasons.append(f"{name}: {wrong} ({INSTALL[name]})")
    if unsafe_local:
        return UNSAFE
    raise RequestError(
        "no sandbox back-end can isolate programs here; "
        + "; ".join(reasons)
        + "; or `unsafe_local: true` to run programs of the model with your own rights"
    )
