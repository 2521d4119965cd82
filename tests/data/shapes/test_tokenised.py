"""Rows that are tokens already: what is trained, worked out by hand, and every row that is refused.

The tokens of `builtin:bytes` below 256 are byte values, so `[65, 66]` is "AB".
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrain.data.manifest import manifest, summary
from posttrain.data.prepare import build
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Data, Loss, Source
from tests.data.tokens import BYTES, byte_tokenizer, ids_of, prepare_source

ROWS = SHAPES["rows"]
IDS = [10, 20, 30, 40, 50]
SIZE = max(BYTES.get_vocab().values()) + 1


def example(row, shape="rows", **source):
    return SHAPES[shape].read(row, Source(name="s", path="t.jsonl", **source), "t.jsonl:7")[0]


def tokens_of(row, segment="completion", source=None, **data):
    data, loss = Data(sources=[], **data), Loss(segment=segment)
    (part,) = ROWS.parts((example(row, **(source or {})),), data)
    return ROWS.tokenize(part, BYTES, data, loss)


@pytest.mark.parametrize(
    ("beside", "ids", "labels", "segments"),
    [
        # two runs of trained tokens are two completions
        ({"labels": [-100, 20, -100, 40, 50]}, IDS, [-100, 20, -100, 40, 50], [0, 1, 0, 2, 2]),
        # nothing predicts the first token, whatever the row says
        ({"labels": [10, 20, -100, -100, -100]}, IDS, [-100, 20, -100, -100, -100], [0, 1, 0, 0, 0]),
        ({"completion_mask": [0, 0, 1, 1, 1]}, IDS, [-100, -100, 30, 40, 50], [0, 0, 1, 1, 1]),
        (
            {"completion_mask": [False, False, True, True, True]},
            IDS,
            [-100, -100, 30, 40, 50],
            [0, 0, 1, 1, 1],
        ),
        ({"assistant_masks": [0, 1, 0, 0, 1]}, IDS, [-100, 20, -100, -100, 50], [0, 1, 0, 0, 2]),
        # both masks, and labels with a mask: trained is what all of them train, as in TRL's collator
        (
            {"completion_mask": [0, 0, 1, 1, 1], "assistant_masks": [0, 1, 1, 0, 1]},
            IDS,
            [-100, -100, 30, -100, 50],
            [0, 0, 1, 0, 2],
        ),
        (
            {"labels": IDS, "completion_mask": [0, 0, 0, 1, 1]},
            IDS,
            [-100, -100, -100, 40, 50],
            [0, 0, 0, 1, 1],
        ),
        # tokens alone are trained like plain text
        ({}, IDS, [-100, 20, 30, 40, 50], [0, 1, 1, 1, 1]),
        # right padding is cut off, labels or not
        ({"attention_mask": [1, 1, 1, 0, 0]}, IDS[:3], [-100, 20, 30], [0, 1, 1]),
        (
            {"attention_mask": [1, 1, 1, 1, 0], "labels": [-100, -100, 30, 40, -100]},
            IDS[:4],
            [-100, -100, 30, 40],
            [0, 0, 1, 1],
        ),
        (
            {"completion_mask": [0, 0, 1, 1, 0], "labels": IDS, "attention_mask": [1, 1, 1, 1, 0]},
            IDS[:4],
            [-100, -100, 30, 40],
            [0, 0, 1, 1],
        ),
        (
            {"num_tokens": 5, "label": 1, "loss_mask": None, "length": 7},
            IDS,
            [-100, *IDS[1:]],
            [0, 1, 1, 1, 1],
        ),
        ({"position_ids": [0, 1, 2, 3, 4], "seq_lengths": [5]}, IDS, [-100, *IDS[1:]], [0, 1, 1, 1, 1]),
        ({"words": [1] * 6, "tags": ["a"] * 4}, IDS, [-100, *IDS[1:]], [0, 1, 1, 1, 1]),
        ({"position_ids": 5, "seq_lengths": "23"}, IDS, [-100, *IDS[1:]], [0, 1, 1, 1, 1]),
        (
            {"token_type_ids": [0] * 5, "special_tokens_mask": [1, 0, 0, 0, 1]},
            IDS,
            [-100, *IDS[1:]],
            [0, 1, 1, 1, 1],
        ),
        ({"input_ids": [0, 0]}, [0, 0], [-100, 0], [0, 1]),  # the first id of a vocabulary
    ],
)
def test_what_is_trained(beside, ids, labels, segments):
    row = tokens_of({"input_ids": IDS} | beside)
    assert row.input_ids.tolist() == ids
    assert row.labels.tolist() == labels
    assert row.segment_ids.tolist() == segments
    assert {a.dtype for a in (row.input_ids, row.labels, row.segment_ids)} == {np.dtype(np.int32)}
    assert row.tokenised and not row.truncated and row.p is None and row.control_tokens == ()


def test_every_token_can_be_a_segment():
    row = tokens_of({"input_ids": IDS, "labels": [10, 20, -100, 40, 50]}, segment="token")
    assert row.segment_ids.tolist() == [0, 1, 0, 2, 3]


def test_a_probability_and_what_is_not_read_beside_the_tokens():
    row = {"input_ids": IDS, "labels": IDS, "rate": 0.25, "id": "x", "tags": ["a"], "other": [], "note": "n"}
    found = example(row, columns=Columns(p="rate"), ignore=["note"])
    assert found.p == 0.25 and found.unused == ("id", "tags") and found.ignored == ("note",)
    assert tokens_of(row | {"p": 0.5}).p == 0.5
    assert example({"input_ids": IDS, "weight": 0.5}, columns=Columns(p="weight")).p == 0.5
    assert example(row, ignore=["labels"]).trained.all()
    assert example(row, ignore=["other", "tags", "no", "id"], columns=Columns(p="rate")).ignored == (
        "id",
        "tags",
    )
    with pytest.raises(RequestError, match=r"has no column 'rat' \(columns.p\) \(did you mean 'rate'"):
        example(row, columns=Columns(p="rat"))


def test_options_of_a_generator_are_its_own():
    made = Source(name="s", generator="mine:rows", options={"size": 3})
    assert ROWS.read({"input_ids": IDS}, made, "s[0]")[0].input_ids.tolist() == IDS


def test_an_example_is_not_changed_by_tokenising_it():
    found = example({"input_ids": IDS})
    for _ in range(2):
        ROWS.tokenize(found, BYTES, Data(sources=[]), Loss(segment="token"))
        assert found.trained.all()


def test_a_token_that_is_added_later_is_one_of_the_tokenizer():
    tokenizer = byte_tokenizer()
    for size in (SIZE, SIZE + 1):
        found = example({"input_ids": [10, SIZE]})
        if size == SIZE:
            with pytest.raises(RequestError, match=f"but the ids of the tokenizer are 0 to {SIZE - 1}"):
                ROWS.tokenize(found, tokenizer, Data(sources=[]), Loss())
        tokenizer.add_tokens(["<later>"])
    assert ROWS.tokenize(found, tokenizer, Data(sources=[]), Loss()).input_ids.tolist() == [10, SIZE]


@pytest.mark.parametrize("row", [{"input_ids": []}, {"input_ids": None}])
def test_a_row_without_tokens_names_their_column(row):
    with pytest.raises(RowError, match="^empty: column 'input_ids' is empty$"):
        tokens_of(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": IDS, "labels": [-100] * 5}, "empty"),
        ({"input_ids": IDS, "completion_mask": [1, 0, 0, 0, 0]}, "empty"),  # only the first token
        ({"input_ids": IDS, "attention_mask": [0] * 5}, "empty"),
        ({"input_ids": [10]}, "empty"),
        ({"input_ids": []}, "empty"),
        ({"input_ids": None}, "empty"),
        ({"input_ids": IDS, "labels": None}, "empty"),  # everything would be trained
        ({"input_ids": IDS, "p": None}, "no_p"),
    ],
)
def test_rows_without_anything_to_train_are_dropped_by_reason(row, reason):
    with pytest.raises(RowError) as error:
        tokens_of(row)
    assert error.value.reason == reason


def test_length_is_limited_as_of_other_rows():
    row = {"input_ids": IDS, "labels": [-100, 20, -100, -100, 50]}
    assert tokens_of(row, max_length=5).labels.tolist() == row["labels"]
    with pytest.raises(RowError, match="overlong: 5 tokens$"):
        tokens_of(row, max_length=4)
    cut = tokens_of(row, max_length=4, overlong="truncate")
    assert cut.truncated and cut.input_ids.tolist() == IDS[:4] and cut.segment_ids.tolist() == [0, 1, 0, 0]
    late = {"input_ids": IDS, "labels": [-100, -100, -100, -100, 50]}
    with pytest.raises(RowError, match="overlong: 5 tokens; after truncation no trained token is left"):
        tokens_of(late, max_length=4, overlong="truncate")
    with pytest.raises(RequestError, match="t.jsonl:7: 5 tokens, more than data.max_length = 4; raise it"):
        tokens_of(row, max_length=4, overlong="error")
    padded = {"input_ids": IDS, "attention_mask": [1, 1, 1, 0, 0]}
    assert len(tokens_of(padded, max_length=3).input_ids) == 3


@pytest.mark.parametrize(
    ("beside", "more", "message"),
    [
        (
            {"input_ids": [10, SIZE]},
            {},
            rf"input_ids\[1\] = {SIZE}, but the ids of the tokenizer are 0 to {SIZE - 1}; was the row "
            "tokenised with another tokenizer",
        ),
        ({"input_ids": [10, -1]}, {}, r"input_ids\[1\] = -1, but the ids"),
        ({"input_ids": [10, -1, -2]}, {}, r"input_ids\[1\] = -1, but the ids"),
        ({"input_ids": [-(2**70), 2**65]}, {}, rf"has a number beyond 64 bits: -{2**70}"),
        ({"labels": [True] * 5}, {}, r"'labels' must be a list of whole numbers, not one with a truth value"),
        ({"labels": [-100, -100, -100, -100, 51]}, {}, r"labels\[4\] = 51, but input_ids\[4\] = 50"),
        ({"labels": [20, 99, -100, -100, -100]}, {}, r"labels\[0\] = 20, but input_ids\[0\] = 10"),
        ({"completion_mask": [0, 3, 2, 1, 1]}, {}, r"must be 0 or 1 .* not 3 \(entry 1\)"),
        ({"input_ids": [10, 2**40]}, {}, rf"input_ids\[1\] = {2**40}, but the ids"),
        ({"input_ids": [10, 2**70]}, {}, rf"'input_ids' has a number beyond 64 bits: {2**70}"),
        (
            {"input_ids": [10, 2.0]},
            {},
            r"'input_ids' must be a list of whole numbers, not one with a number \(2.0\)",
        ),
        (
            {"input_ids": [10, True]},
            {},
            r"must be a list of whole numbers, not one with a truth value \(True\)",
        ),
        ({"input_ids": [10, None]}, {}, r"must be a list of whole numbers, not one with null$"),
        (
            {"input_ids": [[10, 20]]},
            {},
            r"must be a list of whole numbers, not one with an array \(\[10, 20\]\)",
        ),
        ({"input_ids": "[10, 20]"}, {}, r"must be a list of whole numbers, not a string \('\[10, 20\]'\)"),
        ({"input_ids": "1" * 99}, {}, r"must be a list of whole numbers, not a string \('1{59}\)$"),
        ({"input_ids": 10}, {}, r"must be a list of whole numbers, not a number \(10\)"),
        ({"labels": IDS[:4]}, {}, "'input_ids' has 5 entries, but 'labels' has 4"),
        ({"completion_mask": []}, {}, "has 5 entries, but 'completion_mask' has 0"),
        (
            {"labels": [-100, 20, 31, 40, 50]},
            {},
            r"labels\[2\] = 31, but input_ids\[2\] = 30",
        ),
        ({"labels": [-1, 20, 30, 40, 50]}, {}, r"labels\[0\] = -1, .* or -100 where"),
        ({"labels": [20, 30, 40, 50, -100]}, {}, "'labels' are shifted by one"),
        ({"labels": [-100, -100, 40, 50, 2]}, {}, "'labels' are shifted by one"),
        ({"completion_mask": [0, 0, 2, 1, 1]}, {}, r"must be 0 or 1 .* not 2 \(entry 2\)"),
        (
            {"attention_mask": [0, 1, 1, 1, 1]},
            {},
            r"attention_mask\[0\] is 0 before a token",
        ),
        (
            {"attention_mask": [1, 0, 1, 1, 0]},
            {},
            r"attention_mask\[1\] is 0 before a token",
        ),
        (
            {"position_ids": [0, 1, 0, 1, 2]},
            {},
            "'position_ids' says that the row is packed",
        ),
        ({"seq_lengths": [2, 3]}, {}, "'seq_lengths' says that the row is packed"),
        (
            {"loss_mask": [0, 0, 1, 1, 1]},
            {},
            "column 'loss_mask' has an entry for each token",
        ),
        (
            {"label": IDS},
            {},
            "'label' has an entry .*did you mean 'labels'.*ignore: .label",
        ),
        ({"loss_mask": [[0, 0, 1, 1, 1]]}, {}, "column 'loss_mask' has an entry for each token"),
        ({"kept": [[0, 0, 1], [1, 1]]}, {}, "column 'kept' has an entry for each token"),
        ({"loss_mask": "0,0,1,1,1"}, {}, "column 'loss_mask' of source 's' may say what is trained"),
        ({"loss_mask": [0, 1]}, {}, "column 'loss_mask' may .* ignore: .loss_mask."),
        ({"weights": {"0": 1}}, {}, "column 'weights' .*may say"),
        ({"token_weight": 0.5}, {}, "column 'token_weight' .*may say"),
        ({"Labels": [1]}, {}, "column 'Labels' may say .* .did you mean 'labels'"),
        *(
            ({name: [1, 2]}, {}, f"column '{name}' may say")
            for name in ("cu_seqlens", "seq_lens", "advantages", "logprobs", "ref_log_prob", "mean_loss")
        ),
        ({"num_tokens": [2, 3]}, {}, "column 'num_tokens' may say"),
        ({"num_tokens": 9}, {}, "column 'num_tokens' may say"),
        (
            {"labels": [-100, 20, 30, 40, 50], "attention_mask": [1, 1, 1, 0, 0]},
            {},
            "token 3 is trained by 'labels', but its 'attention_mask' is 0",
        ),
        (
            {"completion_mask": [0, 0, 1, 1, 1], "attention_mask": [1, 1, 1, 1, 0]},
            {},
            "token 4 is trained by 'completion_mask', but its 'attention_mask' is 0",
        ),
        ({}, {"system": "Be brief."}, "'system' of source 's' changes texts"),
        (
            {"input_ids": IDS},
            {"options": {"strip_calculator": True}},
            "'options' of source 's' changes texts",
        ),
    ],
)
def test_a_row_that_would_be_trained_wrong_is_refused(beside, more, message):
    with pytest.raises(RequestError, match=f"^t.jsonl:7: .*{message}"):
        tokens_of({"input_ids": IDS} | beside, source=more)


def test_a_format_without_its_column_is_refused():
    with pytest.raises(RequestError, match="source 's' has no column 'input_ids'.*did you mean 'input_id'"):
        tokens_of({"input_id": IDS}, source={"format": "tokens"})


@pytest.mark.parametrize("value", ["last", "each", "all"])
def test_the_row_says_itself_what_is_trained(value):
    with pytest.raises(RequestError, match=f"data.train_on = {value} cannot choose turns"):
        tokens_of({"input_ids": IDS}, train_on=value)


@pytest.mark.parametrize("segment", ["answer", "step"])
def test_segments_of_text_cannot_be_found(segment):
    with pytest.raises(RequestError, match=f"loss.segment = {segment} is found in the text"):
        tokens_of({"input_ids": IDS}, segment=segment)


@pytest.mark.parametrize(
    ("row", "source", "tokenised"),
    [
        ({"input_ids": IDS}, {}, True),
        ({"input_ids": IDS, "text": None, "messages": []}, {}, True),
        ({"input_ids": IDS, "text": "t"}, {}, False),
        ({"input_ids": IDS, "text": "t"}, {"format": "tokens"}, True),
        ({"input_ids": IDS, "words": "t"}, {"columns": Columns(text="words")}, False),
        ({"input_ids": IDS, "prompt": "p", "completion": "c"}, {}, False),
        ({"input_ids": IDS, "prompt": "p", "completion": "c"}, {"ignore": ["input_ids"]}, False),
    ],
)
def test_tokens_are_read_where_there_is_no_text(row, source, tokenised):
    assert hasattr(example(row, **source), "input_ids") == tokenised


@pytest.mark.parametrize(
    ("row", "source", "words"),
    [
        ({"text": "t", "labels": IDS}, {}, "'labels'; set format: .*ignore: .input_ids, labels. to"),
        (
            {"prompt": "p", "completion": "c", "completion_mask": [0, 0, 1, 1, 1]},
            {},
            "'completion_mask'; set",
        ),
        ({"words": "t", "labels": IDS}, {"columns": Columns(text="words")}, "'labels'; set format: tokens"),
    ],
)
def test_a_row_of_text_and_of_labelled_tokens_is_refused(row, source, words):
    """`map(tokenize)` keeps the text; the labels were dropped, and all of the text trained."""
    row = {"input_ids": IDS, "attention_mask": [1] * 5} | row
    with pytest.raises(RequestError, match=f"^t.jsonl:7: the row has text and 'input_ids' with {words}"):
        example(row, **source)
    beside = ["input_ids", "labels", "completion_mask"]
    assert not hasattr(example(row, **source, ignore=beside), "input_ids")
    assert example(row, format="tokens").input_ids.tolist() == IDS


@pytest.mark.parametrize(
    ("beside", "source"),
    [
        ({"labels": IDS}, {"format": "text"}),
        ({"labels": IDS}, {"ignore": ["input_ids"]}),
        ({"labels": IDS}, {"ignore": ["labels"]}),
        ({"labels": IDS, "input_ids": []}, {}),
        ({"labels": None, "completion_mask": []}, {}),
        ({}, {}),
    ],
)
def test_text_beside_tokens_that_select_nothing_is_trained(beside, source):
    """`labels` without tokens are a column like others, and tokens without labels leave nothing out."""
    assert example({"text": "t", "input_ids": IDS} | beside, **source).completion == "t"


@pytest.mark.parametrize("shape", ["pairs", "labelled", "prompts"])
@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"input_ids": IDS, "labels": IDS, "label": True}, {}),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, {"format": "tokens"}),
        ({"chosen_input_ids": IDS, "rejected_input_ids": IDS}, {}),
        *(({name: IDS}, {}) for name in ("chosen_ids", "prompt_input_ids", "prompt_ids")),
    ],
)
def test_other_stages_say_that_only_sft_reads_tokens(shape, row, source):
    with pytest.raises(RequestError, match="^t.jsonl:7: the row is tokenised already, which only stage: sft"):
        example(row, shape, **source)


def test_files_of_tokens_beside_files_of_text_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"input_ids": IDS, "text": "t"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "t"}))
    source = Source(name="s", path=str(tmp_path), format="tokens")
    with pytest.raises(RequestError, match="has files of several shapes: 1 with tokens .*; 1 with other"):
        prepare_source(source, Data(sources=[], cache_dir=str(tmp_path / "cache")), Loss(), BYTES)


def test_pairs_of_text_may_have_tokens_beside():
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "input_ids": IDS, "prompt_ids": IDS}
    assert example(row, "pairs").completion == "c"


def test_a_row_is_trained_as_the_text_that_it_was_made_from(tmp_path):
    """The same conversation once as text and once as the tokens that were made of it: equal tables, and the
    account says of which no proof was made."""
    talk = {"prompt": "2+2?", "completion": "4"}
    text = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    ids = ids_of(text)
    reply = ids_of("4<|im_end|>")
    start = len(ids) - len(reply) - 1  # the line end after the turn is not trained
    labels = [-100] * start + reply + [-100]
    made = {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}
    files = {"text": [talk], "tokens": [made, made]}
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    sources = [Source(name=name, path=str(tmp_path / f"{name}.jsonl")) for name in files]
    data = Data(sources=sources, template="chatml", cache_dir=str(tmp_path / "cache"))
    text_table, token_table = (prepare_source(s, data, Loss(), BYTES) for s in sources)
    for key in ("input_ids", "labels", "segment_ids"):
        assert getattr(text_table[0], key).tolist() == getattr(token_table[1], key).tolist()
    account = manifest(build(data, Loss(), BYTES), 3)
    assert [s["tokenised"] for s in account["sources"]] == [0, 2]
    assert summary(account) == [
        "source 'text': 1 of 1 row kept",
        "source 'tokens': 2 of 2 rows kept; 2 tokenised already",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("beside", [{}, {"labels": [-100, -100, 30, -100, 50]}, {"labels": IDS}])
def test_labels_mean_what_they_mean_to_trl(beside):
    """Its first label, which is ours no more, is cut off by the shift in the loss."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batch = DataCollatorForLanguageModeling(pad_token_id=0)([{"input_ids": IDS} | beside])
    row = tokens_of({"input_ids": IDS} | beside)
    assert batch["labels"][0, 1:].tolist() == row.labels[1:].tolist()


@pytest.mark.parametrize("flag", ["weight", "train", "training", "loss", "trained"])
def test_a_flag_of_0_drops_a_row_of_tokens(flag):
    row = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}
    for no in (0, False, 0.0, "0"):
        with pytest.raises(RowError, match=f"^empty: column '{flag}' says that the row is not trained"):
            example(row | {flag: no})
    for yes in (1, True, 1.0, None, float("nan")):
        found = example(row | {flag: yes})
        assert found.trained.all() and found.unused == ()
    for other in (0.5, 3, "high"):  # 3 is the number of tokens
        with pytest.raises(RequestError, match=f"^t.jsonl:7: column '{flag}' must be 0 or 1 .* ignore: "):
            example(row | {flag: other})
        assert example(row | {flag: other}, ignore=[flag]).ignored == (flag,)
    with pytest.raises(RequestError, match=f"column '{flag}' has an entry for each token and is not read"):
        example(row | {flag: [0, 1, 1]})
    with pytest.raises(RequestError, match="column 'weigth' of source 's' is not read; did you mean"):
        example(row | {"weigth": 0})
