"""Sources without files here: generators, and the hub through `datasets`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import posttrain
from posttrain.data.hub import HubRows
from posttrain.data.sources import list_files, open_rows
from posttrain.errors import RequestError, WorkError
from posttrain.recipe.schema import Source

ROWS = [{"prompt": "1+1=", "completion": "02"}, {"prompt": "é😀", "completion": "a\nb"}]


def source(path, **more) -> Source:
    return Source(name="numbers", path=str(path), **more)


def test_the_generator_is_a_source():
    rows = open_rows(Source(name="m", generator="multiplication", options={"train_size": 3}))
    assert len(rows) == 3 and rows.files == [] and list_files(Source(name="m", generator="addition")) == []
    assert [place for place, _ in rows] == [f"multiplication[{i}]" for i in range(3)]
    other = open_rows(Source(name="n", generator="multiplication", options={"train_size": 4}))
    assert rows.fingerprint != other.fingerprint
    with pytest.raises(RequestError, match="unknown generator 'multiplicatoin'.*'multiplication'"):
        list_files(Source(name="m", generator="multiplicatoin"))


def test_a_hub_id_goes_through_datasets(monkeypatch):
    import datasets

    asked = []

    def load(path, subset, **more):
        asked.append((path, subset, more))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = source("openai/gsm8k", subset="main", split="test", revision="abc")
    assert list_files(hub) == [] and asked == []
    rows = open_rows(hub)
    assert asked == [("openai/gsm8k", "main", {"split": "test", "revision": "abc"})]
    assert list(rows) == [("openai/gsm8k[0]", ROWS[0]), ("openai/gsm8k[1]", ROWS[1])]
    assert len(rows) == 2 and rows.files == []
    again = open_rows(source("openai/gsm8k", subset="main", revision="abd"))
    assert len({rows.fingerprint, again.fingerprint}) == 2


def test_a_hub_that_is_out_of_reach(monkeypatch):
    import datasets

    def unknown_split(*_, **__):
        raise ValueError("Unknown split \"tarin\". Should be one of ['train'].")

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unknown_split)
    with pytest.raises(RequestError, match="org/name .*'tarin'.*Unknown split"):
        open_rows(source("org/name", split="tarin"))
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(WorkError, match=r"org/name.*Couldn't reach the Hub\. There is no local file"):
        open_rows(source("org/name"))


def folder_of_splits(folder, train=7, test=2) -> list[dict]:
    """A data set as the hub has them: Parquet files, two of them for the split `train`. Returns its rows."""
    (folder / "data").mkdir(parents=True)
    rows = [{"n": n, "text": f"row {n}"} for n in range(train + test)]
    for name, part in (
        ("train-00000-of-00002", rows[: train // 2]),
        ("train-00001-of-00002", rows[train // 2 : train]),
        ("test-00000-of-00001", rows[train:]),
    ):
        parquet.write_table(pa.Table.from_pylist(part), folder / "data" / f"{name}.parquet")
    return rows


def test_what_datasets_loads_of_a_folder_in_the_form_of_the_hub(tmp_path, monkeypatch):
    """`load_dataset` itself, on a folder here in place of an id."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = folder_of_splits(tmp_path / "set")
    train, test = (HubRows(source(tmp_path / "set", split=split)) for split in ("train", "test"))
    assert [row for _, row in train] == rows[:7] and [row for _, row in test] == rows[7:]
    assert len(train) == 7 and train.fingerprint != test.fingerprint
    assert HubRows(source(tmp_path / "set")).fingerprint == train.fingerprint
    place = f"{tmp_path}/set[6]"
    assert list(train.chosen(np.array([6, 7]))) == [(6, place, rows[6])]
    assert train._data.cache_files, "mapped from the disk, not in memory"
    with pytest.raises(RequestError, match="hub data set .*split 'tset'.*Unknown split"):
        HubRows(source(tmp_path / "set", split="tset"))
    with pytest.raises(RequestError, match="hub data set .*subset 'none'"):
        HubRows(source(tmp_path / "set", subset="none"))


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_data_set(tmp_path):
    """400 MB of rows in a process of its own: loading takes below 300 MB of memory, reading below 40 MB more.

    Pages of mapped files do not count: the system takes them back whenever it wants.
    """
    (tmp_path / "set" / "data").mkdir(parents=True)
    for shard in range(8):
        table = pa.table({"text": [os.urandom(1000).hex() for _ in range(25_000)]})
        parquet.write_table(table, tmp_path / "set" / "data" / f"train-{shard}.parquet", row_group_size=1000)
    code = (
        "import json, sys, threading, time\n"
        "import datasets\n"
        "from posttrain.data.hub import HubRows\n"
        "from posttrain.recipe.schema import Source\n"
        "def held():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('RssAnon')) * 1024\n"
        "peak, done = [held()], threading.Event()\n"
        "def watch():\n"
        "    while not done.wait(0.01):\n"
        "        peak.append(held())\n"
        "watching = threading.Thread(target=watch)\n"
        "watching.start()\n"
        "rows = HubRows(Source(name='a', path=sys.argv[1]))\n"
        "loading, peak[1:] = max(peak), [held()]\n"
        "before = peak[-1]\n"
        "characters = sum(len(row['text']) for _, row in rows)\n"
        "done.set()\n"
        "watching.join()\n"
        "print(json.dumps([len(rows), characters, loading - peak[0], max(peak[1:]) - before]))\n"
    )
    root = str(Path(posttrain.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {"PYTHONPATH": root, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, characters, loading, reading = json.loads(done.stdout.splitlines()[-1])
    assert (count, characters) == (200_000, 400_000_000)
    assert loading < 300e6 and reading < 40e6, f"{loading / 1e6:.0f} and {reading / 1e6:.0f} MB"
