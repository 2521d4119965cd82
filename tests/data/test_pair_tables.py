"""Preference pairs through preparation, mixture and collator: both sides or neither, one segment a side."""

from __future__ import annotations

import json

import pytest

from posttrain.data.cache import prepare_sources
from posttrain.data.collate import Collator, PairCollator
from posttrain.data.prepare import HeldoutRows, TrainRows, build
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Data, Heldout, Loss, Source
from tests.data.tokens import prepare_source

LOSS = Loss(segment="completion")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("builtin:bytes")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"say {i}", "chosen": f"good {i}", "rejected": f"bad, worse {i}"} for i in range(30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Source(name="pairs", path=str(path))


@pytest.fixture
def data(tmp_path, source):
    return Data(
        sources=[source],
        template="chatml",
        cache_dir=str(tmp_path / "cache"),
        max_length=200,
        train_on="last",
    )


def test_pairs_keep_their_sides_and_their_row(data, source, tokenizer):
    table = prepare_sources([source], data, LOSS, tokenizer, shape="pairs")[0]
    assert len(table) == 30 == table.stats["rows_kept"] == table.stats["rows_read"]
    for i in (0, 17, 29):
        chosen, rejected = table[i]
        trained = [tokenizer.decode(side.labels[side.labels >= 0]) for side in (chosen, rejected)]
        assert trained == [f"good {i}<|im_end|>", f"bad, worse {i}<|im_end|>"]
        assert f"say {i}" in tokenizer.decode(rejected.input_ids) and table.origin(i) == i
        assert table.lengths[i] == len(chosen.input_ids) + len(rejected.input_ids)
        assert table.trained[i] == sum((side.labels >= 0).sum() for side in (chosen, rejected))
    with pytest.raises(IndexError):
        table[30]


def test_a_pair_loses_both_sides_or_none(data, source, tokenizer, tmp_path):
    """Row 1 has an overlong rejected side, row 2 twice the same reply: what follows keeps its place."""
    rows = [{"prompt": "p", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(4)]
    rows[1]["rejected"] = "x" * 300
    rows[2]["rejected"] = "c2"
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data.max_drop_share = 0.5
    table = prepare_sources([source], data, LOSS, tokenizer, shape="pairs")[0]
    assert table.stats["dropped"] == {"overlong": 1, "equal_pair": 1} and len(table) == 2
    assert [table.origin(i) for i in range(2)] == [0, 3]
    assert "c3" in tokenizer.decode(table[1][0].input_ids) and "r3" in tokenizer.decode(table[1][1].input_ids)
    data.max_drop_share = 0.1
    with pytest.raises(RequestError, match="2 of 4 rows .50.0%. are dropped.*1 equal_pair"):
        prepare_sources([source], data, LOSS, tokenizer, shape="pairs")


def test_pairs_and_rows_of_one_file_are_cached_apart(data, source, tokenizer, tmp_path):
    both = [{"prompt": "p", "completion": "x", "chosen": "c", "rejected": "r"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, both)))
    rows = prepare_source(source, data, LOSS, tokenizer)
    pairs = prepare_sources([source], data, LOSS, tokenizer, shape="pairs")[0]
    assert rows.fingerprint != pairs.fingerprint and (len(rows), len(pairs)) == (1, 1)
    source.columns = Columns(chosen="rejected", rejected="chosen")
    swapped = prepare_sources([source], data, LOSS, tokenizer, shape="pairs")[0]
    assert swapped.fingerprint != pairs.fingerprint
    assert (swapped[0][0].input_ids == pairs[0][1].input_ids).all()


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_batch_holds_the_chosen_sides_then_the_rejected(data, tokenizer, padding_free):
    prepared = build(data, LOSS, tokenizer, Heldout(share=0.2), seed=1, shape="pairs")
    rows, held = TrainRows(prepared, 24), HeldoutRows(prepared)
    assert len(prepared.tables[0]) == 24 and len(held) == 6
    seen = {row["row"] for row in (rows[i] for i in range(24))}
    assert seen | {held[i]["row"] for i in range(6)} == set(range(30)), "each pair once, none in both"
    batch = PairCollator(Collator(tokenizer.pad_token_id, padding_free))([rows[0], rows[1], rows[2]])
    assert batch["num_segments"] == 6 and batch["example_ids"].tolist() == [
        [0, rows[i]["row"]] for i in range(3)
    ]
    texts = [tokenizer.decode(batch["labels"][batch["segment_ids"] == s].tolist()) for s in range(1, 7)]
    numbers = [rows[i]["row"] for i in range(3)]
    assert texts == [f"good {n}<|im_end|>" for n in numbers] + [f"bad, worse {n}<|im_end|>" for n in numbers]


# ---- conversations: which turns count ----------------------------------------------------------------------

TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2+2?"},
]


@pytest.fixture
def talks(tmp_path, data, tokenizer):
    """`talks(train_on, row)`: the table of one pair of conversations of two turns."""

    def of(train_on: str, **more):
        sides = {
            side: [*TALK, {"role": "assistant", "content": reply}]
            for side, reply in (("chosen", "4"), ("rejected", "It is 5"))
        }
        (tmp_path / "pairs.jsonl").write_text(json.dumps(sides | more) + "\n")
        data.train_on = train_on
        return prepare_sources(data.sources, data, LOSS, tokenizer, shape="pairs")[0]

    return of


@pytest.mark.parametrize(("train_on", "shared"), [("last", ""), ("assistant", "Hello<|im_end|>")])
def test_the_turns_that_count_are_one_segment(talks, tokenizer, train_on, shared):
    for side, reply in zip(talks(train_on)[0], ("4<|im_end|>", "It is 5<|im_end|>"), strict=True):
        assert tokenizer.decode(side.labels[side.labels >= 0]) == shared + reply
        assert side.segment_ids.tolist() == (side.labels >= 0).astype(int).tolist()


def test_only_the_last_turn_of_a_prefix_has_no_end(talks, tokenizer):
    table = talks("assistant", rejected_is_prefix=True)
    said = [tokenizer.decode(side.labels[side.labels >= 0]) for side in table[0]]
    assert said == ["Hello<|im_end|>4<|im_end|>", "Hello<|im_end|>It is 5"]


def test_tables_of_other_turns_are_cached_apart(talks):
    prints = [talks(train_on).fingerprint for train_on in ("last", "assistant", "last")]
    assert prints[0] == prints[2] != prints[1]
