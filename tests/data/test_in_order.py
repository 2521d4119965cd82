"""What goes wrong between the process that reads and those that work."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from posttrain.data import in_order as parallel
from posttrain.data import make_table as making
from posttrain.data.in_order import Ended, in_order
from posttrain.data.make_once import make_once
from posttrain.data.table import IDS
from posttrain.errors import WorkError
from tests.data.test_make_table import content, tables


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def test_a_chunk_that_cannot_be_sent_is_done_here():
    items = [[n] for n in range(100)]
    items[55] = items[71] = nested(5000)
    done = in_order(lambda chunk: [(os.getpid(), len(each)) for each in chunk], items, 10, 2, "k")
    found = [{pid for pid, _ in chunk} for chunk in done]
    assert len(found) == 10 and all(len(pids) == 1 for pids in found)
    assert [pids == {os.getpid()} for pids in found] == [n in (0, 5, 7) for n in range(10)]


@pytest.mark.parametrize("count", [1, 2])
def test_deep_columns_that_are_not_used_are_no_reason_to_refuse(tmp_path, count):
    line = '{"prompt": "a", "completion": "b", "deep": ' + "[" * 600 + "]" * 600 + "}\n"
    (tmp_path / "rows.jsonl").write_text(line * 200)
    assert len(tables(tmp_path / "rows.jsonl", tmp_path / "c", num_proc=count).mixture) == 200


def test_chunks_are_bounded_by_weight(monkeypatch):
    """Items of 1 to 9, chunks of at most 20 but one of 50; count + 1 of them at a time at most."""
    monkeypatch.setattr(parallel, "HEAVIEST", 20)
    items = [1 + 3 * n % 9 for n in range(300)]
    items[100] = 50
    taken, chunks, ahead = [], [], []
    for chunk in in_order(list, (taken.append(i) or i for i in items), 64, 2, "k", lambda item: item):
        chunks.append(chunk)
        ahead.append(sum(taken) - sum(map(sum, chunks)))
    assert [each for chunk in chunks for each in chunk] == items
    assert [chunk for chunk in chunks if sum(chunk) > 20] == [[50]]
    assert max(map(sum, chunks[20:])) > 12 and max(ahead) <= 3 * 20 + 50


def test_the_weight_of_a_row():
    row = {"text": "x" * 1000, "turns": [{"content": "y" * 500}] * 2, "ids": list(range(100)), "n": None}
    assert 2800 <= making._weight((0, "here", row)) <= 3000


def test_processes_are_started_as_chunks_come(monkeypatch):
    started, own = [], parallel._started
    monkeypatch.setattr(parallel, "_started", lambda *given: started.append(1) or own(*given))
    assert len(list(in_order(list, range(40), 10, 200, "k"))) == 4
    assert len(started) == 3


def test_a_process_that_cannot_be_started_names_the_key_and_not_the_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(parallel._Worker, "__init__", full)
    with pytest.raises(Ended, match=r"cannot be started \(Too many open files\); set data.num_proc to fewer"):
        make_once(tmp_path / "t", lambda: list(in_order(list, range(99), 9, 2, "data.num_proc")), "w", 1e12)


@pytest.mark.parametrize("error", [EOFError("x"), BrokenPipeError("x"), OSError("got end of file")])
def test_what_work_raises_is_not_the_end_of_a_process(error):
    def work(chunk):
        if 50 in chunk:
            raise error
        return chunk

    for count in (1, 2):
        with pytest.raises(type(error), match=str(error)):
            list(in_order(work, range(100), 10, count, "k"))

    def items():
        yield from range(50)
        raise error

    with pytest.raises(type(error), match=str(error)):
        list(in_order(list, items(), 10, 2, "k"))


def test_a_process_that_ends_in_the_middle_of_an_answer():
    """Of an answer of 8 MB, which no pipe holds."""
    import threading

    def work(chunk):
        if 50 in chunk:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return b"x" * (8 << 20)
        return chunk

    results = in_order(work, range(100), 10, 2, "data.num_proc")
    with pytest.raises(Ended, match="was killed"):
        for number, _ in enumerate(results):
            if number == 4:
                time.sleep(1)


def test_a_killed_process_loses_what_was_not_kept_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}", "completion": "b"}) + "\n" for i in range(700)))
    tables(path, tmp_path / "whole", num_proc=2)
    monkeypatch.setattr(making, "KEEP_S", 0.0)
    read, parent = making._read, os.getpid()

    def dying(numbered, *rest):
        if numbered[0] == 400 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(numbered, *rest)

    monkeypatch.setattr(making, "_read", dying)
    with pytest.raises(WorkError, match="was killed .* set data.num_proc to fewer") as found:
        tables(path, tmp_path / "cut", num_proc=2)
    assert "space" not in str(found.value)
    (part,) = (tmp_path / "cut" / "tables").glob(".partial-*")
    assert (part / IDS).stat().st_size > 0
    seen = []
    monkeypatch.setattr(making, "_read", lambda each, *rest: seen.append(each[0]) or read(each, *rest))
    tables(path, tmp_path / "cut", num_proc=1)
    assert seen[0] == 384, "the chunk of 64 with row 400"
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


ORPHANED = r"""
import os, signal, sys, time
from posttrain.data import in_order as p
p.die_with_parent = lambda parent: None
def work(chunk):
    if chunk[0]:
        os.write(1, b"%d\n" % os.getpid())
        time.sleep(.5)
    return b"x" * (1 << 20)
for each in p.in_order(work, range(1000), 1, 2, "k"):
    pass
"""


def test_a_process_whose_reader_is_gone_ends_without_a_word():
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = {int(process.stdout.readline()) for _ in range(3)}
    process.kill()
    assert process.stderr.read() == ""  # ends with the last process that has it open
    until = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
