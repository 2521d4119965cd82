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
import re
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import xxhash

from posttrain.base.files import hash_of, size_text
from posttrain.base.stop import stop_check
from posttrain.errors import RequestError

log = logging.getLogger(__name__)
FACTS, MARKER, CARD = "checkpoint.json", "COMPLETE", "README.md"
"""The list of the other files, what seals it, and a page that nothing reads and a person may edit."""
NAME = re.compile(r"step-(\d{6,})")
SET_ASIDE = "damaged-"
"""Opens the name of a folder that was a checkpoint."""
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "adapter_model.bin", "pytorch_model*.bin")
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
BLOCK = 1 << 22
Part = Literal["all", "model", "text"]
"""Which files: every one, those that a model is loaded from, or of these all but the weights."""


class Damaged(Exception):
    """What is wrong with a checkpoint, as the end of a sentence."""


def digest(path: Path) -> str:
    """Content hash of the weights in `path`, 16 hexadecimal digits of xxh3-128; empty where there are no
    weights.

    Equal bytes have equal hashes; it is no protection against manipulation.
    """
    return _weights(path, stop_check())[0]


def seal(folder: Path) -> dict[str, Any]:
    """What `checkpoint.json` says of the content of `folder`; every file is read once.

    `digest` is that of the weights, `files` the size and hash of every file, by its path there.
    """
    total, hashes = _weights(folder)
    names = _names(folder)
    others = [name for name in names if name not in hashes]
    with ThreadPoolExecutor(THREADS) as pool:
        hashes |= zip(others, pool.map(lambda name: hash_of(folder / name), others), strict=True)
    files = {name: {"bytes": (folder / name).stat().st_size, "xxh3": hashes[name]} for name in names}
    return {"digest": total, "files": files}


def _weights(folder: Path, between: Callable[[], object] = lambda: None) -> tuple[str, dict[str, str]]:
    """`digest` of the weights in `folder`, and the hash of each of their files as `hash_of` has it."""
    total, hashes = xxhash.xxh3_128(), {}
    for file in sorted({f for pattern in WEIGHTS for f in folder.glob(pattern)}):
        own = xxhash.xxh3_128()
        total.update(file.name.encode())
        with file.open("rb") as handle:
            while block := handle.read(BLOCK):
                own.update(block)
                total.update(block)
                between()
        hashes[file.name] = own.hexdigest()
    return total.hexdigest()[:16] if hashes else "", hashes


def proved_facts(folder: Path) -> dict[str, Any]:
    """The content of `checkpoint.json`, compared with what `COMPLETE` and the folder's name say of it.

    Raises:
        Damaged: they do not agree, or one of them cannot be read.
    """
    texts = {}
    for name in (MARKER, FACTS):
        try:
            _size(folder, name)
            texts[name] = (folder / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
    recorded = texts[MARKER]
    if recorded and recorded != xxhash.xxh3_128(texts[FACTS]).hexdigest().encode():
        raise Damaged(f"{FACTS} or {MARKER} has changed since it was written")
    try:
        facts = json.loads(texts[FACTS])
    except ValueError as error:
        raise Damaged(f"{FACTS} is not JSON ({error})") from None
    if not isinstance(facts, dict):
        raise Damaged(f"{FACTS} must contain a mapping")
    if isinstance(facts.get("files"), dict) != bool(recorded):  # an earlier version wrote neither
        missing = f"the hash in {MARKER}" if not recorded else f"the list of files in {FACTS}"
        raise Damaged(f"{missing} is missing")
    named = NAME.fullmatch(folder.name)
    if named and facts.get("step") != int(named[1]):
        raise Damaged(f"{FACTS} is that of step {facts.get('step')}")
    return facts


def damage(folder: Path, part: Part = "all") -> str | None:
    """What is wrong with `part` of the checkpoint in `folder`, as the end of a sentence; None if nothing is.

    A checkpoint of an earlier version has no list; of it, only the presence of its files and the hash of its
    weights are compared, and a warning says so.

    Raises:
        Stopped: the process was asked to stop, or its work has ended.
    """
    check = stop_check()
    began = time.perf_counter()
    try:
        facts = proved_facts(folder)
        if not isinstance(facts.get("files"), dict):
            _prove_earlier(folder, facts, part)
            return None
        files = {name: entry for name, entry in facts["files"].items() if _belongs(name, part)}
        for name in sorted(set(_names(folder)) - facts["files"].keys()):
            if any(fnmatch.fnmatch(name, pattern) for pattern in LOADED):
                raise Damaged(f"{name} does not belong to it")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda item: _compare(folder, *item, check), files.items()))
    except Damaged as found:
        return str(found)
    if part != "text":
        size = sum(entry["bytes"] for entry in files.values())
        log.info("%s proved: %s in %.1f s", folder, size_text(size), time.perf_counter() - began)
    return None


def _compare(folder: Path, name: str, entry: dict[str, Any], between: Callable[[], object]) -> None:
    size = _size(folder, name)
    if size != entry["bytes"]:
        raise Damaged(f"{name} has {size} bytes, not the {entry['bytes']} that were written")
    try:
        same = hash_of(folder / name, between) == entry["xxh3"]
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from None
    if not same:
        raise Damaged(f"{name} has changed since it was written")


def _size(folder: Path, name: str) -> int:
    try:
        found = (folder / name).stat()
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
        raise Damaged(f"{name} is not a file")
    return found.st_size


def _prove_earlier(folder: Path, facts: dict[str, Any], part: Part) -> None:
    """`damage` of a checkpoint without a list. Raises `Damaged`."""
    if part == "text":
        return
    needed = []
    if part == "all" and facts.get("resumable"):
        sharded = any(folder.glob("global_step*"))  # DeepSpeed's own files
        needed = ["rng_state*.pth", "trainer_state.json"]
        needed += [] if sharded else ["optimizer*", "scheduler.pt"]
    for pattern in needed:
        if not any(file.stat().st_size for file in folder.glob(pattern)):
            raise Damaged(f"{pattern} is missing or empty")
    try:
        json.loads((folder / "trainer_state.json").read_bytes() if needed else b"{}")
    except ValueError as error:
        raise Damaged(f"trainer_state.json is not JSON ({error})") from None
    if "digest" in facts and digest(folder) != facts["digest"]:
        raise Damaged("its weights have changed since they were written")
    log.warning(
        "%s has no hashes of its files (an earlier version wrote it): only its weights are proved", folder
    )


def _names(folder: Path) -> list[str]:
    names = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if name not in (FACTS, MARKER, CARD))


def _belongs(name: str, part: Part) -> bool:
    first = Path(name).parts[0]
    if part != "all" and any(fnmatch.fnmatch(first, pattern) for pattern in TRAINING_ONLY):
        return False
    return part != "text" or not any(fnmatch.fnmatch(first, pattern) for pattern in WEIGHTS)


def refuse_damaged(folder: str | Path, part: Part) -> None:
    """Compares `part` of a run's checkpoint; other folders, and hub ids, pass.

    Raises:
        RequestError: a file is damaged.
    """
    path = Path(folder)
    if (path / MARKER).is_file() and (problem := damage(path, part)):
        raise RequestError(
            f"{path} is damaged: {problem}. Restore the file, or use another checkpoint of the run; if the "
            f"change is intended, copy the folder to another place without its file {MARKER}"
        )


@contextlib.contextmanager
def proved(folder: str | Path) -> Iterator[None]:
    """`refuse_damaged` of the files of a model, while the block loads them.

    Raises:
        RequestError: a file is damaged, once the block has ended, also where it failed because of it.
    """
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(refuse_damaged, folder, "model")
        try:
            yield
        except KeyboardInterrupt:  # of a signal, which ends the reading, too
            raise
        except BaseException:
            found.result()
            raise
        found.result()
