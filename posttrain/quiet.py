"""Keeps the libraries' own chatter off a user's terminal. Works only before they are imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def quiet_libraries() -> None:
    """No progress bars where nobody watches; no word from DeepSpeed that a machine without a GPU has none.

    DeepSpeed says so on standard output, where `--json` prints. Whatever the user has set stays.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    devices = ("nvidia0", "nvidiactl", "kfd", "dri", "dxg", "accel")
    if not any((Path("/dev") / name).exists() for name in devices):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
