"""Proof that the files of a checkpoint are still those that were written.

`checkpoint.json` lists every file with its size and hash, and the marker `COMPLETE` contains the hash of
`checkpoint.json`. Before a checkpoint is used its files are compared with that list: all of them to resume,
those of the model to start from it or to score it. Left out: protection against manipulation (the hash is
xxh3); folders that no run has written, which have no list.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from posttrain.base.files import hash_of
from posttrain.errors import RequestError

log = logging.getLogger(__name__)
FACTS, MARKER = "checkpoint.json", "COMPLETE"
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*.bin")
TRAINING_ONLY = (
    "optimizer*",
    "scheduler.pt",
    "rng_state*",
    "scaler.pt",
    "trainer_state.json",
    "global_step*",
)
"""Files (or folders) that only a resumed run reads."""
LOADED = ("*.safetensors*", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.py", "adapter_config.json")
"""A file of such a name that was not written with the checkpoint may be loaded in place of one that was."""
THREADS = min(8, os.cpu_count() or 1)
Listing = dict[str, dict[str, Any]]


def digest(path: Path) -> str:
    """Content hash of the weights in `path`, 16 hexadecimal digits of xxh3-128; empty where there are no
    weights.

    Equal bytes have equal hashes; it is no protection against manipulation.
    """
    total = xxhash.xxh3_128()
    files = sorted({f for pattern in WEIGHTS for f in path.glob(pattern)})
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16] if files else ""


def listing(folder: Path) -> Listing:
    """Size and hash of every file in `folder`, by its path there; for `checkpoint.json`."""
    names = _names(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(lambda name: hash_of(folder / name), names)
        return {
            name: {"bytes": (folder / name).stat().st_size, "xxh3": value}
            for name, value in zip(names, hashes, strict=True)
        }


def damage(folder: Path, model_only: bool = False) -> str | None:
    """What is wrong with the complete checkpoint in `folder`, as the end of a sentence; None if nothing is.

    `model_only`: leave out what only a resumed run reads. A checkpoint of an earlier version has no list; of
    it, only the presence of its files and the hash of its weights are compared, and a warning says so.
    """
    began = time.perf_counter()
    try:
        text = (folder / FACTS).read_bytes()
        facts = json.loads(text)
        recorded = (folder / MARKER).read_text(encoding="ascii").strip()
        files = facts.get("files")
    except (OSError, ValueError, AttributeError) as error:
        return f"{FACTS} cannot be read ({error})"
    if recorded and recorded != xxhash.xxh3_128(text).hexdigest():
        return f"{FACTS} has changed since it was written"
    if not isinstance(files, dict):
        return f"{FACTS} has no list of files" if recorded else _damage_of_earlier(folder, facts, model_only)
    chosen = {name: entry for name, entry in files.items() if not (model_only and _only_trains(name))}
    for name in set(_names(folder)) - files.keys():
        if any(fnmatch.fnmatch(name, pattern) for pattern in LOADED):
            return f"{name} does not belong to it"
    found = _first_changed(folder, chosen)
    if found is None:
        size = sum(entry["bytes"] for entry in chosen.values()) / 2**30
        seconds = time.perf_counter() - began
        if seconds > 1:
            log.info("%s: %.1f GiB compared with their hashes in %.1f s", folder, size, seconds)
    return found


def _first_changed(folder: Path, files: Listing) -> str | None:
    def compare(item: tuple[str, dict[str, Any]]) -> str | None:
        name, entry = item
        try:
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, not the {entry['bytes']} that were written"
            same = hash_of(folder / name) == entry["xxh3"]
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if same else f"{name} has changed since it was written"

    with ThreadPoolExecutor(THREADS) as pool:
        return next(filter(None, pool.map(compare, files.items())), None)


def _damage_of_earlier(folder: Path, facts: dict[str, Any], model_only: bool) -> str | None:
    """`damage` of a checkpoint without a list."""
    needed = (
        [] if model_only or not facts.get("resumable") else ["optimizer.pt", "scheduler.pt", "rng_state*.pth"]
    )
    if any(folder.glob("global_step*")):  # DeepSpeed's own files
        needed = ["rng_state*.pth"]
    for pattern in needed:
        if not any(folder.glob(pattern)):
            return f"{pattern} is missing"
    if "digest" in facts and digest(folder) != facts["digest"]:
        return "its weights have changed since they were written"
    log.warning(
        "%s has no hashes of its files (an earlier version wrote it): only its weights are proved", folder
    )
    return None


def _names(folder: Path) -> list[str]:
    names = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if name not in (FACTS, MARKER))


def _only_trains(name: str) -> bool:
    return any(fnmatch.fnmatch(Path(name).parts[0], pattern) for pattern in TRAINING_ONLY)


@contextlib.contextmanager
def proved(folder: str | Path) -> Iterator[None]:
    """Compares the model files of a run's checkpoint while the block loads them; other folders pass.

    Raises:
        RequestError: a file is damaged, once the block has ended, also where it failed because of it.
    """
    path = Path(folder)
    if not (path / MARKER).is_file():
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(damage, path, True)
        try:
            yield
        finally:
            if problem := found.result():
                raise RequestError(
                    f"{path} is damaged: {problem}. Use another checkpoint of the run, or restore the file"
                )
