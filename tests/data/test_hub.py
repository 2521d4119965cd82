"""Sources without files here: generators, and the hub through `datasets`."""

from __future__ import annotations

import pytest

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
