"""Clocks, memory and the machine: what the benchmarks of this folder share.

Variants are timed in one process in turns, so that other processes or a warm chip affect all of them alike.
Everything is timed in two passes: a difference between variants that is smaller than that between their
passes is noise.

Left out: several GPUs.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "transformers",
    "trl",
    "accelerate",
    "liger-kernel",
    "cut-cross-entropy",
    "quack-kernels",
    "nvidia-cutlass-dsl",
)
PASSES = 2
MIB = 2**20


def machine() -> dict:
    """The machine this runs on; a result file is named after its GPU or CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": card.name,
            "gpu_memory_gib": round(card.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return found


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of the packages that affect a result; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """Short commit of this checkout, with `+` where tracked files differ; None outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


def stamp(kind: str, settings: dict) -> dict:
    """The head of every result file."""
    return {
        "kind": kind,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": machine(),
        "load_average": list(os.getloadavg()),  # of 1, 5, 15 minutes before the start: other work
        "versions": versions(),
        "settings": settings,
    }


@contextlib.contextmanager
def cold_caches() -> Iterator[str]:
    """An empty folder for compiled kernels; those of earlier runs would hide the latency of the first
    call."""
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as folder:
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
        os.environ["POSTTRAIN_KERNELS_CACHE"] = f"{folder}/choices"
        yield folder


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Time of one call: between two events on a GPU, on the clock of the host elsewhere."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def wall(step: Callable[[], object], device: torch.device) -> float:
    """Time of one call on the host's clock, including everything it compiles or tunes."""
    settle(device)
    start = time.perf_counter()
    step()
    settle(device)
    return time.perf_counter() - start


def interleave(
    steps: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[list[float]]]:
    """Seconds of each step, [PASSES][repeats]. Each round starts with another step."""
    names = list(steps)
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(PASSES):
        for name in names:
            found[name].append([])
        for turn in range(repeats):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name][-1].append(seconds(steps[name], device))
    return found


def summary(passes: list[list[float]]) -> dict:
    """Milliseconds: the median over both passes, the median of each pass, the best, and the relative
    difference of the passes (`spread`)."""
    medians = [1e3 * statistics.median(times) for times in passes]
    both = [t for times in passes for t in times]
    middle = 1e3 * statistics.median(both)
    return {
        "ms": middle,
        "ms_passes": medians,
        "ms_min": 1e3 * min(both),
        "spread": (max(medians) - min(medians)) / middle,
        "calls": len(both),
    }


# ---- memory ----


def tidy(device: torch.device) -> None:
    """Free unused memory, so that it does not count towards the next variant."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


class Peak:
    """Peak memory since `start`, above what was in use then: allocator on CUDA, resident set on Linux."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def start(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the current resident set
            self.before = _resident_peak()

    def mib(self) -> float:
        now = torch.cuda.max_memory_allocated() if self.cuda else _resident_peak()
        return (now - self.before) / MIB

    @staticmethod
    def known(device: torch.device) -> bool:
        return device.type == "cuda" or sys.platform == "linux"


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def child_environment() -> dict[str, str]:
    """For a child whose resident set is read: every block above 256 KiB is returned to the system when
    freed."""
    return os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": "0"}


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# ---- files ----


def result_path(kind: str, found: dict) -> Path:
    """results/<kind>-<machine>-<date>.json"""
    where = found.get("gpu") or found["cpu"]
    words = "".join(c if c.isalnum() else " " for c in where.lower()).split()
    name = "-".join([kind, *words[:4]])
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return Path(__file__).parent / "results" / f"{name}-{date}.json"


def clean(value):
    """Floats to six significant digits, so that a result file can be read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value
