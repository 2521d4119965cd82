"""How many cores there are to use. One line, in one place."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores this process may run on, at least 1."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ) or 1
