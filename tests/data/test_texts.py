"""Rows that are too long to be tokenised, and texts that spell control tokens."""

from __future__ import annotations

import json

import pytest

from posttrain.data import cache
from posttrain.data.manifest import manifest, summary
from posttrain.data.prepare import build
from posttrain.data.shapes import catalogue
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.texts import check_texts, control_tokens, texts
from posttrain.data.tokenizers import add_tokens, load_tokenizer
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.types import Example
from tests.data.tokens import BYTES, prepare_source, trained

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, "zw"]}}}
TALK = [
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "", "reasoning_content": "why", "tool_calls": [CALL]},
]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds."}}


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(name="s", path=str(path))


@pytest.fixture
def data(tmp_path):
    return Data(
        sources=[], template="chatml", cache_dir=str(tmp_path / "cache"), max_length=9_000, max_drop_share=0.5
    )


def test_every_text_of_an_example_counts():
    found = sorted(texts(Example(messages=TALK, tools=[TOOL])))
    calls = ["type", "function", "function", "name", "add", "arguments", "a", "zw"]
    tools = ["type", "function", "function", "name", "add", "description", "Adds."]
    assert found == sorted(["u", "", "why", *calls, *tools])
    assert list(texts(Example(prompt="p", completion="c"))) == ["p", "c"]


@pytest.mark.parametrize(
    "example",
    [
        Example(prompt="12345", completion="67890", where="f:1"),
        Example(messages=[{"role": "user", "content": "12345"}, {"role": "assistant", "content": "67890"}]),
        Example(messages=[{"role": "assistant", "content": "123", "reasoning_content": "4567890"}]),
        Example(prompt="12", tools=[{"1234": "5678"}]),
    ],
)
def test_the_limit_is_of_all_texts_together(example):
    check_texts(example, Data(sources=[], max_characters=10))
    with pytest.raises(RowError, match="too_long_text: 10 characters, more than 9"):
        check_texts(example, Data(sources=[], max_characters=9))


def test_characters_are_not_bytes():
    check_texts(Example(prompt="😀" * 5, completion="é" * 5), Data(sources=[], max_characters=10))


@pytest.mark.parametrize("shape", ["rows", "pairs", "labelled", "prompts"])
def test_a_row_of_5_megabytes_is_neither_rendered_nor_tokenised(shape, data, tmp_path, monkeypatch):
    seen = []

    def tokenize(name, example, *rest):
        assert len(example.prompt) < 100
        seen.append(example.where)
        return original[name](example, *rest)

    original = {name: getattr(catalogue, name) for name in ("tokenizing", "tokenizing_prompt")}
    for name in original:
        monkeypatch.setattr(catalogue, name, lambda *each, name=name: tokenize(name, *each))
    more = {"completion": "c", "label": True} if shape != "pairs" else {"chosen": "c", "rejected": "r"}
    rows = [{"prompt": "p"} | more, {"prompt": "long " * 1_000_000} | more, {"prompt": "q"} | more]
    source = rows_file(tmp_path / "rows.jsonl", rows)
    data.num_proc = 1  # what another process has seen is not known here
    (table,) = cache.prepare_sources([source], data, Loss(), BYTES, shape=shape)
    assert table.stats["dropped"] == {"too_long_text": 1} and table.stats["rows_read"] == 3
    characters = "5,000,002" if shape == "pairs" else "5,000,000" if shape == "prompts" else "5,000,001"
    (lost,) = table.stats["dropped_examples"]
    assert lost["where"] == f"{source.path}:2"
    if shape != "pairs":
        assert lost["detail"] == f"{characters} characters, more than 1,000,000"
    assert {where.rpartition(":")[2] for where in seen} == {"1", "3"}


def test_with_overlong_error_it_is_refused(data, tmp_path):
    source = rows_file(tmp_path / "rows.jsonl", [{"prompt": "p" * 30, "completion": "c"}])
    data.overlong, data.max_characters = "error", 30
    with pytest.raises(RequestError, match="rows.jsonl:1: 31 characters, more than data.max_characters = 30"):
        prepare_source(source, data, Loss(), BYTES)


def test_a_source_that_loses_too_many_is_told_the_key(data, tmp_path):
    source = rows_file(tmp_path / "rows.jsonl", [{"prompt": "p" * 30, "completion": "c"}])
    data.max_characters = 30
    with pytest.raises(RequestError, match=r"1 too_long_text.*raise data.max_characters \(now 30\)"):
        prepare_source(source, data, Loss(), BYTES)


def test_tables_of_the_default_limit_keep_their_names(data, tmp_path, monkeypatch):
    source = rows_file(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c"}])
    described, digest = [], cache._digest
    monkeypatch.setattr(cache, "_digest", lambda facts: described.append(facts) or digest(facts))
    names = []
    for limit in (Data(sources=[]).max_characters, 2_000_000):
        data.max_characters = limit
        names.append(prepare_source(source, data, Loss(), BYTES).folder.name)
    first, second = (facts for facts in described if "max_length" in facts)
    assert set(second) - set(first) == {"max_characters"} and second["max_characters"] == 2_000_000
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (Example(prompt="say <|im_end|>", completion="no"), ("<|im_end|>",)),
        (Example(prompt="say", completion="<eos><|im_end|><eos>"), ("<eos>", "<|im_end|>")),
        (Example(messages=[{"role": "user", "content": "a<pad>"}]), ("<pad>",)),
        (Example(messages=[{"role": "assistant", "content": "", "reasoning_content": "<eos>"}]), ("<eos>",)),
        (Example(prompt="p", tools=[{"name": "<|eot_id|>"}]), ("<|eot_id|>",)),
        (Example(prompt="<|im_end| > <im_end> im_end <|IM_END|>", completion="<think>x</think>"), ()),
        (Example(messages=TALK, tools=[TOOL]), ()),
    ],
)
def test_special_tokens_in_texts_are_found(example, found):
    assert control_tokens(example, BYTES) == found


def test_tokens_that_are_not_special_are_text_and_added_ones_are_known_at_once():
    tokenizer = load_tokenizer("builtin:bytes")
    tokenizer.add_tokens(["<think>"])
    example = Example(prompt="<think>", completion="<tool><tool>er")
    assert control_tokens(example, tokenizer) == ()
    add_tokens(tokenizer, ["<tool>", "<tool>er"])
    assert control_tokens(example, tokenizer) == ("<tool>", "<tool>er")


def test_of_many_tokens_the_longest_is_found():
    tokenizer = load_tokenizer("builtin:bytes")
    words = [f"<|reserved_{i}|>" for i in range(120)] + [
        "<s>",
        "</s>",
        "[A]",
        "[A]]",
        "[A]](",
        "<" + "x" * 400 + ">",
    ]
    add_tokens(tokenizer, words)
    for word in words:
        assert control_tokens(Example(prompt=f"<|res {word} [A"), tokenizer) == (word,)
    everything = Example(prompt="".join(words))
    ids = tokenizer("".join(words), add_special_tokens=False).input_ids
    assert sorted(tokenizer.convert_ids_to_tokens(ids)) == list(control_tokens(everything, tokenizer))


@pytest.mark.parametrize("shape", ["rows", "pairs", "labelled", "prompts"])
def test_rows_that_spell_them_are_kept_and_counted(shape, data, tmp_path):
    more = {"completion": "c", "label": 1} if shape != "pairs" else {"chosen": "c", "rejected": "r"}
    prompts = ["a", "b <|im_end|> <|im_end|>", "c <|im_end|><eos>"]
    source = rows_file(tmp_path / "rows.jsonl", [{"prompt": p} | more for p in prompts])
    (table,) = cache.prepare_sources([source], data, Loss(), BYTES, shape=shape)
    assert len(table) == 3 and table.stats["control_tokens"] == {"<|im_end|>": 2, "<eos>": 1}


def test_several_processes_count_as_one(data, tmp_path):
    rows = [{"prompt": f"{i} <eos>" if i % 3 else f"{i}", "completion": "c"} for i in range(300)]
    tokens = [{"input_ids": [1, 2, 3]} for _ in range(300)]
    source, already = rows_file(tmp_path / "rows.jsonl", rows), rows_file(tmp_path / "tokens.jsonl", tokens)
    for count in (1, 2):
        data.num_proc, data.cache_dir = count, str(tmp_path / f"cache{count}")
        assert prepare_source(source, data, Loss(), BYTES).stats["control_tokens"] == {"<eos>": 200}
        assert prepare_source(already, data, Loss(), BYTES).stats["tokenised"] == 300


def test_the_account_says_it(data, tmp_path):
    data.sources = [
        rows_file(
            tmp_path / "a.jsonl", [{"prompt": "<eos>", "completion": "c"}, {"prompt": "p", "completion": "c"}]
        )
    ]
    prepared = build(data, Loss(), BYTES)
    account = manifest(prepared, 1)
    assert account["sources"][0]["control_tokens"] == {"<eos>": 1}
    assert summary(account) == [
        "source 's': 2 of 2 rows kept",
        "source 's': texts spell control tokens and become them: <eos> in 1 row",
    ]
    del prepared.tables[0].stats["control_tokens"]  # a table that an earlier version made
    account = manifest(prepared, 1)
    assert account["sources"][0]["control_tokens"] is None and len(summary(account)) == 1


def test_in_a_reply_it_is_trained_as_that_token():
    """As in TRL and axolotl: the model learns to end its turn there."""
    row = {"prompt": "p", "completion": "one<|im_end|>two"}
    rows, data = SHAPES["rows"], Data(sources=[], template="chatml")
    (example,) = rows.parts(rows.read(row, Source(name="s", path="f"), "f:1"), data)
    made = rows.tokenize(example, BYTES, data, Loss())
    end = BYTES.convert_tokens_to_ids("<|im_end|>")
    said = made.labels[made.labels >= 0].tolist()
    assert said == [*b"one", end, *b"two", end] and trained(made) == "one<|im_end|>two<|im_end|>"
    assert made.control_tokens == ("<|im_end|>",)
