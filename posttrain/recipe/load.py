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
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.build import Problems, to_dataclass
from posttrain.recipe.recipes import STAGES, Pipeline, Recipe, TrainRecipe
from posttrain.recipe.rules import check_pipeline, check_recipe
from posttrain.recipe.sections import Vllm

NOT_BUILT = {
    "reward": "reward-model training",
    "reward_model": "reward-model training",
    "rm": "reward-model training",
    "ppo": "PPO with a value model (rlvr is GRPO and related methods)",
    "environment": "training in tool or multi-turn environments",
}
"""Names of stages that do not exist yet, and what a user means by them."""


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe | Pipeline:
    """The recipe or pipeline in the file `path`, with `overrides` applied. Raises RequestError."""
    path = Path(path)
    values, lines = _read(path, overrides or [])
    problems = Problems()
    if "pipeline" in values:
        result = to_dataclass(Pipeline, values, "", problems)
        if result is not None:
            check_pipeline(result, path, problems)
    else:
        stage = values.get("stage")
        if stage in NOT_BUILT:
            raise RequestError(f"{path}: stage = {stage!r}: {NOT_BUILT[stage]} is not supported yet")
        if stage not in STAGES:
            text = "is missing" if stage is None else f"= {stage!r}"
            raise RequestError(f"{path}: stage {text}{did_you_mean(stage or '', STAGES)}")
        result = to_dataclass(STAGES[stage], values, "", problems)
        if result is not None:
            check_recipe(result, problems)
    if problems:
        raise RequestError(_describe(problems, path, lines, overrides or []))
    assert result is not None
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


def _read(path: Path, overrides: list[str]) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        near = [p.name for p in path.glob("*.yaml")]
        inside = f"; it contains {', '.join(sorted(near)[:5])}" if near else ""
        raise RequestError(f"{path} is a folder, not a recipe file{inside}") from None
    except (FileNotFoundError, NotADirectoryError):
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RequestError(f"{path}: no such recipe file{did_you_mean(path.name, near)}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: cannot be read: not UTF-8 text") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        config = OmegaConf.create(text) if text.strip() else None
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise RequestError(f"{path}{line}: not valid YAML: {reason}") from None
    if config is None or not OmegaConf.is_dict(config):
        raise RequestError(f"{path}: a recipe is a mapping that starts with `stage:` or `pipeline:`")
    for override in overrides:
        apply_override(config, override, path)
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise RequestError(f"{path}: {key}{str(error).splitlines()[0]}") from None
    return values, _lines(node)


def apply_override(config: Any, override: str, path: Path | str) -> None:
    """Set one `key=value` in an omegaconf `config`. A RequestError names it by `path`."""
    key, sign, text = override.partition("=")
    key = re.sub(r"\[(\d+)\]", r".\1", key.strip())
    if not sign or not key:
        raise RequestError(f"{override!r}: an override is written key=value, e.g. train.learning_rate=1e-5")
    value: Any = text
    if text and _parses(text):  # unresolved: ${...} means the recipe's keys, not these
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]
    try:
        OmegaConf.update(config, key, value, force_add=True)
    except (OmegaConfBaseException, IndexError, ValueError, TypeError) as error:
        raise RequestError(f"cannot apply {override!r} to {path}: {str(error).splitlines()[0]}") from None


def _parses(text: str) -> bool:
    """Whether `text` is a YAML value; other text, such as `a: b` or `@x`, is taken literally."""
    try:
        return not isinstance(yaml.safe_load(f"value: {text}")["value"], type(...))
    except (yaml.YAMLError, TypeError):
        return False


def _lines(node: Any, path: str = "") -> dict[str, int]:
    """Line (from 1) of every key and list item, by path."""
    found: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            found[name] = key.start_mark.line + 1
            found |= _lines(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found[f"{path}[{i}]"] = value.start_mark.line + 1
            found |= _lines(value, f"{path}[{i}]")
    return found


def _describe(problems: Problems, path: Path, lines: dict[str, int], overrides: list[str]) -> str:
    given = {re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", o.partition("=")[0].strip()) for o in overrides}
    out = []
    for problem in problems.found:
        if any(problem.path == key or problem.path.startswith(f"{key}.") for key in given):
            place = "command line"
        else:
            near = problem.path
            while near and near not in lines:
                near = re.sub(r"(\.[^.\[\]]*|\[\d+\]|^[^.\[\]]*)$", "", near)
            place = f"{path}:{lines[near]}" if near else str(path)
        out.append(f"{place}: {problem}")
    return "\n".join(out)


def to_dict(recipe: Recipe | Pipeline) -> dict[str, Any]:
    """The resolved recipe as plain values, which load as the same recipe."""
    return dataclasses.asdict(recipe)


def to_yaml(recipe: Recipe | Pipeline) -> str:
    """The resolved recipe as YAML that can be run again."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True, width=100)


NOT_IDENTITY = ("name", "output_dir", "evaluate", "checkpoints")
"""Keys that may change when a run is resumed: they do not affect what is learned."""
ADDED: dict[str, Any] = {
    "policy.kl": "k3_weighted",
    "rollout.vllm.max_logp_diff": 0.1,
    "data.on_change": "refuse",
}
"""Keys that recipes did not always have -> the value that means what was done before there was the key. With
that value a key does not enter the hash, so that runs of an earlier version resume."""
REREAD = {"dpo": {"data.train_on": {"last": "assistant", "assistant": "every assistant turn"}}}
"""Stage -> key that it once read otherwise -> value -> what the hash has in its place. A dpo stage took the
last reply whatever `data.train_on` was, which was `assistant` unless set: the default keeps its hash, and a
run that had a value without its meaning is not resumed with it."""


def recipe_hash(recipe: Recipe) -> str:
    """Hash of everything that decides the weights; a run only resumes with the same hash."""
    values = {k: v for k, v in _without_added(to_dict(recipe)).items() if k not in NOT_IDENTITY}
    for path, hashed in REREAD.get(recipe.stage, {}).items():
        section, key = path.split(".")
        values[section][key] = hashed.get(values[section][key], values[section][key])
    for key in ("cache_dir", "prepare_timeout", "on_change"):
        values["data"].pop(key, None)
    for key in ("batch_size", "deadline", "max_failed"):
        values.get("rollout", {}).pop(key, None)
    if vllm := values.get("rollout", {}).get("vllm"):
        vllm.pop("max_logp_diff", None)
        vllm |= {key: getattr(Vllm(), key) for key in ("server_base_url", "server_timeout")}
    if isinstance(recipe, TrainRecipe):
        for key in ("report_to", "logging_steps", "dataloader_num_workers", "log_samples"):
            values["train"].pop(key)
        heldout = recipe.evaluate.heldout
        values["heldout"] = (heldout.share, heldout.seed) if heldout and heldout.share else None
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _without_added(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of the values of a recipe, without the keys of `ADDED` that mean what was done before them."""
    values = copy.deepcopy(values)
    for path, before in ADDED.items():
        _forget(values, path.split("."), before)
    return values


def _forget(values: Any, keys: list[str], before: Any) -> None:
    """Removes the entry at `keys` from nested mappings where it is `before`; None on the way ends it."""
    *sections, last = keys
    for key in sections:
        values = values.get(key) if isinstance(values, dict) else None
    if isinstance(values, dict) and last in values and values[last] == before:
        del values[last]


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    """The leaves by path: {"data.sources[0].name": "x", ...}."""
    if isinstance(values, dict) and values:
        return {
            k: v
            for key, item in values.items()
            for k, v in flatten(item, f"{path}.{key}" if path else key).items()
        }
    if isinstance(values, list) and values:
        return {k: v for i, item in enumerate(values) for k, v in flatten(item, f"{path}[{i}]").items()}
    return {path: values}


def diff(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The leaves in which two resolved recipes differ: path -> (value in a, value in b)."""
    flat_a, flat_b = flatten(a), flatten(b)
    keys = list(dict.fromkeys([*flat_a, *flat_b]))
    return {k: (flat_a.get(k), flat_b.get(k)) for k in keys if flat_a.get(k) != flat_b.get(k)}


def changes(old: dict[str, Any], recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """As `diff`, of the values in a run's recipe.yaml, which an earlier version may have written, and
    `recipe`."""
    return diff(_without_added(old), _without_added(to_dict(recipe)))
