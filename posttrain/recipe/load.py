"""Reads a recipe: YAML file + `key=value` overrides -> a typed, checked, resolved recipe; saves and compares
them.

Unknown keys, wrong types, missing values and impossible combinations are all reported at once, each with its
file, line and path, as a `RequestError`. Files do not inherit from each other: a recipe is one file. Imports
no torch.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.recipe.reading import apply_override, read
from posttrain.recipe.recipes import STAGES, Pipeline, Recipe, TrainRecipe
from posttrain.recipe.rules import check_pipeline, check_recipe
from posttrain.recipe.sections import Vllm
from posttrain.recipe.sparse import without_defaults
from posttrain.recipe.written import at_or_below, at_paths, flatten, kept, tagged, written

NOT_BUILT = {
    "reward": "reward-model training",
    "reward_model": "reward-model training",
    "rm": "reward-model training",
    "ppo": "PPO with a value model (rlvr is GRPO and related methods)",
    "environment": "training in tool or multi-turn environments",
}
"""Names of stages that do not exist yet, and what a user means by them."""
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that UTF-8 or the names of files cannot have: NUL, halves of surrogate pairs."""


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe | Pipeline:
    """The recipe or pipeline in the file `path`, with `overrides` applied. Raises RequestError."""
    path = Path(path)
    values, texts, lines = _resolved(path, overrides or [])
    problems = Problems()
    if "pipeline" in values:
        result = to_dataclass(Pipeline, values, "", problems)
        if result is not None:
            check_pipeline(result, path, problems)
    else:
        stage = values.get("stage")
        if stage is None and "sweep" in values:
            raise RequestError(f"{path} is a sweep; start it with posttrain sweep {path}")
        if stage in NOT_BUILT:
            raise RequestError(f"{path}: stage = {stage!r}: {NOT_BUILT[stage]} is not supported yet")
        if stage not in STAGES:
            text = "is missing" if stage is None else f"= {stage!r}"
            raise RequestError(f"{path}: stage {text}{did_you_mean(stage or '', STAGES)}")
        result = to_dataclass(STAGES[stage], values, "", problems)
        if result is not None:
            check_recipe(result, problems)
    if problems:
        raise RequestError(describe(problems, path, lines, overrides or []))
    assert result is not None
    result.output_dir = os.path.expanduser(result.output_dir)  # no shell expands a ~ in a file
    leaves = at_paths(to_dict(result), texts)
    result.written = {at: (leaves[at], text) for at, text in texts.items() if at in leaves}
    return result


def load_stage(path: str | Path, overrides: list[str] | None, stage: str) -> Recipe:
    """Like `load`, for a command that runs only one kind of stage."""
    recipe = load(path, overrides)
    found = "pipeline" if isinstance(recipe, Pipeline) else recipe.stage
    if found != stage:
        raise RequestError(
            f"{path} is a {found} recipe, but this command runs {stage}; use posttrain run {path}"
        )
    return recipe


def _resolved(path: Path, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str], dict[str, int]]:
    """Values of the file and the overrides, what resolvers gave as it was written, and lines; all by path."""
    config, lines = read(path)
    for override in overrides:
        apply_override(config, override, path)
    try:
        texts = written(config)
        values = tagged(OmegaConf.to_container(config, resolve=True), texts)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        reason = str(error).splitlines()[0]
        if "GrammarParseError" in reason:  # it quotes what a resolver gave
            reason = "its interpolation cannot be read"
        raise RequestError(f"{path}: {key}{reason}") from None
    except RecursionError:
        raise RequestError(f"{path}: its interpolations are nested too deep") from None
    for at, value in flatten(values).items():
        if isinstance(value, str) and (bad := UNWRITABLE.search(value)):
            place = f"{path}:{lines[at]}" if at in lines else str(path)
            raise RequestError(f"{place}: {at} contains {bad[0]!r}, which no text file can hold; remove it")
    return values, texts, lines


def describe(problems: Problems, path: Path, lines: dict[str, int], overrides: list[str]) -> str:
    """A line for each problem, after its file and line, or `command line` where an override gave it."""
    given = {re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", o.partition("=")[0].strip()) for o in overrides}
    out = []
    for problem in problems.found:
        made = problem.path not in lines and any(key.startswith(f"{problem.path}.") for key in given)
        if made or any(problem.path == key or problem.path.startswith(f"{key}.") for key in given):
            place = "command line"
        else:
            near = problem.path
            while near and near not in lines:
                near = re.sub(r"(\.[^.\[\]]*|\[\d+\]|^[^.\[\]]*)$", "", near)
            place = f"{path}:{lines[near]}" if near else str(path)
        out.append(f"{place}: {problem}")
    return "\n".join(out)


def to_dict(recipe: Recipe | Pipeline) -> dict[str, Any]:
    """The resolved recipe as plain values."""
    return dataclasses.asdict(recipe)


def as_written(recipe: Recipe | Pipeline) -> dict[str, Any]:
    """As `to_dict`, but what resolvers give is as written (`${oc.env:TOKEN}`): what is saved and shown.

    It loads as the same recipe.
    """
    return kept(to_dict(recipe), recipe.written)


def to_yaml(recipe: Recipe | Pipeline, defaults: bool = True) -> str:
    """`as_written` as YAML that can be run again, with or without keys that have their default."""
    values = as_written(recipe)
    values = values if defaults else without_defaults(recipe, values)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


NOT_IDENTITY = ("name", "output_dir", "evaluate", "checkpoints")
"""Keys that may change when a run is resumed: they do not affect what is learned."""
ADDED: dict[str, Any] = {
    "policy.kl": "k3_weighted",
    "rollout.vllm.max_logp_diff": 0.1,
    "data.on_change": "refuse",
    "data.num_proc": None,
    "data.template_options": {},
    "data.max_characters": 1_000_000,
    "data.sources.roles": "strict",
    "data.sources.ignore": [],
    "data.sources.on_error": "stop",
    "data.sources.columns.tools": None,
    "data.sources.columns.reasoning": None,
    "evaluate.tasks.temperatures": [],
    "loss.label_smoothing": 0.0,
    "loss.entropy_bonus": 0.0,
}
"""Keys that recipes did not always have -> their default, with which they are not a difference from a recipe
without them, nor enter the hash, so that runs of an earlier version resume. `policy.kl` does what was done
before; the two after it never enter the hash, as they decide no weight. What those of `data` change in the
rows, the fingerprint of the data says."""
OPEN: dict[str, Any] = {
    "evaluate.tasks.samples": 1,
    "evaluate.tasks.k": [1],
    "evaluate.tasks.temperature": 1.0,
    "evaluate.tasks.top_p": 1.0,
    "evaluate.tasks.max_new_tokens": 512,
    "evaluate.tasks.file": None,
}
"""Keys that a recipe may leave open (null) -> what they were before, when they could not be: neither is a
difference from the other."""
REREAD = {"dpo": {"data.train_on": {"last": "assistant", "assistant": "every assistant turn"}}}
"""Stage -> key that it once read otherwise -> value -> what the hash has in its place. A dpo stage took the
last reply whatever `data.train_on` was, which was `assistant` unless set: the default keeps its hash, and a
run that had a value without its meaning is not resumed with it."""


CREDENTIAL = re.compile(r"[._](token|secret|passw(or)?d|credentials?|(api|access|secret)_?key)$", re.I)
"""Keys whose value is a secret and not a setting."""


def recipe_hash(recipe: Recipe) -> str:
    """Hash of everything that decides the weights; a run only resumes with the same hash.

    It is of the values that resolvers give, so that another `${oc.env:RATE}` is another run; of a token or
    password it is of the expression, so that a renewed one is not.
    """
    secrets = {at: pair for at, pair in recipe.written.items() if CREDENTIAL.search(at)}
    values = _without_added(kept(to_dict(recipe), secrets, plain=True))
    values = {k: v for k, v in values.items() if k not in NOT_IDENTITY}
    for path, hashed in REREAD.get(recipe.stage, {}).items():
        section, key = path.split(".")
        values[section][key] = hashed.get(values[section][key], values[section][key])
    for key in ("cache_dir", "prepare_timeout", "on_change", "num_proc"):
        values["data"].pop(key, None)
    for key in ("batch_size", "deadline", "max_failed"):
        values.get("rollout", {}).pop(key, None)
    if vllm := values.get("rollout", {}).get("vllm"):
        vllm.pop("max_logp_diff", None)
        # earlier hashes contain the defaults of the address; it may change when a run is resumed
        vllm |= {key: getattr(Vllm(), key) for key in ("server_base_url", "server_timeout")}
    if isinstance(recipe, TrainRecipe):
        for key in ("report_to", "logging_steps", "dataloader_num_workers", "log_samples"):
            values["train"].pop(key)
        heldout = recipe.evaluate.heldout
        values["heldout"] = (heldout.share, heldout.seed) if heldout and heldout.share else None
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _without_added(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of the values of a recipe, without the keys of `ADDED` and `OPEN` that mean what was done before
    them."""
    values = copy.deepcopy(values)
    for path, before in [*ADDED.items(), *OPEN.items(), *((path, None) for path in OPEN)]:
        _forget(values, path.split("."), before)
    return values


def _forget(values: Any, keys: list[str], before: Any) -> None:
    """Removes the entry at `keys` from nested mappings, and from each item of lists, where it is `before`;
    None on the way ends it."""
    *sections, last = keys
    for at, key in enumerate(sections):
        values = values.get(key) if isinstance(values, dict) else None
        for item in values if isinstance(values, list) else ():
            _forget(item, keys[at + 1 :], before)
    if isinstance(values, dict) and last in values and values[last] == before:
        del values[last]


def diff(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The leaves in which two resolved recipes differ: path -> (value in a, value in b)."""
    flat_a, flat_b = flatten(a), flatten(b)
    keys = list(dict.fromkeys([*flat_a, *flat_b]))
    return {k: (flat_a.get(k), flat_b.get(k)) for k in keys if flat_a.get(k) != flat_b.get(k)}


def changes(old: dict[str, Any], recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """As `diff`, of the values in a run's recipe.yaml, which an earlier version may have written, and
    `recipe`. What a resolver gave is never a value of it: an earlier version, which saved it, has `...`."""
    old = _without_added(old)
    resolved = diff(old, _without_added(to_dict(recipe)))
    found = min(diff(old, _without_added(as_written(recipe))), resolved, key=len)
    texts = {at: text for at, (_, text) in recipe.written.items()}
    above = {at: next((a for a in texts if at_or_below(at, a)), None) for at in found}
    return {
        at: pair if (a := above[at]) is None else (_expression(pair[0]), texts[a])
        for at, pair in found.items()
    }


def _expression(value: Any) -> Any:
    return value if isinstance(value, str) and "${" in value else ...
