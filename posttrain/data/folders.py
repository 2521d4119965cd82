"""Which files of a folder have rows.

Of a folder that `datasets.save_to_disk` wrote, those that its state.json lists, in that order; of one with
several splits (`DatasetDict`), those of the split; of any other folder, the readable files directly in it.
Also globs with `**`, which enter each folder once, so that a link to a folder above ends. Left out: folders
of a store (remote.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from posttrain.errors import RequestError, did_you_mean

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SHARD = re.compile(r"data-\d+-of-(\d+)\.arrow")
"""Files that `save_to_disk` writes; the number is that of all of them."""
CACHES = "cache-*.arrow"
"""Results of `map` and `filter` that `datasets` leaves beside the rows."""


def folder_files(
    path: Path, split: str, named: str, readable: Callable[[Path], Any], kinds: str
) -> list[Path]:
    """The files with rows of a folder, sorted or as state.json lists them.

    split: of a folder with several splits. `named` opens every message; `readable(file)` says whether there
    is a reader for it, `kinds` lists the suffixes that have one.

    Raises RequestError: there is no such file or split, or what `datasets` wrote is damaged.
    """
    if (path / SPLITS).is_file():
        path = path / _split(path / SPLITS, split, named)
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    arrows = [child for child in inside if child.suffix == ".arrow"]
    if (path / STATE).is_file() and (arrows or (path / INFO).is_file()):
        return _listed(path / STATE, named)
    files = [child for child in inside if child.is_file() and readable(child)]
    if arrows:
        files = [child for child in files if child.name not in (INFO, STATE) and not child.match(CACHES)]
    if files:
        return files
    if not inside:
        raise RequestError(f"{named}: the folder {path} is empty")
    names = ", ".join(child.name for child in inside[:5])
    hint = f"; to read its subfolders, write {path}/**/*.jsonl"
    hint = hint if any(child.is_dir() for child in inside) else ""
    raise RequestError(f"{named}: the folder {path} has no file ending in {kinds} (it has: {names}){hint}")


def recursive_glob(pattern: str) -> list[Path]:
    """The files that a glob with `**` matches, as `glob.glob` does it, but each folder is entered once.

    Where links lead to one folder by several names, its own name is taken.
    """
    parts = Path(pattern).parts
    fixed = next(n for n, part in enumerate(parts) if "*" in part or "?" in part or "[" in part)
    top, seen, found = Path(*parts[:fixed]), set(), []
    for folder, inside, files in os.walk(top, followlinks=True):
        inside[:] = sorted(inside, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        if (real := os.path.realpath(folder)) in seen:
            inside.clear()
            continue
        seen.add(real)
        below = Path(folder).relative_to(top).parts
        found += [Path(folder, name) for name in files if _matches((*below, name), parts[fixed:])]
    return sorted(found)


def without_links(files: list[Path]) -> list[Path]:
    """Sorted, each file once: where links lead to it by several names, by its own name or the first."""
    own = {file: os.path.realpath(file) == os.path.abspath(file) for file in files}
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda each: (not own[each], each)):
        found.setdefault(os.path.realpath(file), file)
    return sorted(found.values())


def _matches(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        hidden = bool(names) and names[0].startswith(".")
        return _matches(names, parts[1:]) or (bool(names) and not hidden and _matches(names[1:], parts))
    if not names or (names[0].startswith(".") and not parts[0].startswith(".")):
        return False
    return fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _split(path: Path, split: str, named: str) -> str:
    """The folder of a split, by dataset_dict.json."""
    splits = _object(path, named).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise RequestError(f"{named}: {path} is damaged: it lists no splits")
    if split not in splits:
        raise RequestError(
            f"{named}: {path.parent} has the splits {', '.join(splits)}, not {split!r}"
            f"{did_you_mean(split, splits)}; set split"
        )
    if not _inside(split) or not (path.parent / split).is_dir():
        raise RequestError(f"{named}: {path} lists the split {split!r}, but there is no such folder")
    return split


def _listed(path: Path, named: str) -> list[Path]:
    """The files that a state.json lists."""
    state = _object(path, named)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise RequestError(
            f"{named}: {path} lists a choice of rows in a file of its own (_indices_files), which is not "
            "applied here; write the folder again: load_from_disk(...).flatten_indices().save_to_disk(...)"
        )
    entries = state.get("_data_files")
    if not isinstance(entries, list) or not entries:
        raise RequestError(f"{named}: {path} is damaged: it lists no _data_files")
    files = []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _inside(name) or Path(name).suffix != ".arrow":
            raise RequestError(f"{named}: {path} lists {name!r}, which is not an .arrow file of the folder")
        files.append(path.parent / name)
        if not files[-1].is_file():
            raise RequestError(f"{named}: {path} lists {name!r}, but there is no such file")
    if len(set(files)) < len(files):
        raise RequestError(f"{named}: {path} lists a file twice")
    _refuse_missing(path, [file.name for file in files], named)
    return files


def _refuse_missing(path: Path, names: list[str], named: str) -> None:
    """Raises RequestError where the names of the files of a state.json count more of them.

    dataset_info.json cannot tell: its `num_examples` stays that of the first set through `filter`, `select`
    and `train_test_split`.
    """
    listed = set(names)
    counts = {found[1]: int(found[1]) for name in names if (found := SHARD.fullmatch(name))}
    for text, count in counts.items():
        there = sum(name.endswith(f"-of-{text}.arrow") for name in listed)
        if there < count:
            lost = next(name for n in range(count) if (name := f"data-{n:05}-of-{text}.arrow") not in listed)
            raise RequestError(
                f"{named}: {path} lists {there} of {count} files, {lost} is missing; copy the whole folder "
                f"again, or set path to {path.parent}/data-*.arrow to read the files that are there"
            )


def _inside(name: str) -> bool:
    """Whether a name from a file stays in the folder of that file."""
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


def _object(path: Path, named: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{named}: {path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{named}: {path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{named}: {path} is damaged: it is not an object")
    return value
