"""Which back-end computes a call, and the parts in which the back-ends differ.

The Triton modules are imported here and nowhere else, inside functions: Triton is an optional package,
importing it takes about a second, and a process that stays on the torch back-end needs none of it.

Left out: the computation itself (`chunked`, `tokens`, `reference`).
"""

import functools
import importlib.util
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks, environment, rows_torch, segments, tokens_torch
from .spec import work_dtype

logger = logging.getLogger("posttrain_kernels")

BACKENDS = ("triton", "torch", "reference")
_announced: set[tuple[str, str]] = set()


class Operations(NamedTuple):
    """What `chunked` and `tokens` take from a back-end."""

    rows: type  # `Rows`: statistics of rows of logits and their D (see `rows`)
    segments: type  # `Segments`: log-probabilities -> loss and gradient scales (see `segments`)
    slices: type  # `Slice`: Mode B's gradient by a slice of logits (see `tokens_torch`)
    tiled: Any = None  # the module `tiled`, or None where the back-end has no such forward pass


def available_backends(device: str = "cpu") -> tuple[str, ...]:
    """Names that `backend=` accepts on `device` in addition to "auto", fastest first."""
    return BACKENDS if why_not_triton(torch.device(device)) is None else BACKENDS[1:]


def why_not_triton(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """None where the Triton back-end can run, else the reason why it cannot."""
    if dtype == torch.float64:
        return 'computes in fp32; fp64 inputs need backend="torch"'
    if not _triton_installed():
        return "is not installed: pip install triton"
    if device.type != "cuda" and not environment.interpreted():
        return f"needs a GPU, and hidden is on {device} (TRITON_INTERPRET=1 emulates one for tests)"
    return None


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def choose(backend: str, hidden: Tensor, weight: Tensor, only_in_torch: str | None = None) -> str:
    """The name of the back-end that runs, logged once per device. `only_in_torch`: an argument of the call
    that Triton has no kernel for. ValueError: unknown, or it cannot run here."""
    checks.choice("backend", backend, ("auto", *BACKENDS))
    obstacle = why_not_triton(hidden.device, work_dtype(hidden, weight))
    if only_in_torch is not None:
        obstacle = f"has no kernel for {only_in_torch}"
    if backend == "triton" and obstacle is not None:
        raise ValueError(f'backend: "triton" {obstacle}')
    name = backend
    if backend == "auto":
        name = "triton" if hidden.is_cuda and obstacle is None else "torch"
    if (name, hidden.device.type) not in _announced:
        _announced.add((name, hidden.device.type))
        reason = f"; triton {obstacle}" if hidden.is_cuda and name == "torch" and obstacle else ""
        logger.info("the loss runs on the %s back-end (%s%s)", name, hidden.device.type, reason)
    return name


def operations(backend: str) -> Operations:
    """The parts of "triton" or "torch"; the reference needs none."""
    if backend == "triton":
        from . import rows_triton, segments_triton, tiled, tokens_triton

        return Operations(rows_triton.Rows, segments_triton.Segments, tokens_triton.Slice, tiled)
    return Operations(rows_torch.Rows, segments.Segments, tokens_torch.Slice)
