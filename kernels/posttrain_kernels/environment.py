"""The four environment variables that this package reads, in one place. They are read again at every call.

    TRITON_INTERPRET=1             run the kernels in Triton's interpreter, on a CPU, a thousand times slower.
                                   Triton reads it when it defines a kernel, so set it before the first use
    POSTTRAIN_KERNELS_AUTOTUNE=0   take the first launch configuration of a kernel without timing any
    POSTTRAIN_KERNELS_CACHE=DIR    folder of the configurations chosen so far (~/.cache/posttrain_kernels)
    POSTTRAIN_KERNELS_TILED=1      Mode B's forward pass as one Triton kernel (`tiled`)

A small file because it must lie below everything else: whether Triton can run must be known before it is
imported.
"""

import os
from pathlib import Path


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def autotuned() -> bool:
    return os.environ.get("POSTTRAIN_KERNELS_AUTOTUNE", "1") != "0"


def cache_folder() -> Path:
    folder = os.environ.get("POSTTRAIN_KERNELS_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "posttrain_kernels"


def tiled() -> bool:
    return os.environ.get("POSTTRAIN_KERNELS_TILED", "0") == "1"
