"""Preparing sources: cached by content, made once by any number of processes; held-out rows are never
trained."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import resource
import signal
import socket
import time
from dataclasses import replace

import numpy as np
import pytest

from posttrain.base.temporary import machine
from posttrain.data import cache, make_once
from posttrain.data.cache import prepare_sources
from posttrain.data.prepare import HeldoutRows, TrainRows, build
from posttrain.data.shapes import catalogue
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.recipe.schema import Columns, Data, Heldout, Loss, Source
from tests.data.tokens import prepare_source

fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("builtin:bytes")


@pytest.fixture
def data(tmp_path):
    return Data(sources=[], template="chatml", cache_dir=str(tmp_path / "cache"), max_length=200)


def rows_file(path, n, start=0, **extra):
    lines = [{"prompt": f"say {start + i}", "completion": f"{start + i}"} | extra for i in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def source(tmp_path):
    return Source(name="numbers", path=rows_file(tmp_path / "numbers.jsonl", 40))


def folders(data):
    return sorted(p.name for p in cache.cache_root(data).iterdir() if p.is_dir())


def text_of(row, tokenizer):
    return tokenizer.decode(row["input_ids"])


def test_rows_are_prepared_once_and_then_read(data, source, tokenizer, monkeypatch):
    seen = []
    first = prepare_source(source, data, Loss(), tokenizer, progress=lambda *a: seen.append(a))
    assert seen[-1] == ("numbers", 40, 40)
    monkeypatch.setattr(catalogue, "tokenizing", None)  # a second pass would fail
    again = prepare_source(source, data, Loss(), tokenizer)
    assert again.fingerprint == first.fingerprint and len(again) == 40
    assert again.stats["rows_read"] == again.stats["rows_kept"] == again.stats["segments"] == 40
    assert again.stats["files"] == [{"path": source.path, "bytes": os.stat(source.path).st_size}]
    assert tokenizer.decode(again[7].input_ids).count("say 7") == 1


def test_the_cache_is_found_by_setting_then_environment_then_home(data, monkeypatch, tmp_path):
    assert cache.cache_root(data) == tmp_path / "cache" / "tables"
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "env"))
    assert cache.cache_root(replace(data, cache_dir=None)) == tmp_path / "env" / "tables"
    monkeypatch.delenv("POSTTRAIN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home/.cache/posttrain/tables"
    assert cache.cache_root(replace(data, cache_dir=None)) == expected


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("data", {"max_length": 100}),
        ("data", {"train_on": "all"}),
        ("data", {"overlong": "truncate"}),
        ("data", {"template": "tulu"}),
        ("source", {"system": "Be brief."}),
        ("source", {"columns": Columns(prompt="prompt")}),
        ("source", {"format": "prompt_completion"}),
        ("source", {"options": {"strip_calculator": True}}),
        ("loss", {"segment": "token"}),
        ("loss", {"step_delimiter": ";"}),
    ],
)
def test_what_changes_tokens_makes_another_table(data, source, tokenizer, what, change):
    before = prepare_source(source, data, Loss(), tokenizer).fingerprint
    values = {"data": data, "source": source, "loss": Loss()}
    values[what] = replace(values[what], **change)
    after = prepare_source(values["source"], values["data"], values["loss"], tokenizer)
    assert after.fingerprint != before and len(folders(data)) == 2


def test_what_does_not_change_tokens_does_not(data, source, tokenizer, tmp_path):
    prepare_source(source, data, Loss(), tokenizer)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes((tmp_path / "numbers.jsonl").read_bytes())
    other = replace(source, path=str(moved), weight=3.0, max_examples=3, name="other")
    lenient = replace(data, max_drop_share=0.5, prepare_timeout=1, shuffle=False, temperature=2.0)
    tokenizer("padded", padding="max_length", max_length=9, truncation=True)  # leaves state behind
    prepare_source(other, lenient, Loss(name="dft", n=2.0), tokenizer)
    assert len(folders(data)) == 1


def test_edited_rows_templates_and_tokenizers_make_another_table(data, source, tokenizer, tmp_path):
    template = tmp_path / "mine.jinja"
    chatml = (cache.Path(cache.__file__).parent / "templates/chatml.jinja").read_text()
    template.write_text(chatml)
    data = replace(data, template=str(template))
    prepare_source(source, data, Loss(), tokenizer)
    template.write_text(chatml.replace("<|im_start|>", "<|im_start|>-"))
    prepare_source(source, data, Loss(), tokenizer)
    rows_file(tmp_path / "numbers.jsonl", 40, start=1)
    prepare_source(source, data, Loss(), tokenizer)
    larger = load_tokenizer("builtin:bytes")
    larger.add_tokens(["say"])
    prepare_source(source, data, Loss(), larger)
    assert len(folders(data)) == 4


def test_too_many_drops_say_what_where_and_what_to_do(data, tokenizer, tmp_path):
    path = tmp_path / "mixed.jsonl"
    lines = [{"prompt": "a", "completion": "b"}] * 12
    lines[2:8] = [{"prompt": "a", "completion": "x" * 300}] * 6
    lines[9] = {"prompt": "a", "completion": ""}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Source(name="mixed", path=str(path))
    with pytest.raises(RequestError) as error:
        prepare_source(source, data, Loss(), tokenizer)
    text = str(error.value)
    assert "source 'mixed': 7 of 12 rows (58.3%)" in text
    assert "6 overlong, 1 no_completion" in text and "data.max_drop_share = 0.05" in text
    assert f"First: {path}:3, :4, :5, :6, :7: overlong: 322 tokens. Remedies: overlong: " in text
    assert "raise data.max_length (now 200)" in text and "overlong: truncate" in text
    # The limit is no part of the table: allowing the drops costs no second pass.
    table = prepare_source(source, replace(data, max_drop_share=0.6), Loss(), tokenizer)
    assert table.stats["dropped"] == {"overlong": 6, "no_completion": 1} and len(table) == 5
    assert [table.origin(i) for i in range(5)] == [0, 1, 8, 10, 11]
    kept = table.stats["dropped_examples"]
    places = {r: [k["where"] for k in kept if k["reason"] == r] for r in ("overlong", "no_completion")}
    assert places == {"overlong": [f"{path}:{n}" for n in range(3, 8)], "no_completion": [f"{path}:10"]}
    assert {k["detail"] for k in kept} == {"322 tokens", "column 'completion' is empty"}
    assert len(folders(data)) == 1
    cut = replace(data, overlong="truncate", max_drop_share=0.5)
    with pytest.raises(
        RequestError, match="6 truncated, 1 no_completion.* First: .*:3, :4.*: truncated: cut to 200"
    ):
        prepare_source(source, cut, Loss(), tokenizer)
    assert (
        prepare_source(source, replace(cut, max_drop_share=7 / 12), Loss(), tokenizer).stats["truncated"] == 6
    )


def test_a_table_of_an_older_version_still_names_its_first_lost_rows(data, tokenizer, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n{"prompt": "a", "completion": "b"}\n')
    source = Source(name="one", path=str(path))
    table = prepare_source(source, replace(data, max_drop_share=0.5), Loss(), tokenizer)
    stats = table.stats | {"examples_of_drops": ["one.jsonl:1: no_completion: as it was"]}
    del stats["dropped_examples"]
    (table.folder / "table.json").write_text(json.dumps(stats))
    with pytest.raises(RequestError, match="First: one.jsonl:1: no_completion: as it was"):
        prepare_source(source, data, Loss(), tokenizer)


def test_nothing_left_is_an_error_whatever_is_allowed(data, tokenizer, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n' * 3)
    with pytest.raises(RequestError, match="3 of 3 rows .100.0%.*none is left.*3 no_completion"):
        prepare_source(
            Source(name="none", path=str(path)), replace(data, max_drop_share=1.0), Loss(), tokenizer
        )


def _prepare(data, source, tokenizer, sender, is_main=True, slow=0.0, room=None):
    """Runs in a process of its own; sends what became of it and whether it did the work."""
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    worked = []
    inner = cache.make_table

    def make(*arguments):
        worked.append(1)
        time.sleep(slow)
        inner(*arguments)

    cache.make_table = make
    make_once.POLL = 0.05
    try:
        (table,) = prepare_sources([source], data, Loss(), tokenizer, is_main)
        sender.send(("done", len(table), len(worked)))
    except (RequestError, WorkError) as error:
        sender.send((type(error).__name__, str(error), len(worked)))


def start(*arguments, **options):
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_prepare, args=(*arguments, sender), kwargs=options, daemon=True)
    child.start()
    return child, receiver


def result(receiver):
    assert receiver.poll(30)
    return receiver.recv()


@pytest.mark.slow
def test_two_runs_and_a_waiting_rank_do_the_work_once(data, source, tokenizer):
    both = [start(data, source, tokenizer, slow=0.4) for _ in range(2)]
    _, waiting = start(data, source, tokenizer, is_main=False)
    outcomes = [result(receiver) for _, receiver in both]
    assert sorted(outcomes) == [("done", 40, 0), ("done", 40, 1)]
    assert result(waiting) == ("done", 40, 0)
    assert len(folders(data)) == 1


def test_a_holder_that_was_killed_blocks_nobody(data, source, tokenizer):
    dead, _ = start(data, source, tokenizer, slow=60)
    root = cache.cache_root(data)
    deadline = time.monotonic() + 20
    while not list(root.glob("*.lock")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    left = root / f".tmp-rows.0123abcd.{dead.pid}.{machine()}"
    left.mkdir()  # what it had written so far
    os.kill(dead.pid, signal.SIGKILL)
    dead.join()
    _, receiver = start(data, source, tokenizer)
    assert result(receiver) == ("done", 40, 1)
    assert not left.exists() and len(folders(data)) == 1


@pytest.mark.slow
def test_a_held_lock_is_named_at_the_deadline(data, source, tokenizer):
    holder, _ = start(data, source, tokenizer, slow=60)
    time.sleep(0.5)
    _, receiver = start(replace(data, prepare_timeout=0.3 / 60), source, tokenizer)
    kind, text, worked = result(receiver)
    holder.kill()
    assert kind == "WorkError" and worked == 0
    assert f"source 'numbers': process {holder.pid} of " in text and "(since 20" in text
    assert f"on host {socket.gethostname()}" in text and "prepare_timeout" in text


@pytest.mark.slow
def test_waiting_ends_at_the_deadline(data, source, tokenizer):
    began = time.monotonic()
    hasty = replace(data, prepare_timeout=0.2 / 60)
    with pytest.raises(WorkError, match=r"source 'numbers': waited .*data\.prepare_timeout"):
        prepare_sources([source], hasty, Loss(), tokenizer, is_main=False)
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_those_who_wait_fail_with_the_words_of_the_one_who_works(data, tokenizer, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3, "completion": "b"}\n')
    source = Source(name="bad", path=str(path))
    began = time.monotonic()
    _, waiting = start(data, source, tokenizer, is_main=False)
    time.sleep(0.2)
    _, working = start(data, source, tokenizer)
    said = result(working)
    assert said[0] == "RefusedRow" and "bad.jsonl:2" in said[1]
    assert result(waiting) == ("RequestError", said[1], 0)
    # One that comes late need not wait either: the same rows fail the same way.
    assert result(start(data, source, tokenizer, is_main=False)[1]) == ("RequestError", said[1], 0)
    assert time.monotonic() - began < 20  # the timeout is an hour


@pytest.mark.slow
def test_a_full_disk_is_said_and_cleaned_and_forgotten(data, source, tokenizer, tmp_path):
    rows_file(tmp_path / "numbers.jsonl", 400)
    kind, text, _ = result(start(data, source, tokenizer, room=20_000)[1])
    assert kind == "WorkError" and "cannot write prepared rows" in text and "GiB free" in text
    root = cache.cache_root(data)
    assert folders(data) == [] and len(list(root.glob("*.failed"))) == 1
    # Yesterday's full disk: a rank that waits does not believe the note, and the work removes it.
    _, waiting = start(data, source, tokenizer, is_main=False)
    time.sleep(0.3)
    assert result(start(data, source, tokenizer)[1]) == ("done", 400, 1)
    assert result(waiting) == ("done", 400, 0)
    assert not list(root.glob("*.failed"))


def test_a_defect_reaches_those_who_wait(data, source, tokenizer, monkeypatch):
    monkeypatch.setattr(catalogue, "tokenizing", lambda *_: 1 / 0)
    monkeypatch.setattr(make_once, "POLL", 0.05)
    _, waiting = start(data, source, tokenizer, is_main=False)
    time.sleep(0.3)
    with pytest.raises(ZeroDivisionError):
        prepare_source(source, data, Loss(), tokenizer)
    kind, text, _ = result(waiting)
    assert kind == "WorkError" and "ZeroDivisionError: division by zero" in text


def test_a_cache_that_cannot_be_made(data, source, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"source 'numbers': cannot write .*data\.cache_dir"):
        prepare_source(source, replace(data, cache_dir=str(tmp_path / "file")), Loss(), tokenizer)


@pytest.fixture
def two(data, source, tmp_path):
    """A recipe's data: 40 rows and 10 rows."""
    few = Source(name="few", path=rows_file(tmp_path / "few.jsonl", 10, start=500))
    return replace(data, sources=[source, few])


def test_an_epoch_of_dataset_rows(two, tokenizer):
    prepared = build(two, Loss(), tokenizer, seed=1)
    rows = TrainRows(prepared, 50)
    texts = {text_of(row, tokenizer) for row in rows}
    assert len(rows) == 50 == len(texts) and prepared.names == ["numbers", "few"]
    row = rows[0]
    assert set(row) == {"input_ids", "labels", "segment_ids", "p", "source", "row"}
    number = row["row"] if row["source"] == 0 else 500 + row["row"]
    assert f"say {number}<" in text_of(row, tokenizer)
    few = TrainRows(prepared, 7)
    assert [text_of(r, tokenizer) for r in few] == [text_of(rows[i], tokenizer) for i in range(7)]
    assert np.array_equal(pickle.loads(pickle.dumps(rows))[9]["labels"], rows[9]["labels"])
    with pytest.raises(IndexError):
        few[7]
    assert build(two, Loss(), tokenizer, seed=1).mixture.fingerprint == prepared.mixture.fingerprint
    assert build(two, Loss(), tokenizer, seed=2).mixture.fingerprint != prepared.mixture.fingerprint


def test_held_out_rows_are_never_trained_on(two, tokenizer):
    two.sources[0].max_examples = 20
    prepared = build(two, Loss(), tokenizer, Heldout(share=0.25), seed=5)
    measured = [(row["source"], row["row"]) for row in HeldoutRows(prepared)]
    trained = {(row["source"], row["row"]) for row in TrainRows(prepared, 300)}
    assert len(measured) == len(set(measured)) == 8  # 26 of 40 are read: 6; round(2.5) = 2 of 10
    assert not trained & set(measured)
    assert len(trained) == 20 + 8  # the cap counts what is left
    assert measured == [
        (row["source"], row["row"])
        for row in HeldoutRows(build(two, Loss(), tokenizer, Heldout(share=0.25), seed=5))
    ]
    other = HeldoutRows(build(two, Loss(), tokenizer, Heldout(share=0.25, seed=6), seed=5))
    assert {(row["source"], row["row"]) for row in other} != set(measured)


def test_max_examples_measures_fewer_and_trains_on_the_same(two, tokenizer):
    few = build(two, Loss(), tokenizer, Heldout(share=0.5, max_examples=5), seed=5)
    many = build(two, Loss(), tokenizer, Heldout(share=0.5), seed=5)
    assert len(few.heldout_table) == 5 and len(many.heldout_table) == 25
    assert [len(t) for t in few.heldout_table.tables] == [4, 1]  # 20 : 5
    assert few.mixture.fingerprint == many.mixture.fingerprint


def test_a_held_out_source_of_its_own(two, tokenizer, tmp_path):
    own = Source(name="test", path=rows_file(tmp_path / "test.jsonl", 30, start=900))
    prepared = build(two, Loss(), tokenizer, Heldout(source=own, max_examples=8), seed=5)
    rows = list(HeldoutRows(prepared))
    assert len(rows) == 8 and {row["source"] for row in rows} == {2}
    assert all(f"say {900 + row['row']}<" in text_of(row, tokenizer) for row in rows)
    assert len(prepared.mixture) == 50
    assert build(two, Loss(), tokenizer).heldout_table is None


@pytest.mark.parametrize("share", [0.0, 1.0, 0.96, float("nan")])
def test_shares_that_leave_nothing(two, tokenizer, share):
    with pytest.raises(RequestError, match=r"evaluate\.heldout\.share"):
        build(two, Loss(), tokenizer, Heldout(share=share))


def test_weights_by_tokens_use_the_tables(two, tokenizer):
    two.sources[0].weight, two.sources[1].weight, two.weighting = 1.0, 1.0, "tokens"
    prepared = build(two, Loss(), tokenizer)
    numbers, few = (t.trained.mean() for t in prepared.tables)
    assert few > numbers  # "500<|im_end|>" against "7<|im_end|>"
    expected = few / (few + numbers)
    assert prepared.mixture.shares[0] == pytest.approx(expected, abs=1e-5)


def test_an_external_probability_must_be_there(two, tokenizer, tmp_path):
    with pytest.raises(RequestError, match=r"source 'numbers' has rows without.*columns\.p"):
        build(two, Loss(p="external"), tokenizer)
    with_p = Source(name="p", path=rows_file(tmp_path / "p.jsonl", 4, p=0.25))
    prepared = build(replace(two, sources=[with_p]), Loss(p="external"), tokenizer)
    assert TrainRows(prepared, 1)[0]["p"] == 0.25


def test_real_conversations(data, data_dir, tokenizer, tmp_path):
    """GSM8K's first rows, rendered and back: every trained part ends with the end of turn."""
    head = (data_dir / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:50]
    (tmp_path / "gsm.jsonl").write_text("\n".join(head), "utf-8")
    source = Source(name="gsm8k", path=str(tmp_path / "gsm.jsonl"))
    table = prepare_source(source, replace(data, max_length=2048), Loss(segment="step"), tokenizer)
    for i, line in enumerate(head):
        row = table[i]
        trained = tokenizer.decode(row.input_ids[row.labels != -100])
        assert trained == json.loads(line)["answer"] + "<|im_end|>"
        assert row.segment_ids.max() == trained.count("\n") + 1


def test_what_a_proof_took_is_logged_where_it_is_long(data, tokenizer, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    source = Source(name="one", path=str(path))
    prepare_source(source, data, Loss(), tokenizer)
    prepare_source(source, data, Loss(), tokenizer)
    assert "proved" not in caplog.text
    monkeypatch.setattr(cache, "PROVED_BYTES", 1)
    prepare_source(source, data, Loss(), tokenizer)
    assert re.search(r"proved: [\d.]+ KiB in \d+\.\d s", caplog.text)


def test_conversations_after_the_first_row_count_in_the_name(tmp_path, tokenizer):
    """What decides about them makes another table, not the one that is there."""
    path = tmp_path / "mixed.jsonl"
    turns = [{"role": r, "content": c} for r, c in (("user", "x"), ("user", "y"), ("assistant", "z"))]
    rows = [{"prompt": "a", "completion": "b"}] * 70
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": turns}]))
    data = Data([], template="chatml", cache_dir=str(tmp_path / "c"), max_drop_share=1.0)
    kept = {
        roles: len(prepare_sources([Source("m", path=str(path), roles=roles)], data, Loss(), tokenizer)[0])
        for roles in ("strict", "loose")
    }
    assert kept == {"strict": 70, "loose": 71}
