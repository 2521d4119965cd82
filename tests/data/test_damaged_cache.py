"""A damaged table in the cache is made again, by one process, and the rows are those of the undamaged one."""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.base.files import NO_LOCKS
from posttrain.data import cache, make_once
from posttrain.data.cache import prepare_sources
from posttrain.data.table import TABLE
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import WorkError
from posttrain.recipe.schema import Data, Loss, Source

fork = multiprocessing.get_context("fork")
SHAPES = {
    "rows": {"prompt": "say", "completion": "yes"},
    "prompts": {"prompt": "say", "answer": "yes"},
    "pairs": {"prompt": "say", "chosen": "yes", "rejected": "no"},
}


@pytest.fixture
def data(tmp_path):
    return Data(sources=[], template="chatml", cache_dir=str(tmp_path / "cache"), max_length=200)


def prepared(data: Data, folder: Path, shape: str = "rows", **options):
    """The table of 40 rows."""
    file = folder / "rows.jsonl"
    text = "".join(json.dumps(SHAPES[shape] | {"n": i}) + "\n" for i in range(40))
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    sources = [Source(name="numbers", path=str(file))]
    (table,) = prepare_sources(sources, data, Loss(), load_tokenizer("builtin:bytes"), shape=shape, **options)
    return table


def folder_of(data: Data) -> Path:
    (folder,) = (path for path in cache.cache_root(data).iterdir() if path.is_dir())
    return folder


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)


def counts(**changed):
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return change


OF_FILES = {
    "first byte": lambda file: flip(file, 0),
    "middle byte": lambda file: flip(file, 0.5),
    "last byte": lambda file: flip(file, 1),
    "cut": lambda file: os.truncate(file, file.stat().st_size - 1),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
}
OF_TABLE = {
    "a number": lambda file: file.write_text("7"),
    "no counts": lambda file: file.write_text("{}"),
    "not JSON": lambda file: file.write_text("{oops"),
    "other counts": counts(rows_kept=39),
    "other tokens": counts(trained_tokens=1),
    "other drops": counts(dropped={"overlong": 1}),
    "of another table": counts(fingerprint="0" * 32),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_damage_is_mended(data, tmp_path, shape, caplog):
    table = prepared(data, tmp_path, shape)
    folder = folder_of(data)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    cases = [(name, what, change) for name in files for what, change in OF_FILES.items()]
    cases += [(TABLE, what, change) for what, change in OF_TABLE.items()]
    assert len(cases) >= 35
    for name, what, change in cases:
        change(folder / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            again = prepared(data, tmp_path, shape)
        assert caplog.messages == [
            f"source 'numbers': {folder / name} is damaged; its rows are prepared again"
        ], what
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == files, (name, what)
        assert again.fingerprint == table.fingerprint
    shutil.rmtree(folder)
    folder.mkdir()  # without any file
    assert len(prepared(data, tmp_path, shape)) == 40


def test_a_whole_table_of_other_rows(data, tmp_path):
    prepared(data, tmp_path)
    folder = folder_of(data)
    other = prepared(replace(data, max_length=199), tmp_path)
    shutil.rmtree(folder)
    shutil.copytree(other.folder, folder)
    assert prepared(data, tmp_path).fingerprint == folder.name != other.fingerprint


@pytest.mark.parametrize("damage", [None, counts(rows_kept=39), counts(rows_kept="x"), counts(tokens=None)])
def test_a_table_of_an_earlier_version(data, tmp_path, damage, caplog):
    """It has no hashes: as long as its files fit together it is used."""
    prepared(data, tmp_path)
    file = folder_of(data) / TABLE
    facts = json.loads(file.read_text())
    del facts["hashes"]
    file.write_text(json.dumps(facts))
    if damage is not None:
        damage(file)
    assert len(prepared(data, tmp_path)) == 40
    assert ("is damaged" in caplog.text) == (damage is not None)
    assert ("hashes" in json.loads(file.read_text())) == (damage is not None)


def test_a_file_in_its_place(data, tmp_path):
    prepared(data, tmp_path)
    folder = folder_of(data)
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.raises(WorkError, match="source 'numbers': cannot write prepared rows"):
        prepared(data, tmp_path)


def _wait(data, folder, results):
    results.put(len(prepared(data, folder, is_main=False)))


def test_the_other_rank_waits_for_the_new_one(data, tmp_path, monkeypatch):
    monkeypatch.setattr(make_once, "POLL", 0.05)
    prepared(data, tmp_path)
    flip(folder_of(data) / "marks.bin", 0.5)
    results = fork.Queue()
    waiting = fork.Process(target=_wait, args=(data, tmp_path, results))
    waiting.start()
    time.sleep(0.5)
    assert results.empty() and waiting.is_alive()
    prepared(data, tmp_path)
    assert results.get(timeout=30) == 40
    waiting.join()


def test_what_another_process_has_mended_is_not_removed(data, tmp_path, monkeypatch):
    """Between the look and the lock another run has made the table again."""
    prepared(data, tmp_path)
    folder = folder_of(data)
    sound = Path(shutil.copytree(folder, tmp_path / "sound"))
    flip(folder / "marks.bin", 0.5)
    plain = cache.damaged_file

    def mended(asked: Path) -> str | None:
        found = plain(asked)
        shutil.rmtree(asked)
        shutil.copytree(sound, asked)
        (asked / "mended").touch()
        return found

    monkeypatch.setattr(cache, "damaged_file", mended)
    prepared(data, tmp_path)
    assert (folder / "mended").exists()


def _prepare(data, folder, results):
    results.put(len(prepared(data, folder)))


@pytest.mark.parametrize("error", NO_LOCKS)
def test_a_file_system_without_locks(data, tmp_path, monkeypatch, error):
    """One of several processes makes the table; one that was killed does not keep it."""

    def refuse(handle, operation):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(make_once, "POLL", 0.01)
    plain, made = cache.make_table, fork.Value("i", 0)

    def make(*arguments):
        with made:
            made.value += 1
        time.sleep(0.3)
        plain(*arguments)

    monkeypatch.setattr(cache, "make_table", make)
    results = fork.Queue()
    first = fork.Process(target=_prepare, args=(data, tmp_path, results))
    first.start()
    while not made.value:
        time.sleep(0.01)
    first.kill()
    first.join()
    others = [fork.Process(target=_prepare, args=(data, tmp_path, results)) for _ in range(2)]
    for process in others:
        process.start()
    assert [results.get(timeout=30) for _ in others] == [40, 40]
    assert made.value == 2
