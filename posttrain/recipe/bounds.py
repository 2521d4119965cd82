"""Bounds that hold for every key of a recipe: numbers that can be computed with, names that can be files.

They are far beyond what anyone trains with, and say what the limit is; without them an absurd number fails
hours later, as an overflow of a library. Left out: values under `options` and `extra`, whose keys belong to
others; bounds of single keys (the other rules).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from posttrain.recipe.build import Problems, shown
from posttrain.recipe.recipes import Pipeline, Recipe, RolloutRecipe, TrainRecipe

WHOLE = 2**31 - 1
"""Largest whole number: steps, examples and tokens are counted in 32 bits below."""
REAL = 1e15
LARGEST: dict[str, float] = {
    "seed": 2**32 - 1,  # numpy's
    "learning_rate": 1000,
    "num_train_epochs": 1e6,
    "deadline": 1e9,  # seconds; the clocks of threads end at 2^63 nanoseconds
    "server_timeout": 1e9,
    "prepare_timeout": 1e7,  # minutes
    "num_proc": 256,
}
"""Key -> its largest value, where that differs."""
LEAST: dict[str, float] = {"seed": 0}
COLDEST = 1e-6
"""Temperatures between 0 and this overflow: logits and logarithms of weights are divided by them."""
LONGEST_NAME = 100
LONGEST_FILE = 200
"""Bytes of a name in UTF-8: files are named after it, with an ending, and 255 is the limit."""


def numbers(recipe: Recipe | Pipeline, problems: Problems) -> None:
    """Every typed number is finite and within its bounds. To be checked last: what has a problem is left
    out."""
    named = {problem.path for problem in problems.found}
    for at, value in _numbers(recipe, ""):
        if at not in named:
            sentence = _beyond(at, value)
            if sentence:
                problems.add(at, f"{at} = {value} {sentence}")


def _numbers(part: Any, at: str) -> Iterator[tuple[str, int | float]]:
    """(path, value) of every number of a section, those under `options` and `extra` left out."""
    if dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from _numbers(getattr(part, field.name), f"{at}.{field.name}" if at else field.name)
    elif isinstance(part, list):
        for i, item in enumerate(part):
            yield from _numbers(item, f"{at}[{i}]")
    elif isinstance(part, int | float) and not isinstance(part, bool):
        yield at, part


def _beyond(at: str, value: int | float) -> str:
    """What is wrong with a number; empty where nothing is."""
    key = at.rpartition(".")[2]
    if not math.isfinite(value):
        return "must be a finite number"
    largest = LARGEST.get(key, WHOLE if isinstance(value, int) else REAL)
    least = LEAST.get(key, -largest)
    if value > largest:
        return f"must be at most {largest:,.0f}"
    if value < least:
        return f"must be at least {least:,.0f}"
    if key == "temperature" and 0 < value < COLDEST:
        return f"must be at least {COLDEST:g}: it is divided by"
    return ""


def names(recipe: Recipe, problems: Problems) -> None:
    """The names of sources, tasks and rewards: keys of files and tables, words of the command line. The name
    of the run is checked as a folder's."""
    found = [(f"data.sources[{i}].name", source.name) for i, source in enumerate(recipe.data.sources)]
    if isinstance(recipe, TrainRecipe):
        found += [(f"evaluate.tasks[{i}].name", task.name) for i, task in enumerate(recipe.evaluate.tasks)]
        heldout = recipe.evaluate.heldout
        if heldout is not None and heldout.source is not None:
            found.append(("evaluate.heldout.source.name", heldout.source.name))
    if isinstance(recipe, RolloutRecipe):
        found += [(f"rewards[{i}].name", reward.name) for i, reward in enumerate(recipe.rewards)]
        found += [
            (f"rewards[{i}].label", r.label) for i, r in enumerate(recipe.rewards) if r.label is not None
        ]
    for at, text in found:
        if reason := unfit(text):
            problems.add(at, f"{at} = {shown(text)} cannot be a name: {reason}")


def folder_name(at: str, text: str, problems: Problems) -> None:
    """`text` becomes a folder."""
    bad = not text or text.startswith(".") or any(c in text for c in "@:\\ /") or text.endswith("..")
    if bad:
        problems.add(
            at,
            f"{at} = {shown(text)} cannot be a folder name: it must not be empty, start with a dot, end with "
            "two dots or contain a slash, a backslash, a colon, an @ or a space",
        )
    elif reason := unfit(text):
        problems.add(at, f"{at} = {shown(text)} cannot be a folder name: {reason}")


def unfit(text: str) -> str:
    """Why `text` cannot be the name of anything; empty where it can. Letters of all scripts are fine."""
    odd = next((c for c in text if not c.isprintable()), None)
    quote = next((c for c in text if c in "'\"`"), None)
    size = len(text.encode(errors="replace"))
    if not text.strip():
        return "it is empty"
    if odd is not None:
        return f"it contains {odd!a}, a character that does not print"
    if quote is not None:
        return f"it contains a quote ({quote})"
    if text.startswith("-"):
        return "it starts with a dash, which commands take for an option"
    if len(text) > LONGEST_NAME:
        return f"it has {len(text)} characters, and a name has at most {LONGEST_NAME}"
    if size > LONGEST_FILE:
        return f"it takes {size} bytes, and a name has at most {LONGEST_FILE}"
    return ""
