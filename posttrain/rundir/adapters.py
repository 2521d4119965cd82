"""Adapters on disk: the chain of folders from an adapter down to the full model that it changes.

An adapter may lie on another one: the third of three LoRA stages is an adapter on an adapter on an adapter on
a model. `posttrain/models/load.py` loads a chain as one model. Left out: whether an adapter fits its base
(`adapter_fit.py`), loading and merging, adapters that are only on a hub (loading finds those). Reads JSON;
imports no torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.errors import RequestError
from posttrain.rundir.proof import MARKER, NAME, Damaged, digest, proved_facts, refuse_damaged

CONFIG = "adapter_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
FULL = ("model*.safetensors", "pytorch_model*.bin")
UNREPEATABLE = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Initialisations of peft that subtract from the base what a later loading of the adapter does not find
again: it is drawn at random, or needs data."""
ELSEWHERE = ("base_model_name_or_path", "revision", "inference_mode")
"""Keys of an adapter's config that say where its base is and not what the adapter does to it."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter says of itself."""

    place: str
    """Its folder, or its hub id."""
    base: str
    """Folder or hub id of the model or adapter that it changes."""
    revision: str | None
    """Of `base`, where that is a hub id."""
    config: dict[str, Any]
    """Its adapter_config.json."""
    options: dict[str, Any]
    """`model.options` of the stage that trained it: they change the forward, and no config.json has them."""
    start: str | None
    """The `identity` of its base when it was trained; None where nothing says it."""


def adapter_in(folder: str | Path) -> Adapter | None:
    """The adapter in `folder`; None where there is none. Raises `RequestError`, see `adapter_of`."""
    file = Path(folder) / CONFIG
    return adapter_of(str(folder), file) if file.is_file() else None


def adapter_of(place: str, file: Path) -> Adapter:
    """The adapter at `place` whose adapter_config.json is `file`.

    A relative path to its base is looked up from the working directory and from the folders above `file`.

    Raises:
        RequestError: the file is damaged, the base is missing or ambiguous, a full model lies beside it, or
            it is an adapter of another kind.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{file} is damaged or not an adapter's config ({error!r})") from error
    if not base or not isinstance(base, str):
        raise RequestError(f"{file} names no base model (base_model_name_or_path), so it cannot be loaded")
    whole = next((f for pattern in FULL for f in sorted(file.parent.glob(pattern))), None)
    if whole is not None:
        raise RequestError(
            f"{file.parent} has both an adapter ({CONFIG}) and a full model ({whole.name}): move one of them "
            "to another folder"
        )
    _refuse_kind(place, config)
    facts = _facts(file.parent)
    revision, options = config.get("revision"), facts.get("model_options", {})
    return Adapter(place, _existing(base, file), revision, config, options, facts.get("start"))


def _refuse_kind(place: str, config: dict[str, Any]) -> None:
    """Raises `RequestError` for an adapter that does not make another causal language model of its base."""
    kind, task, init = (config.get(key) for key in ("peft_type", "task_type", "init_lora_weights"))
    reason = None
    if kind != "LORA":
        reason = f"of type {kind}: only LoRA is supported"
    elif task not in (None, "CAUSAL_LM"):
        reason = f"for the task {task}, not for a causal language model"
    elif isinstance(init, str) and init.lower().startswith(UNREPEATABLE):
        reason = f"made with init_lora_weights = {init}, whose changes of the base cannot be repeated"
    if reason is not None:
        raise RequestError(
            f"{place} is an adapter {reason}; merge it into its base (merge_and_unload of peft) and start "
            "from the model that this gives"
        )


def _existing(base: str, file: Path) -> str:
    near = next((above / base for above in file.absolute().parents if (above / base).exists()), None)
    if Path(base).exists():
        if near is not None and not near.samefile(base):
            raise RequestError(
                f"{file.parent} is an adapter on {base}, which may be {Path(base).resolve()} or {near}: "
                f"write the whole path into base_model_name_or_path in {file}"
            )
        return base
    if near is not None:
        return str(near)
    if base.count("/") > 1 or base.startswith((".", "/", "~", "runs/")):  # a hub id is `name` or `org/name`
        raise RequestError(
            f"{file.parent} is an adapter on {base}, which {_gone(Path(base), file)}, or set "
            f"base_model_name_or_path in {file} to where it is now"
        )
    return base


def _gone(base: Path, file: Path) -> str:
    """What became of `base`: moved together with the adapter, deleted by rotation, or not known."""
    # a tail without the name of its run would find any run's checkpoint of that step, the adapter's own too
    tails = [Path(*base.parts[i:]) for i in range(1, len(base.parts) - 1) if base.parts[i] != "checkpoints"]
    moved = (above / tail for tail in tails for above in file.absolute().parents)
    found = next((place for place in moved if place.exists()), None)
    if found is not None:
        return f"does not exist (did you mean {str(found)!r}?): move it back"
    if NAME.fullmatch(base.name) and base.parent.is_dir():
        return "was deleted, as by checkpoints.keep_last of that run: restore it"
    return "does not exist (any more): restore that folder"


def _facts(folder: Path) -> dict[str, Any]:
    """What checkpoint.json says of an adapter that a run wrote; what resolvers gave was saved as written."""
    file = folder / "checkpoint.json"
    if not file.is_file():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        options = OmegaConf.to_container(OmegaConf.create(facts.get("model_options", {})), resolve=True)
        return {"model_options": options, "start": facts.get("start")}
    except OmegaConfBaseException as error:
        raise RequestError(f"{file}: model_options: {str(error).splitlines()[0]}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RequestError(f"{file} is damaged ({error})") from error


def refuse_other_base(adapter: Adapter, commit_of: Commit) -> None:
    """Raises `RequestError` if the base of `adapter` is no longer the model that it was trained on.

    Reads the weights of the base. Adapters of earlier versions and of other programs do not say what it was.
    """
    if (below := adapter_in(adapter.base)) is not None:
        refuse_other_base(below, commit_of)
    if adapter.start is not None and identity(adapter.base, adapter.revision, commit_of) != adapter.start:
        refuse_damaged(adapter.base, "model")
        raise RequestError(
            f"{adapter.place} was trained on another model than {adapter.base} is now: its files have "
            "changed, or another folder has this name; restore it, or set base_model_name_or_path in "
            f"{Path(adapter.place) / CONFIG} to where the model is"
        )


def chain(place: str | Path) -> list[str]:
    """`place`, and below an adapter its base, and so on down to a full model or a hub id.

    Raises:
        RequestError: a base is missing, the adapters refer to each other in a circle, or a file of a run's
            checkpoint among them is damaged, other than weights.
    """
    places = [str(place)]
    refuse_damaged(place, "text")
    seen = {Path(place).resolve()}
    while adapter := adapter_in(places[-1]):
        if Path(adapter.base).resolve() in seen:
            raise RequestError(
                f"{places[-1]} is an adapter on {adapter.base}, which is itself an adapter on it: set "
                f"base_model_name_or_path in its {CONFIG} to the model that it was trained on"
            )
        refuse_damaged(adapter.base, "text")
        places.append(adapter.base)
        seen.add(Path(adapter.base).resolve())
    return places


def tokenizer_place(place: str | Path) -> str:
    """Where the tokenizer of the model at `place` is: `place`, or below adapters that brought none along."""
    places = chain(place)
    return next((p for p in places if any((Path(p) / name).is_file() for name in TOKENIZER)), places[-1])


Commit = Callable[[str, str | None], str | None]
"""(hub id, revision) -> commit."""


def identity(place: str | Path, revision: str | None, commit_of: Commit) -> str:
    """A hash of all files that decide the forward of the model at `place`: weights, configs, code, options.

    Where a model lies does not count, so that a copy has the hash of its original. Of a hub id, the id and
    the commit that `commit_of(id, revision)` says; an adapter names the revision of its base.
    """
    total = hashlib.sha256()
    for part in chain(place):
        folder = Path(part)
        if not folder.is_dir():
            total.update(f"{part} {commit_of(part, revision)}".encode())
            continue
        total.update(
            (_digest(folder, _signature(folder)) or f"unknown weights in {folder.resolve()}").encode()
        )
        code = sorted(folder.glob("*.py")) if "auto_map" in model_config(folder) else []
        for file in [folder / "config.json", *code]:
            total.update(file.read_bytes() if file.is_file() else b"-")
        if (adapter := adapter_in(folder)) is not None:
            config = {key: value for key, value in adapter.config.items() if key not in ELSEWHERE}
            total.update(json.dumps([config, adapter.options], sort_keys=True).encode())
            revision = adapter.revision
    return total.hexdigest()[:32]


def model_config(folder: Path) -> Any:
    """The content of config.json; empty where it cannot be read."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file of `folder` does."""
    found = ((file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file())
    return tuple((name, about.st_size, about.st_mtime_ns) for name, about in found)


@functools.lru_cache(maxsize=32)
def _digest(folder: Path, signature: tuple[Any, ...]) -> str:
    """`digest`, computed once for as long as no file changes: a base is asked for at every scored adapter.

    That of a run's checkpoint is known, and its weights are compared with it when they are loaded.
    """
    try:
        facts = proved_facts(folder) if (folder / MARKER).is_file() else {}
    except Damaged:
        facts = {}
    return facts["digest"] if isinstance(facts.get("files"), dict) and "digest" in facts else digest(folder)


def quantized_base_error(place: str | Path, ground: str | Path) -> RequestError:
    """The refusal of an adapter at `place` whose full model `ground` is quantised."""
    return RequestError(
        f"{place} is an adapter, which cannot be merged into the quantised weights of {ground}: export it "
        "to a full model first (posttrain export), with base_model_name_or_path of its adapter_config.json "
        "at the base in full precision, and start from that"
    )
