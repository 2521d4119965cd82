"""Tables made by several processes are those of one; rows that are not used are not read; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from posttrain.data import in_order as parallel
from posttrain.data import make_table as making
from posttrain.data.in_order import in_order
from posttrain.data.prepare import build
from posttrain.data.shapes import catalogue
from posttrain.data.sources import open_rows
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.recipe.schema import Data, Heldout, Loss, Source

ROWS = 700


@pytest.fixture
def rows(tmp_path) -> Path:
    return filled(tmp_path / "rows.jsonl")


def filled(path: Path) -> Path:
    """With rows of which some are dropped, some cut, and some have a column that nothing reads."""
    lines = []
    for i in range(ROWS):
        row = {"prompt": f"What is {i} + 1? ü", "completion": f"{i + 1}" * (1 + i % 40), "answer": str(i + 1)}
        if i % 97 == 5:
            row["completion"] = ""
        if i % 50 == 7:
            row["note"] = "x"
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def tables(path, cache, shape="rows", heldout=None, seed=1, **more):
    source = {"max_examples": more.pop("max_examples", None), "on_error": more.pop("on_error", "stop")}
    data = Data(
        [Source("s", path=str(path), **source)],
        template="chatml",
        cache_dir=str(cache),
        max_length=96,
        overlong="truncate",
        max_drop_share=1.0,
        **more,
    )
    return build(data, Loss(), load_tokenizer("builtin:bytes"), heldout, shape=shape, seed=seed)


def content(cache: Path) -> dict[str, bytes]:
    (folder,) = (f for f in (cache / "tables").iterdir() if f.is_dir())
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("shape", ["rows", "prompts"])
def test_the_same_table_for_any_number_of_processes(rows, tmp_path, shape, monkeypatch):
    found = {}
    for count in (1, 2, 5):
        tables(rows, tmp_path / str(count), shape, num_proc=count)
        found[count] = content(tmp_path / str(count))
    assert found[1] == found[2] == found[5]
    facts = json.loads(found[1]["table.json"])
    assert facts["rows_read"] == ROWS
    if shape == "rows":
        assert facts["unused"]["note"] == ROWS // 50
        assert facts["dropped"] == {"no_completion": 8} and facts["truncated"] > 0


def test_several_processes_do_work_and_none_is_left(rows, tmp_path, monkeypatch):
    seen = tmp_path / "pids"
    seen.mkdir()
    read = catalogue.RowShape.read

    def noted(self, row, source, where):
        (seen / str(os.getpid())).touch()
        return read(self, row, source, where)

    monkeypatch.setattr(catalogue.RowShape, "read", noted)
    tables(rows, tmp_path / "c", num_proc=3)
    others = {int(p.name) for p in seen.iterdir()} - {os.getpid()}
    assert len(others) == 3
    assert not [pid for pid in others if psutil.pid_exists(pid)]


def test_a_small_source_needs_no_process(tmp_path, monkeypatch):
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * making.CHUNK)
    monkeypatch.setattr(parallel, "_forked", None)
    assert len(tables(path, tmp_path / "c", num_proc=4).mixture) == making.CHUNK


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_error_of_the_file_is_the_one_that_is_said(tmp_path, count):
    """Whatever was read ahead: row 200 does not fit, line 300 is not JSON."""
    lines = ['{"prompt": "a", "completion": "b"}'] * 400
    lines[199] = '{"prompt": 5, "completion": "b"}'
    lines[299] = "{"
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(RequestError, match="broken.jsonl:200"):
        tables(path, tmp_path / "c", num_proc=count)
    lines[199] = lines[0]
    path.write_text("\n".join(lines))
    with pytest.raises(RequestError, match="broken.jsonl:300: broken JSON"):
        tables(path, tmp_path / "c", num_proc=count)
    assert not [f for f in (tmp_path / "c" / "tables").iterdir() if f.is_dir()]


def test_a_process_killed_from_outside_is_said():
    def work(chunk):
        if 200 in chunk:
            os.kill(os.getpid(), signal.SIGKILL)
        return chunk

    with pytest.raises(WorkError, match=r"was killed .* set data.num_proc to fewer"):
        list(in_order(work, range(1000), 10, 2, "data.num_proc"))


def test_results_come_in_order_and_reading_is_bounded():
    taken = []

    def items():
        for i in range(2000):
            taken.append(i)
            yield i

    ahead = []
    got = []
    for chunk in in_order(lambda chunk: [2 * i for i in chunk], items(), 10, 2, "k"):
        got += chunk
        ahead.append(len(taken) - len(got))
    assert got == [2 * i for i in range(2000)]
    assert max(ahead) <= 10 * (2 + 2)


KILLED = r"""
import sys, time
from posttrain.data import in_order as p
def work(chunk):
    p.os.write(1, b"%d\n" % p.os.getpid())
    time.sleep(.2 if chunk[0] else 0)
    return chunk
for each in p.in_order(work, range(10000), 1, 3, "k"):
    pass
"""


def test_the_processes_end_with_the_one_that_reads():
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    pids = set()
    while len(pids) < 4:
        pids.add(int(process.stdout.readline()))
    process.kill()
    process.wait()
    others, until = pids - {process.pid}, time.monotonic() + 30
    while any(map(psutil.pid_exists, others)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in others if psutil.pid_exists(pid)]


# ---- max_examples ------------------------------------------------------------------------------------------


def test_only_the_rows_that_are_used_are_tokenised(rows, tmp_path, monkeypatch):
    read = []
    of_row = catalogue.RowShape.read
    monkeypatch.setattr(
        catalogue.RowShape, "read", lambda self, row, *rest: read.append(row) or of_row(self, row, *rest)
    )
    found = tables(rows, tmp_path / "c", max_examples=200, num_proc=1)
    assert len(found.mixture) == 200 and 200 <= len(read) <= 220
    stats = found.tables[0].stats
    assert stats["rows_in_source"] == ROWS and stats["rows_read"] == len(read)


@pytest.mark.parametrize("share", [None, 0.3])
def test_they_are_those_that_all_rows_would_give(tmp_path, share):
    """Where nothing is dropped; with a held-out share, as many are trained on as were asked for."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}", "completion": "{i}"}}\n' for i in range(300)))
    heldout = None if share is None else Heldout(share=share, max_examples=20)
    some = tables(path, tmp_path / "a", max_examples=40, heldout=heldout, seed=3)
    assert len(some.mixture) == 40
    if share is None:
        every = tables(path, tmp_path / "b", seed=3)
        every_40 = type(every.mixture)([type("S", (), {**_about(every), "cap": 40})()], seed=3, shuffle=True)
        wanted = [every.tables[0].origin(every_40[i][1]) for i in range(40)]
        assert [some.tables[0].origin(some.mixture[i][1]) for i in range(40)] == wanted
    other = tables(path, tmp_path / "c", max_examples=40, heldout=heldout, seed=4)
    assert other.mixture.fingerprint != some.mixture.fingerprint


def _about(prepared) -> dict:
    return {
        "name": "s",
        "rows": len(prepared.tables[0]),
        "weight": None,
        "max_repeats": None,
        "mean_tokens": None,
        "fingerprint": "",
    }


def test_rows_that_are_dropped_are_made_up_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"prompt": "{i}", "completion": "{i if i % 3 else ""}"}}' for i in range(300)]
    path.write_text("\n".join(lines))
    found = tables(path, tmp_path / "a", max_examples=100)
    assert len(found.mixture) == 100
    origins = [found.tables[0].origin(i) for i in range(len(found.tables[0]))]
    assert len(set(origins)) == len(origins) and all(i % 3 for i in origins)
    few = tables(path, tmp_path / "b", max_examples=250)
    assert len(few.mixture) == 200 and few.tables[0].stats["rows_read"] == 300


def test_the_choice_does_not_depend_on_processes(rows, tmp_path):
    found = [tables(rows, tmp_path / str(n), max_examples=300, num_proc=n).tables[0] for n in (1, 3)]
    assert np.array_equal(found[0].lengths, found[1].lengths)
    assert content(tmp_path / "1") == content(tmp_path / "3")


CODE = """
import sys
from tests.data.test_make_table import tables
from pathlib import Path
tables(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_the_facts_of_a_table_do_not_depend_on_the_hash_of_text(tmp_path):
    """Columns and control tokens that occur equally often."""
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "<|im_end|><|im_start|><|endoftext|>", "completion": "b"}
    path.write_text(json.dumps(row | dict.fromkeys("zyxwvu", 1)) + "\n")
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        arguments = [sys.executable, "-c", CODE, str(path), str(tmp_path / seed)]
        subprocess.run(arguments, check=True, env=environment)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    unused = list(json.loads(content(tmp_path / "1")["table.json"])["unused"])
    assert unused == sorted(unused) and set("uvwxyz") <= set(unused)


@pytest.mark.parametrize("count", [1, 2])
def test_broken_lines_are_skipped_where_that_is_asked_for(tmp_path, count):
    """The first line and line 817 of a thousand; too many are an error all the same."""
    lines = ['{"prompt": "a", "completion": "b"}'] * 1000
    lines[0], lines[816], lines[900] = "{", "[1, 2]", '{"prompt": 5, "completion": "b"}'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    found = tables(path, tmp_path / "c", num_proc=count, on_error="skip").tables[0]
    assert len(found) == 997 and found.stats["dropped"] == {"unreadable": 3}
    lost = found.stats["dropped_examples"]
    assert [each["where"] for each in lost] == [f"{path}:{n}" for n in (1, 817, 901)]
    assert "must be a JSON object" in lost[1]["detail"]
    with pytest.raises(RequestError, match="rows.jsonl:1: broken JSON"):
        tables(path, tmp_path / "d", num_proc=count)


def test_refused_rows_of_a_choice_are_those_that_the_run_would_read(tmp_path):
    """Rows that are dropped are made up for by others, which may be refused, too."""
    path, choice = tmp_path / "rows.jsonl", making.Choice(20, 0, "s")
    first = {*next(choice.rounds(60, lambda: 0)).tolist()}
    dropped = {*sorted(first)[:8]}
    rows = [{"prompt": "a", "completion": "" if i in dropped else "b"} for i in range(60)]
    for i in {*range(60)} - first:
        rows[i]["weight"] = 0.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source("s", path=str(path), max_examples=20)
    data = Data([source], template="chatml", num_proc=1)
    found = making.refused_rows(
        open_rows(source),
        0,
        source,
        data,
        Loss(),
        load_tokenizer("builtin:bytes"),
        catalogue.SHAPES["rows"],
        choice,
    )
    assert sum(len(made.refused) for made in found) >= 8
