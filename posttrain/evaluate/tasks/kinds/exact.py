"""The exact probability of the reference answer as written, end of turn included; nothing is sampled.

Left out: the forward pass (`exact.py` of evaluate).
"""

from __future__ import annotations

from posttrain.errors import RequestError
from posttrain.evaluate.tasks.base import Exactly
from posttrain.evaluate.tasks.file_task import FileTask


class Exact(Exactly, FileTask):
    """The probability of the reference answer."""

    def check(self) -> None:
        if self.spec.prefill:
            raise RequestError(f"{self.path.name}: prefill is for sampled replies; begin the answer with it")
        super().check()
