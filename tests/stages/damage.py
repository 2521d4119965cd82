"""Kinds of damage to a checkpoint, and small runs of every stage that tests copy and damage."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.base.files import hash_of
from posttrain.rundir.proof import FACTS, MARKER
from tests.rundir.make_earlier import EARLIER, STAGES

BEFORE, NEWEST, LAST = "step-000002", "step-000004", "step-000006"
SETTINGS = {"sft": ["train.optim=adamw_torch", "train.lr_scheduler_type=cosine"]}
TRAINED = ("sft", "lora", "dpo", "rlvr")
Damage = Callable[[Path, Path], None]
"""Damages the first checkpoint; the second is a sound one."""


def start(name: str, *overrides: str) -> int:
    """The exit code of the stage of `name`, run in this process and in the working directory."""
    fixed = [] if name in ("pairs", "pass_rate") else ["train.max_steps=6", "checkpoints.keep_last=null"]
    stage = importlib.import_module(f"posttrain.{STAGES[name]}")
    return stage.main([f"{name}.yaml", *fixed, *SETTINGS.get(name, []), *overrides])


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A folder with a finished run of every stage, with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    for file in (*EARLIER.glob("*.yaml"), *EARLIER.glob("*.jsonl")):
        shutil.copy(file, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in (*TRAINED, "pairs", "pass_rate"):
            assert start(name) == 0
    return folder


@pytest.fixture
def runs(whole, tmp_path, monkeypatch) -> Path:
    """`runs/` of a copy of `whole`, which is the working directory."""
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    return folder / "runs"


def flip(file: Path, place: float) -> None:
    """Changes one bit of the byte at `place` (0 first, 1 last) of a file."""
    content = bytearray(file.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 1
    file.write_bytes(content)


def edit(folder: Path, sealed: bool, **values: object) -> None:
    """Changes checkpoint.json; `sealed`: and the hash of it."""
    facts = json.loads((folder / FACTS).read_text())
    facts = {k: v for k, v in (facts | values).items() if v is not None}
    (folder / FACTS).write_text(json.dumps(facts))
    if sealed:
        (folder / MARKER).write_text(hash_of(folder / FACTS))


def _folder(file: Path, _: Path) -> None:
    file.unlink()
    file.mkdir()


def _loop(file: Path, _: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _pipe(file: Path, _: Path) -> None:
    file.unlink()
    os.mkfifo(file)


OF_FILES: dict[str, Damage] = {
    "first byte": lambda file, _: flip(file, 0),
    "middle byte": lambda file, _: flip(file, 0.5),
    "last byte": lambda file, _: flip(file, 1),
    "one byte less": lambda file, _: os.truncate(file, file.stat().st_size - 1),
    "one byte more": lambda file, _: file.write_bytes(file.read_bytes() + b"\n"),
    "emptied": lambda file, _: file.write_bytes(b""),
    "deleted": lambda file, _: file.unlink(),
    "of another step": lambda file, other: shutil.copy(other, file),
    "a folder": _folder,
    "a link to itself": _loop,
    "a pipe": _pipe,
}
"""Takes (file, the same file of another checkpoint)."""
OF_FOLDERS: dict[str, Damage] = {
    "checkpoint.json: a number": lambda folder, _: (folder / FACTS).write_text("7"),
    "checkpoint.json: not JSON": lambda folder, _: (folder / FACTS).write_text("{oops"),
    "checkpoint.json: not UTF-8": lambda folder, _: (folder / FACTS).write_bytes(b'{"a": "\xff"}'),
    "checkpoint.json: other step": lambda folder, _: edit(folder, False, step=5),
    "checkpoint.json: other recipe": lambda folder, _: edit(folder, False, recipe_hash="0" * 16),
    "checkpoint.json: other rows": lambda folder, _: edit(folder, False, data_fingerprint="0"),
    "checkpoint.json: not resumable": lambda folder, _: edit(folder, False, resumable=False),
    "checkpoint.json: no files": lambda folder, _: edit(folder, False, files=None),
    "checkpoint.json: no guard": lambda folder, _: edit(folder, False, guard=None),
    "checkpoint.json: sealed without files": lambda folder, _: edit(folder, True, files=None),
    "checkpoint.json: sealed with another step": lambda folder, _: edit(folder, True, step=5),
    "COMPLETE: garbage": lambda folder, _: (folder / MARKER).write_bytes(b"\xff\x00oops"),
    "COMPLETE: of another step": lambda folder, other: shutil.copy(other / MARKER, folder),
    "a second shard": lambda folder, _: shutil.copy(
        next(folder.glob("*model.safetensors")), folder / "model-00002-of-00002.safetensors"
    ),
    "pytorch_model.bin": lambda folder, _: (folder / "pytorch_model.bin").write_bytes(b"x"),
    "index of shards": lambda folder, _: (folder / "model.safetensors.index.json").write_text("{}"),
    "modeling.py": lambda folder, _: (folder / "modeling.py").write_text("x = 1"),
    "everything but the markers deleted": lambda folder, _: [
        file.unlink() for file in folder.iterdir() if file.name not in (FACTS, MARKER)
    ],
    "the other step under its name": lambda folder, other: (
        shutil.rmtree(folder),
        shutil.copytree(other, folder),
    ),
}


def damages(folder: Path, other: Path) -> Iterator[tuple[str, Damage]]:
    """(name, damage) of every kind that changes the checkpoint in `folder`."""
    for file in sorted(folder.iterdir()):
        for name, change in OF_FILES.items():
            if file.name == "README.md" or not (other / file.name).exists():
                continue
            if name == "of another step" and file.read_bytes() == (other / file.name).read_bytes():
                continue

            def damage(path: Path, sound: Path, change=change, file=file.name) -> None:
                change(path / file, sound / file)

            yield f"{file.name}: {name}", damage
    yield from OF_FOLDERS.items()
    if not (folder / "adapter_config.json").exists():
        yield "adapter_config.json: added", lambda path, _: (path / "adapter_config.json").write_text("{}")
