"""Software versions, commit and devices of a run, and its peak memory."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from posttrain import __version__
from posttrain.base.process import usable_cores

PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "datasets", "peft", "triton")


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {"posttrain": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Host, CPU cores this process may use, and GPUs."""
    out: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu_cores": usable_cores(),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return out


def commit() -> str | None:
    """Commit of the posttrain checkout, with `+` where the tree has changes; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
        dirty = subprocess.run(
            ["git", "-C", root, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (head.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or None


def memory_mib(device: torch.device) -> dict[str, float]:
    """Peak memory of this rank in MiB: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return {"peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}
