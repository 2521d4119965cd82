"""Tables on disk: what goes in comes out, and a writer that dies leaves nothing that looks whole."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import resource
import signal
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import table_writer
from posttrain.data.table import JoinedTable, SubsetTable, TokenTable
from posttrain.data.table_writer import TableWriter
from posttrain.data.tokens import TokenRow
from posttrain.errors import WorkError

STATS = {"fingerprint": "f", "rows_read": 9, "dropped": {"overlong": 2}, "truncated": 1}
fork = multiprocessing.get_context("fork")


def make(ids, trained, segments, p=None) -> TokenRow:
    ids = np.array(ids, dtype=np.int32)
    labels = np.where(np.array(trained, dtype=bool), ids, -100).astype(np.int32)
    return TokenRow(ids, labels, np.array(segments, dtype=np.int32), p)


def write(folder, rows) -> TokenTable:
    with TableWriter(folder) as writer:
        for i, row in enumerate(rows):
            writer.add(row, 10 * i)
        return writer.finish(STATS)


def same(a: TokenRow, b: TokenRow) -> bool:
    arrays = ("input_ids", "labels", "segment_ids")
    return a.p == b.p and all(
        getattr(a, n).dtype == np.int32 and np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays
    )


@st.composite
def token_rows(draw):
    n = draw(st.integers(1, 12))
    kinds = [0, *draw(st.lists(st.integers(0, 3), min_size=n - 1, max_size=n - 1))]
    segments, number = [], 0
    for kind in kinds:  # 0 untrained, 1 trained, 2 in the current segment, 3 opens a segment
        number += kind == 3 or (kind == 2 and number == 0)
        segments.append(number if kind >= 2 else 0)
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n))
    return make(ids, [k > 0 for k in kinds], segments, draw(st.none() | st.floats(0, 1)))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(token_rows(), min_size=1, max_size=8), st.sampled_from([1, 5, 1 << 20]))
def test_rows_come_back_as_they_went_in(tmp_path_factory, rows, buffer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_writer, "BUFFER", buffer)
        t = write(tmp_path_factory.mktemp("t") / "table", rows)
    assert len(t) == len(rows)
    assert all(same(t[i], row) for i, row in enumerate(rows))
    assert [t.origin(i) for i in range(len(t))] == [10 * i for i in range(len(rows))]
    assert t.lengths.tolist() == [len(row.input_ids) for row in rows]
    assert t.trained.tolist() == [int((row.labels != -100).sum()) for row in rows]
    assert t.stats == STATS | {
        "rows_kept": len(rows),
        "tokens": int(t.lengths.sum()),
        "trained_tokens": int(t.trained.sum()),
        "segments": sum(int(row.segment_ids.max()) for row in rows),
        "rows_with_p": sum(row.p is not None for row in rows),
    }


def test_a_row_worked_by_hand_takes_five_bytes_a_token(tmp_path):
    # prompt, prompt, trained without segment, segment 1, its second token, prompt, segment 1 again, segment 2
    row = make([5, 6, 7, 8, 9, 10, 11, 12], [0, 0, 1, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0, 1, 2], 0.25)
    t = write(tmp_path / "t", [row])
    assert (tmp_path / "t/marks.bin").read_bytes() == bytes([0, 0, 1, 7, 3, 0, 3, 7])
    assert (tmp_path / "t/input_ids.bin").stat().st_size == 32
    assert t[0].labels.tolist() == [-100, -100, 7, 8, 9, -100, 11, 12]
    assert t[0].segment_ids.tolist() == [0, 0, 0, 1, 1, 0, 1, 2] and t[0].p == 0.25


def test_rows_are_copies(tmp_path):
    t = write(tmp_path / "t", [make([1, 2], [0, 1], [0, 1])])
    t[0].input_ids[:] = 9
    t[0].labels[:] = 9
    assert t[0].input_ids.tolist() == [1, 2] and t[0].labels.tolist() == [-100, 2]


@pytest.mark.parametrize(
    "row",
    [
        make([1, 2], [1, 1], [0, 1]),  # a label on the first token
        make([1, 2], [0, 0], [0, 1]),  # a segment that is not trained
        make([1, 2, 3], [0, 1, 1], [0, 2, 1]),  # out of order
        make([1, 2, 3], [0, 1, 1], [0, 1, 3]),  # a gap
        make([1, 2, 3], [0, 1, 1], [0, 2, 3]),  # does not start at 1
        TokenRow(*(np.array(a, np.int32) for a in ([1, 2], [-100, 3], [0, 1]))),  # a label of its own
    ],
)
def test_rows_that_could_not_be_rebuilt_are_refused(tmp_path, row):
    with TableWriter(tmp_path / "t") as writer, pytest.raises(ValueError, match="row 4"):
        writer.add(row, 4)


@pytest.mark.parametrize("i", [-1, 3, 10**12])
def test_rows_outside(tmp_path, i):
    t = write(tmp_path / "t", [make([1, 2], [0, 1], [0, 1])] * 3)
    for view in (t, SubsetTable(t, np.array([2, 0, 1])), JoinedTable([t])):
        with pytest.raises(IndexError):
            view[i]


def test_subsets_and_joins(tmp_path):
    rows = [make([i] * (i + 2), [0] + [1] * (i + 1), [0] + [1] * (i + 1)) for i in range(5)]
    t = write(tmp_path / "t", rows)
    part = SubsetTable(t, np.array([3, 1]))
    assert [part[i].input_ids[0] for i in range(2)] == [3, 1]
    assert part.lengths.tolist() == [5, 3] and part.trained.tolist() == [4, 2]
    assert [part.origin(i) for i in range(2)] == [30, 10]
    prints = {t.fingerprint, part.fingerprint, SubsetTable(t, np.array([1, 3])).fingerprint}
    assert len(prints) == 3
    joined = JoinedTable([part, t])
    assert len(joined) == 7
    assert [joined.locate(i) for i in (0, 1, 2, 6)] == [(0, 0), (0, 1), (1, 0), (1, 4)]
    assert [joined[i].input_ids[0] for i in range(7)] == [3, 1, 0, 1, 2, 3, 4]


def test_a_worker_process_gets_the_path_and_not_the_tokens(tmp_path):
    t = write(tmp_path / "t", [make(range(100_000), [0] + [1] * 99_999, [0] + [1] * 99_999)])
    sent = pickle.dumps(SubsetTable(t, np.array([0])))
    assert len(sent) < 2000
    assert same(pickle.loads(sent)[0], t[0])


def test_an_empty_table(tmp_path):
    t = write(tmp_path / "t", [])
    assert len(t) == 0 and t.lengths.tolist() == []


@pytest.mark.parametrize("damage", ["shorten", "remove", "json", "keys"])
def test_a_damaged_table_is_named(tmp_path, damage):
    write(tmp_path / "t", [make([1, 2], [0, 1], [0, 1])])
    if damage == "shorten":
        os.truncate(tmp_path / "t/input_ids.bin", 4)
    elif damage == "remove":
        (tmp_path / "t/rows.bin").unlink()
    else:
        (tmp_path / "t/table.json").write_text("{" if damage == "json" else json.dumps({}))
    with pytest.raises(WorkError, match=f"{tmp_path / 't'} are damaged.*delete the folder"):
        TokenTable(tmp_path / "t")


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), TableWriter(tmp_path / "t") as writer:
        writer.add(make([1, 2], [0, 1], [0, 1]), 0)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_writers_takes_the_table_of_the_first(tmp_path):
    row = make([1, 2], [0, 1], [0, 1])
    with TableWriter(tmp_path / "t") as late:
        late.add(row, 0)
        write_in_other = fork.Process(target=write, args=(tmp_path / "t", [row]))
        write_in_other.start()
        write_in_other.join()
        assert len(late.finish(STATS)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def _write_for_ever(folder):
    row = make([1, 2], [0, 1], [0, 1])
    table_writer.BUFFER = 10
    with TableWriter(folder) as writer:
        while True:
            writer.add(row, 0)


def test_kill_nine_in_the_middle_leaves_no_table(tmp_path):
    child = fork.Process(target=_write_for_ever, args=(tmp_path / "t",), daemon=True)
    child.start()
    deadline = time.monotonic() + 30
    try:
        while not any(marks.stat().st_size > 100 for marks in tmp_path.glob(".tmp-t.*/marks.bin")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not (tmp_path / "t").exists() and list(tmp_path.glob(".tmp-t.*/marks.bin"))
    assert len(write(tmp_path / "t", [make([1, 2], [0, 1], [0, 1])])) == 1


def _write_with_little_room(folder, sender):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        write(folder, [make([1, 2], [0, 1], [0, 1])] * 5000)
    except OSError as error:
        sender.send((error.errno, sorted(p.name for p in folder.parent.iterdir())))


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_write_with_little_room, args=(tmp_path / "t", sender))
    child.start()
    assert receiver.poll(20)
    assert receiver.recv() == (errno.EFBIG, [])
    child.join()
