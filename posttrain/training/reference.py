"""The reference of a preference run: its model, and its log-probabilities, computed before the first step and
kept.

They are kept by content: one file per source and reference model in the cache, where another run finds them,
and a copy in the run directory, which a resumed run needs. Missing values are an error. Left out: when the
reference runs (preference.py), a reference that is updated.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import is_peft_model
from torch import nn
from trl.models.utils import prepare_deepspeed

from posttrain.base.disk import why_unwritten
from posttrain.base.temporary import remove_abandoned, temporary_name
from posttrain.data.template import load_text
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.models.head import attach_fused_head
from posttrain.models.load import load_model
from posttrain.recipe.plan import NamedReference
from posttrain.recipe.schema import Model
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapters import tokenizer_place
from posttrain.training.engines import reshard, shard_frozen
from posttrain.training.parts import RowParts

log = logging.getLogger(__name__)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
Key = tuple[int, int]
"""(source, row of the source); of a mismatched row (kto.py): (a number above those of the sources,
position)."""


class ReferenceRows:
    """Rows with `reference` where `known` has it: nats summed over tokens, [2] for a pair (chosen, rejected),
    else [1]."""

    def __init__(self, rows: Any, known: dict[Key, np.ndarray]) -> None:
        self.rows, self.known = rows, known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        found = self.known.get((row["source"], row["row"]))
        return row if found is None else row | {"reference": found}

    def places(self) -> dict[Key, Callable[[], dict[str, Any]]]:
        """The rows whose reference log-probabilities are needed, each once, as a call that reads it."""
        found: dict[Key, Callable[[], dict[str, Any]]] = {}
        for i in range(len(self)):
            key = self.rows.key(i)
            if key not in found:
                found[key] = partial(self.rows.__getitem__, i)
        return found


class ReferenceStore:
    """The cache files of a run's sources.

    `names` are content hashes of (reference, prepared table), `earlier` those with which an earlier version
    named the copies in a run directory.
    """

    def __init__(
        self, folder: Path, run_copy: Path, names: Sequence[str], earlier: Sequence[str] = ()
    ) -> None:
        self.folder, self.run_copy, self.names = folder, run_copy, list(names)
        self.earlier = list(earlier) or self.names

    def load(self) -> dict[Key, np.ndarray]:
        """The known log-probabilities of this run, from its own copy and from the cache."""
        found: dict[Key, np.ndarray] = {}
        for source, (name, before) in enumerate(zip(self.names, self.earlier, strict=True)):
            for path in (self.folder / f"{name}.npz", self._own(before), self._own(name)):
                if path.is_file():
                    found |= {(source, row): value for row, value in _read(path).items()}
        return found

    def save(self, known: dict[Key, np.ndarray], wanted: set[Key]) -> None:
        """Main process: writes those of this run into its directory, and all that are known into the
        cache."""
        remove_abandoned(self.folder)
        for source, name in enumerate(self.names):
            rows = sorted(r for s, r in known if s == source)
            _write(self.folder / f"{name}.npz", rows, [known[source, r] for r in rows])
            own = [r for r in rows if (source, r) in wanted]
            _write(self._own(name), own, [known[source, r] for r in own])

    def _own(self, name: str) -> Path:
        return self.run_copy / f"{name}.npz"


@dataclass
class Reference:
    """Where the log-probabilities of the reference come from.

    load    loads it, frozen, as a second model
    model   that model; None: the policy itself, before its first step or with its adapters off
    live    it runs in every step; otherwise once, for those of `wanted` that are `missing`
    other   it is loaded apart from the policy, which cannot take its place, and can be loaded at any time
    """

    load: Callable[[], nn.Module]
    model: nn.Module | None = None
    live: bool = False
    other: bool = False
    store: ReferenceStore | None = None
    known: dict[Key, Any] = field(default_factory=dict)
    wanted: dict[Key, Callable[[], Any]] = field(default_factory=dict)

    @property
    def missing(self) -> list[Key]:
        return sorted(key for key in self.wanted if key not in self.known)


@dataclass(frozen=True)
class ReferencedRows:
    """The rows of a preference run."""

    train: Any
    heldout: Any | None
    fingerprints: list[str] = field(default_factory=list)
    """Of rows that the reference is asked about besides those of the sources."""


def referenced(parts: RowParts, known: dict[Key, np.ndarray]) -> ReferencedRows:
    """The rows of `parts`, each with `reference` once `known` holds it."""
    heldout = parts.heldout_rows()
    return ReferencedRows(
        ReferenceRows(parts.train_rows(), known), None if heldout is None else ReferenceRows(heldout, known)
    )


def store_name(model: str, table: str) -> str:
    """File name for reference `model` (what its forward depends on) and prepared table `table` (its
    fingerprint)."""
    return hashlib.sha256(f"reference 3 {model} {table}".encode()).hexdigest()[:32]


def earlier_store_name(model: str, table: str) -> str:
    """`store_name` as it was when only the reference's weights and precision decided it."""
    return hashlib.sha256(f"reference 1 {model} {table}".encode()).hexdigest()[:32]


def _read(path: Path) -> dict[int, np.ndarray]:
    """Row -> its log-probabilities. Empty, with a warning, where the file is damaged, which the checksums of
    a zip file show: there is a copy, or they can be computed again."""
    try:
        with np.load(path) as file:
            return {int(row): values for row, values in zip(file["rows"], file["log_probs"], strict=True)}
    except Exception as error:  # whatever a damaged zip file or array header raises
        log.warning("%s is damaged and not used: %s", path, error)
        return {}


def _write(path: Path, rows: list[int], values: list[np.ndarray]) -> None:
    """In one step: a reader sees the whole file or none."""
    if not rows:
        return
    log_probs = np.stack(values).astype(np.float32)
    if not np.isfinite(log_probs).all():
        raise WorkError("the reference model returned NaN or infinite log-probabilities")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            np.savez(file, rows=np.array(rows, dtype=np.int64), log_probs=log_probs)
        os.replace(temporary, path)
    except OSError as error:
        raise WorkError(f"{path}: cannot be written: {why_unwritten(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def frozen_reference(
    model: Model,
    place: str | None,
    tokenizer: Any,
    start: Any,
    seed: int,
    accelerator: Any,
    revision: str | None = None,
) -> nn.Module:
    """The reference at `place` (as `model.init`; None: the start model at `start`), frozen, fused and
    prepared.

    `model` is the policy's section of the recipe and `tokenizer` the policy's, which `refuse_other_reference`
    compared.

    Raises:
        RequestError: it cannot be loaded.
    """
    where = start
    if place is not None:
        where = ckpt.resolve(place)[0]
        model = replace(model, init=place, from_config=None, revision=revision)
    mixed = accelerator.mixed_precision
    reference = load_model(replace(model, lora=None), where and str(where), tokenizer, seed, mixed)
    reference.requires_grad_(False).eval()
    attach_fused_head(reference, mixed)
    if accelerator.state.deepspeed_plugin is not None:
        return prepare_deepspeed(reference, accelerator)
    if accelerator.is_fsdp2:
        return shard_frozen(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)


def refuse_other_reference(model: Model, template: str, named: NamedReference | None) -> None:
    """Raises `RequestError` where the reference that a recipe names has another tokenizer than the policy.

    Called before rows are prepared and models loaded.
    """
    if named is None:
        return
    start = None if model.init is None else ckpt.resolve(model.init)[0]
    policy, _ = load_text(model, template, start and tokenizer_place(start))
    what = f"{named.key} = {named.place!r}"
    try:
        where = tokenizer_place(ckpt.resolve(named.place)[0])
        reference = load_tokenizer(where, named.revision, model.trust_remote_code)
    except RequestError as error:
        raise RequestError(f"{what}: {error}") from error
    refuse_other_tokenizer(policy, reference, what)


def refuse_other_tokenizer(policy: Any, reference: Any, what: str) -> None:
    """Raises `RequestError` naming the first difference; `what` opens the sentence."""
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    for token, number in sorted(theirs.items(), key=lambda item: item[1]):
        if ours.get(token) != number:
            has = "no such token" if token not in ours else f"it as {ours[token]}"
            raise RequestError(
                f"{what} has another tokenizer: {token!r} is token {number} there, the policy has {has}"
            )
    missing = sorted(ours.keys() - theirs.keys(), key=ours.__getitem__)
    if missing:
        raise RequestError(f"{what} has another tokenizer: the policy's {missing[0]!r} is missing from it")
    for name in SPECIAL:
        a, b = getattr(policy, name), getattr(reference, name)
        if a != b:
            raise RequestError(f"{what} has another tokenizer: its {name} is {b}, the policy's {a}")


@contextlib.contextmanager
def without_adapter(trainer: Any, on: bool) -> Iterator[None]:
    """Disables the adapter of the model, where `on` and it has one."""
    if not (on and is_peft_model(trainer.model)):
        yield
        return
    # peft switches `requires_grad` of the adapters off and on. FSDP2 copies it from the sharded weight to the
    # gathered one: switched on while gathered, as the head stays after a forward, an adapter no longer trains
    reshard(trainer.model_wrapped)
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        try:
            yield
        finally:
            reshard(trainer.model_wrapped)
