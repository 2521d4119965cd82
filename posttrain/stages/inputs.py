"""What a resumed run depends on besides its recipe and its rows: other models, and the code of rewards.

Recorded in every checkpoint.json, by stages that sample in run.json, and compared with what is there when the
run goes on. Left out: the start model of a stage that trains (`train.py`); the rows (`changes.py`); modules
that a reward's own module imports; judges, which are servers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.base.resolved import Resolved
from posttrain.errors import RequestError
from posttrain.models.load import commit_of
from posttrain.recipe import PairsRecipe, Recipe, SampleRecipe
from posttrain.recipe.plan import NamedReference, reference_of
from posttrain.rewards.registry import Spec, find
from posttrain.rundir.adapters import identity
from posttrain.rundir.checkpoints import resolve
from posttrain.rundir.directory import REMEDY, RunDir

log = logging.getLogger(__name__)
Inputs = dict[str, Any]
"""`models`: key of the recipe -> `place` and `identity`; `reward_code`: key -> `module` and `xxh3`."""
CHANGED = "changed_rewards"
"""Key of run.json: a sentence for each reward whose code changed between two starts."""


def inputs_of(recipe: Recipe) -> Inputs:
    """The inputs of `recipe` as they are now; reads the weights of models that are no run's checkpoints.

    Raises:
        RequestError: a model or a reward is missing.
    """
    code = {}
    for key, spec, _ in _rewards(recipe):
        if spec.code is not None:
            code[key] = dict(zip(("module", "xxh3"), spec.code, strict=True))
    found = {"models": {m.key: _model(m) for m in _models(recipe)}, "reward_code": code}
    return {name: values for name, values in found.items() if values}


def refuse_changed_models(of: Path, before: Inputs, now: Inputs) -> None:
    """Compares the models that `of`, a checkpoint or a run, was made with, with those that are there now.

    Raises:
        RequestError: one of them has changed; the message names its key.
    """
    known = before.get("models", {})
    for key, model in now.get("models", {}).items():
        if key not in known:  # an earlier version did not record it
            log.info("%s does not say which model %s was: it is not compared", of, key)
        elif known[key]["identity"] != model["identity"]:
            raise RequestError(
                f"{key}: the model is another one than that of {of}: recorded {_said(known[key])}, now "
                f"{_said(model)}; restore it, or {REMEDY}"
            )


def changed_code(of: Path, before: Inputs, now: Inputs) -> list[str]:
    """A sentence for each reward whose code is not that of `of`. It may have been mended: no refusal."""
    known, found = before.get("reward_code", {}), []
    for key, code in now.get("reward_code", {}).items():
        if key not in known:
            log.info("%s does not say what the code of %s was: it is not compared", of, key)
        elif known[key]["xxh3"] != code["xxh3"]:
            found.append(
                f"{key}: the code of {code['module']} has changed since {of.name} (recorded "
                f"{known[key]['xxh3'][:8]}, now {code['xxh3'][:8]}): rewards before and after cannot be "
                "compared"
            )
    return found


def note_changed(run: RunDir, changed: list[str]) -> None:
    """Warns of what `changed_code` found, and records it in run.json; main process only."""
    for sentence in changed:
        log.warning("%s: %s", run.path, sentence)
    if changed:
        run.update(**{CHANGED: list(dict.fromkeys([*run.info().get(CHANGED, []), *changed]))})


def _said(model: dict[str, str]) -> str:
    return f"{model['identity'][:8]} ({model['place']!r})"


def _model(named: NamedReference) -> dict[str, str]:
    place = resolve(named.place)[0]
    written = named.place if isinstance(named.place, Resolved) else str(place)
    return {"place": written, "identity": identity(place, named.revision, commit_of)}


def _models(recipe: Recipe) -> Iterator[NamedReference]:
    if (reference := reference_of(recipe)) is not None:
        yield reference
    if isinstance(recipe, SampleRecipe) and recipe.model.init is not None:
        yield NamedReference(recipe.model.init, "model.init", recipe.model.revision)
    if isinstance(recipe, PairsRecipe) and recipe.pairing.teacher is not None:
        yield NamedReference(recipe.pairing.teacher, "pairing.teacher")
    for key, spec, options in _rewards(recipe):
        if spec.model and isinstance(options.get(spec.model), str):
            yield NamedReference(options[spec.model], f"{key}.options.{spec.model}")


def _rewards(recipe: Recipe) -> Iterator[tuple[str, Spec, dict[str, Any]]]:
    """(key, reward, options) of every reward of `recipe`, also of those in the options of built-in ones."""
    for i, each in enumerate(getattr(recipe, "rewards", ())):
        yield from _within(f"rewards[{i}]", each.name, each.options or {})


def _within(key: str, name: str, options: dict[str, Any]) -> Iterator[tuple[str, Spec, dict[str, Any]]]:
    spec = find(name)
    yield key, spec, options
    if not spec.built_in:
        return
    for option, value in options.items():
        if option == "verifier" and isinstance(value, str):
            yield from _within(f"{key}.options.verifier", value, options.get("verifier_options") or {})
        for i, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, dict) and isinstance(part.get("name"), str):
                at = f"{key}.options.{option}" + (f"[{i}]" if isinstance(value, list) else "")
                yield from _within(at, part["name"], part.get("options") or {})
