"""A sweep as it is asked for: a recipe or a pipeline, keys with their values, seeds.

It is written on the command line (`loss.n=1,16,256 --seeds 3`) or as a YAML that starts with `sweep:`. Left
out: the names of its runs (`sweep_names.py`), and which they are (stages/grid.py).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.errors import RequestError
from posttrain.recipe.bounds import LARGEST, folder_name
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.recipe.load import describe
from posttrain.recipe.reading import Unfit, apply_override, parsed, read
from posttrain.recipe.recipes import KEYS
from posttrain.recipe.written import escaped, flatten

MOST = 1000
"""Runs of a sweep."""
QUOTED = re.compile(r"'(?:[^']|'')*'(?!')|\"(?:[^\"\\]|\\.)*\"")
CLOSES = {"[": "]", "{": "}", "(": ")"}
LIST_OF_SEEDS = re.compile(r"\d+(,\d+)*,?")


@dataclass
class SweptKey:
    """A key of the recipe and its values, in a pipeline after the name of its stage: `rlvr.policy.k`."""

    key: str
    values: list[Any]
    """As overrides: `${...}` means the recipe's keys."""
    texts: list[str] = field(default_factory=list, init=False, compare=False)
    """The values as the command line has them, for messages; empty of a file."""


@dataclass
class Sweep:
    """A run for each combination of values, and each seed, in `<output_dir>/<sweep>/`."""

    sweep: str
    """Empty: the name of the recipe or pipeline, and `-sweep`."""
    recipe: str
    """Path of a recipe or a pipeline; in a file relative to it."""
    keys: list[SweptKey] = field(default_factory=list)
    """One with a single value applies to every run and is no part of their names."""
    seeds: int | list[int] | None = None
    """The seeds, or how many from the recipe's own on. They set `train.seed`, and `seed` of the stages that
    sample. Default: the recipe's own alone, which is then no part of the names."""
    parallel: int | None = None
    """Runs that may be made at the same time. Default: the pipeline's number; 1 for a recipe."""
    output_dir: str | None = None
    """Default: that of the recipe or pipeline."""
    placed: list[str] = field(default_factory=list, init=False, compare=False)
    """The override that sets `output_dir`; checked, and expressions resolved, with the recipe or pipeline."""


def is_sweep(path: str | Path) -> bool:
    """Whether the YAML at `path` is a sweep. Raises `RequestError` where it cannot be read."""
    return "sweep" in read(Path(path))[0]


def load_sweep(path: str | Path, overrides: list[str]) -> Sweep:
    """The sweep in the file `path`. Raises `RequestError`."""
    path = Path(path)
    config, lines = read(path)
    for override in overrides:
        apply_override(config, override, path)
    values = OmegaConf.to_container(config, resolve=False)
    keys = {"keys": values.pop("keys")} if "keys" in values else {}
    try:
        values = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise RequestError(f"{path}: {str(error).splitlines()[0]}") from None
    problems = Problems()
    values = _own(values, problems)
    sweep = to_dataclass(Sweep, values | keys, "", problems)
    if sweep is not None:
        folder_name("sweep", sweep.sweep, problems)
        if not sweep.recipe.strip():
            problems.add("recipe", "recipe is empty; it takes the path of a recipe or a pipeline")
        problems.require_above("parallel", sweep.parallel)
    if problems:
        raise RequestError(describe(problems, path, lines, overrides))
    sweep.recipe = str(path.parent / sweep.recipe)
    if sweep.output_dir is not None:
        sweep.placed = [override_of("output_dir", escaped(sweep.output_dir))]
    check_sweep(sweep, str(path))
    return sweep


def _own(values: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """`values` of a file and its overrides without those that are of the recipe, which become problems."""
    own = [f.name for f in fields(Sweep) if f.init]
    alien = [
        key for key in values if key not in (*own, "name") and (key in KEYS or isinstance(values[key], dict))
    ]
    for at in [at for key in alien for at in flatten(values[key], key)]:
        problems.add(
            at,
            f"{at} is no key of a sweep ({', '.join(own)}); keys of the recipe stand below keys, as"
            f" {{key: {at}, values: [...]}}",
        )
    return {key: value for key, value in values.items() if key not in alien}


def sweep_of_words(recipe: str, words: list[str]) -> Sweep:
    """The sweep of `recipe` with keys as on the command line: `loss.n=1,16`. Raises `RequestError`."""
    sweep = Sweep("", recipe)
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key.strip():
            raise RequestError(
                f"{word!r}: a key of a sweep is written key=value,value without spaces, e.g. loss.n=1,16,256"
            )
        if key.strip() in ("seeds", "parallel"):
            raise RequestError(f"{word!r}: of a recipe it is an option; write --{key.strip()} {text.strip()}")
        try:
            pieces = split(text)
        except Unclosed as error:
            end = CLOSES.get(str(error), str(error))
            kind = "single" if end == '"' else "double"
            raise RequestError(
                f"{word!r} opens a {error} that is not closed; close it with {end}, or put text that has it "
                f"in {kind} quotes"
            ) from None
        place = normal(key) == "output_dir" and len(pieces) == 1  # where the sweep itself lies
        if not all(pieces) and not place:
            empty = "an empty value" if text.strip() else "no value"
            raise RequestError(f"{word!r} has {empty}; write {key}=1,16,256, or {key}='\"\"' for empty text")
        try:
            values = [parsed(piece) for piece in pieces]
        except Unfit as unfit:
            raise RequestError(f"{word!r}: {unfit}") from None
        if place:
            if sweep.placed:
                raise RequestError("command line: output_dir is given twice; a sweep lies in one folder")
            sweep.placed = [override_of("output_dir", values[0])]
        else:
            swept = SweptKey(key.strip(), values)
            swept.texts = pieces
            sweep.keys.append(swept)
    check_sweep(sweep, "command line")
    return sweep


def seeds_of_text(text: str) -> int | list[int]:
    """Of `3` the number of seeds, of `0,5,9` the seeds. Raises `RequestError`."""
    if not LIST_OF_SEEDS.fullmatch(text):
        raise RequestError(f"--seeds {text} must be a number of seeds, such as 3, or a list, such as 0,5,9")
    seeds = [int(word) for word in text.split(",") if word]
    return seeds if "," in text else seeds[0]


def split(text: str) -> list[str]:
    """The parts of `text` between commas that stand outside brackets and quotes.

    A quote opens where a value may begin: that of `it's` is a letter. Raises `Unclosed`.
    """
    parts, opened, i = [""], "", 0
    while i < len(text):
        before = parts[-1].rstrip()[-1:]
        quoted = QUOTED.match(text, i) if before in ("", *"[{(:,") else None
        part = quoted[0] if quoted else text[i]
        if part in ("'", '"') and before in ("", *"[{(:,"):
            raise Unclosed(part)
        i += len(part)
        if part == "," and not opened:
            parts.append("")
            continue
        if part in CLOSES:
            opened += part
        elif opened and part == CLOSES[opened[-1]]:
            opened = opened[:-1]
        parts[-1] += part
    if opened:
        raise Unclosed(opened[0])
    return [part.strip() for part in parts]


class Unclosed(ValueError):
    """A bracket or quote that is not closed: it would take the values after it into its own."""


def check_sweep(sweep: Sweep, where: str) -> None:
    """Raises `RequestError` for what is wrong whatever the recipe is."""
    keys = [normal(swept.key) for swept in sweep.keys]
    for i, (key, swept) in enumerate(zip(keys, sweep.keys, strict=True)):
        if not key:
            raise RequestError(f"{where}: keys[{i}].key is empty; write a key of the recipe, such as loss.n")
        if why := _misspelt(key):
            raise RequestError(f"{where}: {swept.key}: {why}")
        if not swept.values:
            raise RequestError(f"{where}: {swept.key} has no values; list at least one")
        if keys.count(key) > 1:
            raise RequestError(f"{where}: {swept.key} is given twice; list all its values once")
    check_seeds(sweep.seeds, where)


def check_seeds(seeds: int | list[int] | None, where: str) -> None:
    """Raises `RequestError` for seeds, or a number of them, that are none, repeated or out of bounds."""
    listed = seeds if isinstance(seeds, list) else []
    if seeds == [] or (isinstance(seeds, int) and seeds < 1):
        raise RequestError(f"{where}: seeds = {seeds} asks for no run; give at least one seed")
    if isinstance(seeds, int) and seeds > MOST:
        raise RequestError(f"{where}: {seeds:,} seeds are more than {MOST:,}, the most runs of a sweep")
    for seed in listed:
        if listed.count(seed) > 1:
            raise RequestError(f"{where}: seed {seed} is listed twice; each run needs its own")
        if not 0 <= seed <= LARGEST["seed"]:
            raise RequestError(f"{where}: seed {seed} must be from 0 to {LARGEST['seed']:,}")


def normal(key: str) -> str:
    """`data.sources[0][weight]` as `data.sources.0.weight`."""
    return re.sub(r"\[\s*([^][]*?)\s*\]", r".\1", key.strip()).removeprefix(".")


def _misspelt(key: str) -> str:
    """Why `key`, as `normal` gives it, is no key of a recipe or a second spelling of one; empty where it is
    none."""
    for part in key.split("."):
        if not part.strip() or "[" in part or "]" in part:
            return "its parts stand between single dots, as in data.sources.0.weight"
        try:
            number = int(part)
        except ValueError:
            continue
        if str(abs(number)) != part:
            near = f"; write {number}, not {part}" if number >= 0 else f", so {part} is none of them"
            return f"the items of a list are numbered 0, 1, 2, ...{near}"
    return ""


def value_at(values: Any, key: str) -> Any:
    """What a recipe has at `key`, items of lists by number; `...` where there is nothing."""
    for part in key.split("."):
        if isinstance(values, list):
            values = dict(zip(map(str, range(len(values))), values, strict=True))
        values = values.get(part, ...) if isinstance(values, dict) else ...
    return values


def override_of(key: str, value: Any) -> str:
    """`key=value` that sets `key` to `value`: JSON is YAML, and leaves nothing to how a text looks."""
    if isinstance(value, float) and not math.isfinite(value):  # but for these
        return f"{key}={yaml.safe_dump(value).split()[0]}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"
