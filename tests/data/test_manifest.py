"""mixture.json: numbers that agree with a count of the rows by hand."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from posttrain.data.manifest import manifest, write_manifest
from posttrain.data.prepare import TrainRows, build
from posttrain.data.tokenizers import load_tokenizer
from posttrain.recipe.schema import Data, Heldout, Loss, Source


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """12 rows of which one has no completion, twice: 5 rows of it with weight 2, and all with weight 1."""
    folder = tmp_path_factory.mktemp("manifest")
    lines = [{"prompt": "a", "completion": "b" * (i > 0)} for i in range(12)]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Data(
        sources=[
            Source(name="a", path=str(folder / "a.jsonl"), weight=2.0, max_examples=5),
            Source(name="m", path=str(folder / "a.jsonl"), weight=1.0),
        ],
        template="chatml",
        max_drop_share=0.2,
        cache_dir=str(folder / "cache"),
    )
    return build(data, Loss(), load_tokenizer("builtin:bytes"), Heldout(share=0.1), seed=3)


def test_the_account_agrees_with_counting(prepared, tmp_path):
    account = manifest(prepared, 31)
    write_manifest(tmp_path / "mixture.json", account)
    assert json.loads((tmp_path / "mixture.json").read_text()) == account
    seen = Counter(row["source"] for row in TrainRows(prepared, 31))
    first, second = account["sources"]
    assert first["examples_seen"] == seen[0] == 21 and second["examples_seen"] == seen[1] == 10
    assert first["share_asked"] == pytest.approx(2 / 3)
    assert first["share_realised"] == pytest.approx(21 / 31)
    assert first["repeats"] == 21 / 5 and second["repeats"] == 1.0
    assert (first["rows_read"], first["rows_kept"], first["rows_used"]) == (8, 7, 5)  # 6, and 2 for one lost
    assert first["rows_in_source"] == 12 and second["rows_in_source"] == second["rows_read"]
    assert first["dropped"] == {"no_completion": 1} and first["truncated"] == 0
    assert first["dropped_examples"] == {
        "no_completion": [{"where": f"{first['path']}:1", "detail": "column 'completion' is empty"}]
    }
    assert first["trained_tokens"] == 7 * 2  # "b" and the end of turn
    assert first["files"] == [
        {"path": first["path"], "bytes": 12 * len('{"prompt": "a", "completion": "b"}\n') - 1}
    ]
    assert account["examples_per_epoch"] == 5 + 10 and account["examples_total"] == 31
    assert account["seed"] == 3 and account["weighting"] == "examples"
    assert account["temperature"] == 1.0 and account["overlap"] == "not measured"
    assert account["fingerprint"] == prepared.mixture.fingerprint


def test_held_out_rows_are_accounted_for(prepared):
    heldout = manifest(prepared, 1)["heldout"]
    assert heldout["examples"] == 2
    assert [(s["name"], s["examples"], s["trained_tokens"]) for s in heldout["sources"]] == [
        ("a", 1, 2),
        ("m", 1, 2),
    ]


def test_every_source_has_the_keys_readers_count_on(prepared):
    wanted = [
        "name",
        "path",
        "files",
        "rows_read",
        "rows_kept",
        "dropped",
        "truncated",
        "dropped_examples",
        "tokens",
        "trained_tokens",
        "share_asked",
        "share_realised",
        "examples_seen",
        "repeats",
        "fingerprint",
    ]
    for source in manifest(prepared, 0)["sources"]:
        assert set(wanted) <= set(source)


def test_a_table_older_than_the_record_of_dropped_rows_says_that_it_has_none(prepared):
    """Caches made before `dropped_examples` have the first lost rows as text only."""
    stats = prepared.tables[0].stats
    kept = stats.pop("dropped_examples")
    try:
        stats["examples_of_drops"] = ["a.jsonl:1: no_completion: column 'completion' is empty"]
        first, second = manifest(prepared, 1)["sources"]
        assert first["dropped_examples"] is None and first["dropped"] == {"no_completion": 1}
    finally:
        stats.pop("examples_of_drops")
        stats["dropped_examples"] = kept


def test_a_key_to_ignore_that_no_row_has_is_named(tmp_path, caplog):
    """A typo in `ignore` leaves out nothing; the columns that nothing reads have the nearest spelling."""
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a", "completion": "b", "comment": "x", "note": "y", "id": ""}'
    )
    source = Source(name="a", path=str(tmp_path / "a.jsonl"), ignore=["coment", "note", "id"])
    data = Data(sources=[source], template="chatml", cache_dir=str(tmp_path))
    for _ in range(2):  # also of a table that is found
        caplog.clear()
        build(data, Loss(), load_tokenizer("builtin:bytes"))
        assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
            "source 'a': ignore: [coment]: no row has it with content (did you mean 'comment'?)",
            "source 'a': ignore: [id]: no row has it with content (one of: comment)",
        ]
    build(data, Loss(), load_tokenizer("builtin:bytes"), is_main=False)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 2
