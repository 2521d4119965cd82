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

from posttrain.data import table, table_writer
from posttrain.data.table import (
    JoinedTable,
    PairTable,
    SubsetTable,
    TokenTable,
    complete,
    damaged_file,
    hash_of_facts,
)
from posttrain.data.table_writer import TableWriter
from posttrain.data.tokens import TokenRow
from posttrain.errors import WorkError

STATS = {"fingerprint": "f", "rows_read": 9, "dropped": {"overlong": 2}, "truncated": 1}
fork = multiprocessing.get_context("fork")


def make(ids, trained, segments, p=None) -> TokenRow:
    ids = np.array(ids, dtype=np.int32)
    labels = np.where(np.array(trained, dtype=bool), ids, -100).astype(np.int32)
    return TokenRow(ids, labels, np.array(segments, dtype=np.int32), p)


def write(folder, rows, origins=None) -> TokenTable:
    with TableWriter(folder) as writer:
        for i, row in enumerate(rows):
            writer.add(row, origins[i] if origins else 10 * i)
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
    counts = {"rows_kept": 1, "tokens": 8, "trained_tokens": 5, "segments": 2, "rows_with_p": 1}
    assert t.stats == STATS | counts


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
    with TableWriter(tmp_path / "t") as writer:
        with pytest.raises(ValueError, match="row 4"):
            writer.add(row, 4)
        assert len(writer.finish(STATS)) == 0


@pytest.mark.parametrize("i", [-1, 3, 10**12])
def test_rows_outside(tmp_path, i):
    t = write(tmp_path / "t", [make([1, 2], [0, 1], [0, 1])] * 3)
    for view in (t, SubsetTable(t, np.array([2, 0, 1])), JoinedTable([t])):
        with pytest.raises(IndexError, match=f"^row {i} of 3$"):
            view[i]
    for empty in (write(tmp_path / "e", []), SubsetTable(t, np.array([])), JoinedTable([])):
        with pytest.raises(IndexError, match=f"^row {i} of 0$"):
            empty[i]


def test_subsets_and_joins(tmp_path):
    rows = [make([i] * (i + 2), [0] + [1] * (i + 1), [0] + [1] * (i + 1)) for i in range(5)]
    t = write(tmp_path / "t", rows)
    assert t.lengths.tolist() == [2, 3, 4, 5, 6] and t.trained.tolist() == [1, 2, 3, 4, 5]
    part = SubsetTable(t, np.array([3, 1]))
    assert [part[i].input_ids[0] for i in range(2)] == [3, 1]
    assert part.lengths.tolist() == [5, 3] and part.trained.tolist() == [4, 2]
    assert [part.origin(i) for i in range(2)] == [30, 10] and part.stats == t.stats
    assert SubsetTable(t, np.array([3, 1], np.int32)).fingerprint == part.fingerprint
    assert SubsetTable(t, np.array([])).lengths.tolist() == []
    prints = {t.fingerprint, part.fingerprint, SubsetTable(t, np.array([1, 3])).fingerprint}
    assert len(prints) == 3
    joined = JoinedTable([part, SubsetTable(t, np.array([])), t, part])
    assert len(joined) == 9
    assert [joined.locate(i) for i in (0, 1, 2, 6, 7)] == [(0, 0), (0, 1), (2, 0), (2, 4), (3, 0)]
    assert [joined[i].input_ids[0] for i in range(9)] == [3, 1, 0, 1, 2, 3, 4, 3, 1]
    assert len({joined.fingerprint, *(JoinedTable(some).fingerprint for some in ([part, t], [t, part]))}) == 3


def test_pairs_are_two_rows_each(tmp_path):
    """Rows of 2 to 7 tokens, all but the first trained."""
    rows = [make([i] * (i + 2), [0] + [1] * (i + 1), [0] + [1] * (i + 1)) for i in range(6)]
    t = write(tmp_path / "t", rows, [3, 3, 4, 4, 9, 9])
    pairs = PairTable(t)
    assert len(pairs) == pairs.stats["rows_kept"] == 3 and pairs.fingerprint == t.fingerprint
    assert [[side.input_ids[0] for side in pairs[i]] for i in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert pairs.lengths.tolist() == [5, 9, 13] and pairs.trained.tolist() == [3, 7, 11]
    assert [pairs.origin(i) for i in range(3)] == [3, 4, 9]
    for i in (-1, 3):
        with pytest.raises(IndexError, match=f"^pair {i} of 3$"):
            pairs[i]
    assert complete(SubsetTable(pairs, np.array([1]))) is complete(t) is t


def test_each_row_has_its_p(tmp_path):
    rows = [make([1, 2], [0, 1], [0, 1], p) for p in (0.25, None, 0.0)]
    t = write(tmp_path / "t", rows)
    assert [t[i].p for i in range(3)] == [0.25, None, 0.0]
    assert t.p[[0, 2]].tolist() == [0.25, 0.0] and np.isnan(t.p[1])
    assert SubsetTable(t, np.array([2, 0])).p.tolist() == [0.0, 0.25]
    assert t.stats["rows_with_p"] == 2


# Rows 0, 10 and 20 of a source, whose tokens are 3, 2 and 2.
OLD = [
    make([1, 2, 3], [0, 1, 1], [0, 1, 1]),
    make([4, 5], [0, 1], [0, 1], 0.5),
    make([6, 7], [0, 1], [0, 0]),
]


@pytest.mark.parametrize(
    ("new", "origins", "row"),
    [
        (OLD, [0, 10, 20], None),
        ([make([9, 2, 3], [0, 1, 1], [0, 1, 1]), *OLD[1:]], [0, 10, 20], 0),  # its first token
        ([make([1, 2, 9], [0, 1, 1], [0, 1, 1]), *OLD[1:]], [0, 10, 20], 0),  # its last
        ([*OLD[:1], make([9, 5], [0, 1], [0, 1], 0.5), *OLD[2:]], [0, 10, 20], 10),
        ([*OLD[:2], make([6, 9], [0, 1], [0, 0])], [0, 10, 20], 20),
        ([make([1, 2, 3], [0, 0, 1], [0, 0, 1]), *OLD[1:]], [0, 10, 20], 0),  # a label
        ([*OLD[:2], make([6, 7], [0, 1], [0, 1])], [0, 10, 20], 20),  # a segment
        ([make([1, 2, 3], [0, 1, 1], [0, 1, 2]), *OLD[1:]], [0, 10, 20], 0),  # two segments, not one
        ([*OLD[:1], make([4, 5], [0, 1], [0, 1], 0.25), *OLD[2:]], [0, 10, 20], 10),
        ([*OLD[:1], make([4, 5], [0, 1], [0, 1]), *OLD[2:]], [0, 10, 20], 10),  # no p
        ([make([1, 2], [0, 1], [0, 1]), make([3, 4, 5], [0, 1, 1], [0, 0, 1], 0.5), OLD[2]], [0, 10, 20], 0),
        ([*OLD[:1], make([4, 9], [0, 1], [0, 1], 0.5), make([6, 7], [0, 1], [0, 0], 1)], [0, 10, 20], 10),
        (OLD, [0, 10, 30], 20),  # row 20 is dropped and one that was dropped is kept
        ([OLD[0], OLD[2]], [0, 20], 10),  # row 10 is dropped
        (OLD[:2], [0, 10], 20),  # as is the last
        ([], [], 0),
        ([*OLD, OLD[0]], [0, 10, 20, 40], 40),  # one more
    ],
)
def test_the_first_row_that_differs_is_named_by_its_number_in_the_source(
    tmp_path, monkeypatch, new, origins, row
):
    old, new = write(tmp_path / "old", OLD), write(tmp_path / "new", new, origins)
    for block in (1, 2, 3, 1 << 20):
        monkeypatch.setattr(table, "BLOCK", block)
        assert new.first_difference(old) == old.first_difference(new) == row


def test_a_worker_process_gets_the_path_and_not_the_tokens(tmp_path):
    t = write(tmp_path / "t", [make(range(100_000), [0] + [1] * 99_999, [0] + [1] * 99_999)])
    sent = pickle.dumps(SubsetTable(t, np.array([0])))
    assert len(sent) < 2000
    assert same(pickle.loads(sent)[0], t[0])


def test_an_empty_table(tmp_path):
    t = write(tmp_path / "t", [])
    assert len(t) == 0 and t.lengths.tolist() == []
    (t.folder / "marks.bin").write_bytes(b"\0")
    with pytest.raises(WorkError, match="marks.bin has 1 bytes, not 0"):
        TokenTable(t.folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("input_ids.bin", b"\0" * 4),
        ("marks.bin", b"\0" * 3),
        ("rows.bin", None),
        ("table.json", b"{"),
        ("table.json", b"{}"),
        ("table.json", b"7"),
        ("table.json", b'{"rows_kept": 1, "tokens": "x", "fingerprint": "f"}'),
        ("table.json", b'{"rows_kept": 1, "tokens": null, "fingerprint": "f"}'),
        ("table.json", b'{"rows_kept": 1, "tokens": 2}'),
    ],
)
def test_a_damaged_table_is_named(tmp_path, file, content):
    write(tmp_path / "t", [make([1, 2], [0, 1], [0, 1])])
    if content is None:
        (tmp_path / "t" / file).unlink()
    else:
        (tmp_path / "t" / file).write_bytes(content)
    with pytest.raises(WorkError, match=f"{tmp_path / 't'} are damaged.*delete the folder"):
        TokenTable(tmp_path / "t")


def flip(file) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def facts(change):
    """Changes table.json as JSON."""

    def edit(file) -> None:
        found = json.loads(file.read_text())
        change(found)
        file.write_text(json.dumps(found))

    return edit


@pytest.mark.parametrize("name", ["input_ids.bin", "marks.bin", "rows.bin"])
def test_a_file_that_is_not_as_it_was_written_is_named(tmp_path, name):
    """Opening the table does not see it."""
    t = write(tmp_path / "f", [make([1, 2], [0, 1], [0, 1])])
    assert damaged_file(t.folder) is None
    flip(t.folder / name)
    assert len(TokenTable(t.folder)) == 1 and damaged_file(t.folder) == name
    (t.folder / name).unlink()
    assert damaged_file(t.folder) == name


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text("{"),
        lambda file: file.write_text("7"),
        lambda file: file.write_text("{}"),
        facts(lambda found: found.update(trained_tokens=2)),
        facts(lambda found: found.update(more=1)),
        facts(lambda found: found["hashes"].pop("marks.bin")),
        facts(lambda found: found["hashes"].update({"table.json": "0" * 32})),
        facts(lambda found: found["hashes"].pop("table.json")),
        facts(lambda found: found.update(fingerprint="g")),
        facts(lambda found: found.update(fingerprint="g", hashes={})),
    ],
)
def test_counts_that_are_not_as_they_were_written_are_damage(tmp_path, damage):
    t = write(tmp_path / "f", [make([1, 2], [0, 1], [0, 1])])
    damage(t.folder / "table.json")
    assert damaged_file(t.folder) == "table.json"


def test_a_table_of_another_name_is_damaged(tmp_path):
    t = write(tmp_path / "f", [make([1, 2], [0, 1], [0, 1])])
    assert damaged_file(t.folder.rename(tmp_path / "g")) == "table.json"


def test_the_hash_of_counts_is_that_of_tables_that_are_there():
    """sha256sum of the counts in JSON, keys sorted; another one would make every cached table anew."""
    counts = {"rows_kept": 1, "truncated": 0, "fingerprint": "f"}
    hashes = {"table.json": "of itself", "marks.bin": "12"}
    assert hash_of_facts(counts | {"hashes": hashes}) == "93bd997364d692c15c7ca7eb6379f215"


def test_of_a_table_without_hashes_the_sizes_are_compared(tmp_path):
    t = write(tmp_path / "f", [make([1, 2], [0, 1], [0, 1])])
    facts(lambda found: found.pop("hashes"))(t.folder / "table.json")
    assert damaged_file(t.folder) is None
    flip(t.folder / "marks.bin")
    assert damaged_file(t.folder) is None
    (t.folder / "marks.bin").write_bytes(bytes(3))
    assert damaged_file(t.folder) == "table.json"


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
