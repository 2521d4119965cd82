"""What the runs of a sweep are called, and how their values are spelt.

Left out: which runs there are (stages/grid.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from posttrain.base.files import plain
from posttrain.recipe.bounds import LONGEST_NAME

LONGEST_VALUE = 24
"""Characters of a value that stand in the name of a run as they are."""
PLAIN = re.compile(r"[A-Za-z0-9._-]*[A-Za-z0-9_-]")
"""What needs no quotes in a shell, and may end the name of a folder."""


@dataclass(frozen=True)
class Naming:
    """How the runs of a sweep are called: `rlvr_k-8_learning_rate-0.0003_seed-1`.

    A name depends on its run alone, so that values that are added later do not change it. `keys`: those with
    several values; `seeded`: whether seeds were asked for.
    """

    keys: tuple[str, ...]
    seeded: bool

    def name(self, stage: str, values: Mapping[str, Any], seed: int) -> str:
        """The name of the run of `stage`, empty for a recipe, with these values of some of the keys."""
        short = short_keys(self.keys)
        parts = [stage] if stage else []
        parts += [f"{short[key]}-{value_text(values[key])}" for key in self.keys if key in values]
        name = "_".join([*parts, f"seed-{seed}"] if self.seeded else parts)
        return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 7]}-{_digest(name)}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each key that no other key has; never `seed`, which names have for the seeds."""
    found = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [f".{other}" for other in keys if other != key]
        free = [
            ending
            for ending in endings
            if ending != "seed"
            and not ending[:1].isdigit()
            and not any(other.endswith(f".{ending}") for other in others)
        ]
        found[key] = _word((free or endings[-1:])[0], LONGEST_NAME)
    return found


def value_text(value: Any) -> str:
    """A value in the name of a run: as it is where it is short and needs no quotes, else the end of it and a
    hash."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        short = f"{value:.12g}"
        text = short if float(short) == value else repr(value)
        return re.sub(r"e([-+])0*", lambda m: f"e{m[1].strip('+')}", text)
    if isinstance(value, list) and all(isinstance(item, bool | int | float) for item in value):
        text = "-".join(map(value_text, value))
        if text and len(text) <= LONGEST_VALUE:
            return text
    return _word(value if isinstance(value, str) else json.dumps(value, sort_keys=True), LONGEST_VALUE)


def spelt(value: Any) -> str:
    """A value as YAML has it, on one line; numbers as in names."""
    if isinstance(value, int | float):
        return value_text(value)
    text = yaml.safe_dump(
        [plain(value)], default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )[1:-2]
    return json.dumps(plain(value), ensure_ascii=False) if "\n" in text else text


def _word(text: str, longest: int) -> str:
    if len(text) <= longest and PLAIN.fullmatch(text):
        return text
    end = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")
    while len(end) > 16 and "-" in end:  # whole words, from the end
        end = end.partition("-")[2]
    return "-".join([part for part in (end[-16:].strip("."), _digest(text)) if part])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
