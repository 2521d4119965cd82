"""Bounds on numbers, as rules use them."""

from __future__ import annotations

import math

from posttrain.recipe.build import Problems


def positive(
    problems: Problems, path: str, value: float | None, least: float = 0, strict: bool = True
) -> None:
    """`value` must be finite and above (`strict`) or at least `least`; None passes."""
    if value is None:
        return
    bad = math.isnan(value) or math.isinf(value) or (value <= least if strict else value < least)
    if bad:
        problems.add(
            path, f"{path} = {value} must be {'above' if strict else 'at least'} {least:g}"
        )


def share(problems: Problems, path: str, value: float | None) -> None:
    """`value` must lie in [0, 1]; None passes."""
    if value is not None and not 0 <= value <= 1:
        problems.add(path, f"{path} = {value} must lie between 0 and 1")
