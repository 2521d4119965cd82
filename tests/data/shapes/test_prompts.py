"""Prompts: what the model is asked, what rewards get of the row, and the same tokens as in evaluation."""

from __future__ import annotations

import json
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.cache import prepare_sources
from posttrain.data.manifest import manifest
from posttrain.data.prepare import build
from posttrain.data.reasons import REASONS
from posttrain.data.shapes.prompts import columns_of, to_prompt, tokenize_prompt
from posttrain.data.template import load_template
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate.score import _answer_tokens, _prompt
from posttrain.recipe.schema import Columns, Data, Loss, Source
from posttrain.types import Problem
from tests.data.tokens import BPE, BYTES, STYLES, ids_of, row_of

USER, SYSTEM, SAID = ({"role": r, "content": r[0]} for r in ("user", "system", "assistant"))
AGAIN = {"role": "user", "content": "again"}


def source(**named) -> Source:
    columns = {k: v for k, v in named.items() if k in Columns.__dataclass_fields__ and k != "system"}
    own = {k: v for k, v in named.items() if k not in columns}
    return Source(name="s", path="s.jsonl", columns=Columns(**columns), **own)


def asked(row: dict, **named):
    """The prompt, or the messages, of a row."""
    found = to_prompt(row, source(**named), "f:1")
    assert found.completion is None and (found.prompt is None) != (found.messages is None)
    return found.prompt if found.messages is None else found.messages


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"prompt": "q"}, "q"),
        ({"prompt": "q", "answer": "1", "p": None}, "q"),
        ({"question": "q", "answer": "so 1\n#### 1"}, "q"),  # GSM8K
        ({"problem": "q", "solution": "s", "answer": "a", "level": 3}, "q"),  # MATH
        ({"instruction": "q", "input": "i", "output": "o"}, "q\n\ni"),  # Alpaca
        ({"prompt": "q", "completion": "", "text": 5}, "q"),
        ({"prompt": "q", "p": 7}, "q"),
        ({"prompt": [USER]}, [USER]),
        ({"prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"prompt": [USER], "system": "s"}, [SYSTEM, USER]),
        ({"prompt": "u", "system": "s"}, [SYSTEM, USER]),
        ({"messages": [USER]}, [USER]),
        ({"messages": [USER, SAID]}, [USER]),
        ({"messages": [USER, SAID, AGAIN]}, [USER, SAID, AGAIN]),
        ({"messages": [USER, SAID, AGAIN, SAID], "ground_truth": "2"}, [USER, SAID, AGAIN]),
        ({"messages": [USER], "prompt": "other"}, [USER]),
        ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "x"}]}, [USER]),
        ({"conversations": [{"from": "human", "value": "u"}]}, [USER]),
        ({"messages": "\n\nHuman: u\n\nAssistant: a"}, [USER]),
        ({"messages": "\n\nHuman: u"}, [USER]),
        ({"messages": "\n\nHuman: u\n\nAssistant:"}, [USER]),
        ({"messages": "\n\nHuman: u\n\nAssistant: a\n\nHuman: again"}, [USER, SAID, AGAIN]),
    ],
)
def test_every_usual_shape(row, want):
    assert asked(row) == want


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        ({"messages": [USER, SAID]}, ("last reply",)),
        ({"messages": [USER, SAID, AGAIN, SAID]}, ("last reply",)),
        (
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "x"}]},
            ("last reply",),
        ),
        ({"messages": "\n\nHuman: u\n\nAssistant: a"}, ("last reply",)),
        ({"messages": "\n\nHuman: u\n\nAssistant:"}, ()),
        ({"messages": "\n\nHuman: u"}, ()),
        ({"messages": [USER, SAID, AGAIN]}, ()),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, ()),
        ({"prompt": [USER], "completion": "c"}, ()),
    ],
)
def test_a_reply_that_is_cut_off_is_counted(row, counted):
    assert to_prompt(row, source(), "f:1").ignored == counted


@pytest.mark.parametrize(
    ("row", "named", "want"),
    [
        ({"q": "named", "prompt": "other"}, {"prompt": "q"}, "named"),
        ({"q": "named", "messages": [USER]}, {"prompt": "q"}, "named"),
        ({"answer": "a", "question": "q"}, {"prompt": "answer"}, "a"),
        ({"text": "t"}, {"prompt": "text"}, "t"),
        ({"messages": [USER]}, {"prompt": "messages"}, [USER]),
        ({"talk": [USER, SAID], "prompt": "other"}, {"messages": "talk"}, [USER]),
        ({"prompt": "u"}, {"system": "s"}, [SYSTEM, USER]),
        ({"messages": [USER]}, {"system": "s"}, [SYSTEM, USER]),
        ({"messages": [USER], "p": 0.5}, {"p": "p"}, [USER]),
        ({"prompt": "q", "messages": [USER]}, {"format": "prompt_completion"}, "q"),
        ({"prompt": "q", "messages": [USER], "c": "4"}, {"completion": "c"}, "q"),  # as for sft
        ({"prompt": "q", "messages": [USER]}, {"completion": "c"}, "q"),
        ({"prompt": "q", "messages": [USER], "c": "4"}, {"completion": "c", "messages": "messages"}, [USER]),
        ({"prompt": "q", "messages": [USER]}, {"format": "messages", "prompt": "prompt"}, [USER]),
    ],
)
def test_named_columns_count_first(row, named, want):
    assert asked(row, **named) == want


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ""}, "no_prompt"),
        ({"prompt": None}, "no_prompt"),
        ({"prompt": " \n"}, "no_prompt"),
        ({"prompt": []}, "no_prompt"),
        ({"messages": [SAID]}, "no_prompt"),
        ({"messages": [SYSTEM, SAID]}, "no_prompt"),
        ({"messages": [SYSTEM]}, "no_prompt"),
        ({"messages": []}, "no_assistant_turn"),
        ({"prompt": "\ud800"}, "bad_text"),
    ],
)
def test_rows_that_ask_nothing_are_dropped_by_reason(row, reason):
    with pytest.raises(RowError) as error:
        asked(row)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("row", "named", "words"),
    [
        ({"completion": "c", "answer": "1"}, {}, "with the prompt was found; the row has completion, answer"),
        ({"text": "t"}, {}, "with the prompt was found; the row has text"),
        ({}, {}, "no column at all"),
        ({"prompt": 5}, {}, "'prompt' must be text, not a number .5."),
        ({"prompt": "q"}, {"prompt": "promt"}, "no column 'promt'.*did you mean 'prompt'"),
        ({"messages": [USER]}, {"messages": "message"}, "no column 'message'.*did you mean"),
        ({"prompt": "q"}, {"format": "messages"}, "with the messages was found"),
        (
            {"messages": [USER], "c": "4"},
            {"completion": "c"},
            "with the prompt was found; the row has messages, c",
        ),
        ({"messages": ["hello"]}, {}, "message 0: must be an object"),
        ({"messages": [3]}, {}, "message 0: must be an object"),
        ({"messages": {"role": "user"}}, {}, "column 'messages' is an object, not a list"),
        ({"messages": [{"role": "judge", "content": "x"}]}, {}, "unknown role 'judge'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, {}, "unknown role"),
        ({"messages": [{"content": "x"}]}, {}, "'role' is missing"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_in_the_reader_s_words(row, named, words):
    with pytest.raises(RequestError, match=f"f:1.*{words}"):
        asked(row, **named)


@pytest.mark.parametrize("roles", ["strict", "join", "loose"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER, SAID]},
        {"prompt": [USER, SAID, AGAIN, SAID]},
        {"prompt": "\n\nHuman: u\n\nAssistant: Sure, "},
        {"prompt": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "Sure, "}]},
    ],
)
def test_a_reply_that_is_begun_is_not_continued(row, roles):
    """TRL continues it; here a second assistant's turn would be begun behind it."""
    with pytest.raises(
        RequestError, match="f:1: the prompt ends with an assistant message, and a reply that"
    ):
        asked(row, roles=roles)


def test_two_replies_at_the_end_of_a_conversation():
    row = {"messages": [USER, SAID, SAID]}
    with pytest.raises(RowError, match="two_replies"):
        asked(row)
    assert asked(row, roles="join") == [USER]
    with pytest.raises(RequestError, match="the prompt ends with an assistant message"):
        asked(row, roles="loose")
    assert asked({"prompt": "\n\nHuman: u\n\nAssistant:"}) == "u"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["prompt", "messages", "system", "answer", "text"]), ANYTHING))
def test_a_hostile_row_is_a_prompt_or_a_sentence(row):
    try:
        asked(row)
    except (RowError, RequestError) as error:
        assert str(error)


def test_rewards_see_the_whole_row_under_the_names_they_read():
    row = {"question": "q", "gold": 7, "kinds": ["math"], "tests": [1], "answer": "long"}
    found = columns_of(row, source(answer="gold", rewards="kinds"))
    assert found == row | {"answer": 7, "rewards": ["math"]}
    assert columns_of(row, source()) == row
    assert columns_of(row, source(answer="nowhere"))["answer"] is None


# ---- tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("row", [{"prompt": "Hé 😀"}, {"messages": [SYSTEM, USER, SAID, AGAIN]}])
def test_training_samples_from_the_tokens_that_evaluation_samples_from(style, row, tokenizer):
    """Evaluation's prompt token for token, and what stands before the reply in a row that SFT trains on."""
    data, problem = Data([], template=style), Problem("i", "a", **row)
    found = tokenize_prompt(to_prompt(row, source(), "f:1"), tokenizer, data)
    text = _prompt(problem, load_template(style, tokenizer), "t")
    assert found.input_ids.tolist() == ids_of(text, tokenizer)
    assert (found.labels == -100).all() and (found.segment_ids == 0).all()
    before, reply = _answer_tokens(problem, tokenizer, load_template(style, tokenizer), "t")
    assert found.input_ids.tolist() == before and reply
    asked_of = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    trained = row_of([*asked_of, {"role": "assistant", "content": "x"}], style, tokenizer, train_on="last")
    assert trained.input_ids.tolist()[: len(before)] == before


def test_the_generation_prompt_by_hand():
    found = tokenize_prompt(to_prompt({"prompt": "q"}, source(), "f:1"), BYTES, Data([], template="chatml"))
    assert BYTES.decode(found.input_ids) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def data(tmp_path):
    own = Source("s", path=str(tmp_path / "p.jsonl"))
    return Data([own], template="chatml", max_length=100, cache_dir=str(tmp_path / "cache"))


def write(data: Data, rows: list) -> None:
    with open(data.sources[0].path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def prepared(data: Data):
    return prepare_sources(data.sources, data, Loss(), BYTES, shape="prompts")[0]


def test_a_prompt_at_the_limit_is_kept_and_one_above_is_not(data):
    around = len(tokenize_prompt(to_prompt({"prompt": "q"}, source(), ""), BYTES, data).input_ids) - 1
    at, above = "x" * (100 - around), "x" * (101 - around)
    write(data, [{"prompt": at}] * 9 + [{"prompt": above}])
    data.max_drop_share = 0.1
    table = prepared(data)
    assert table.stats["dropped"] == {"overlong": 1} and set(table.lengths) == {100}
    data.max_drop_share = 0.05
    with pytest.raises(
        RequestError,
        match=r"1 of 10 rows \(10.0%\) is dropped.*1 overlong.*p.jsonl:10: overlong: 101 tokens",
    ):
        prepared(data)
    data.overlong = "error"
    with pytest.raises(
        RequestError, match="p.jsonl:10: the prompt has 101 tokens, more than data.max_length = 100"
    ):
        prepared(data)


def test_columns_stand_beside_the_tokens_of_their_prompt(data):
    """Dropped rows shift nothing; numbers keep their spelling, lists and half characters come back."""
    rows = [{"prompt": f"q{i}", "answer": i, "tests": [{"in": i}], "n": i / 2} for i in range(6)]
    rows[1]["prompt"], rows[2]["prompt"] = "", "y" * 200
    rows[3]["note"], rows[4] = "half \ud800", {"messages": [SYSTEM, USER], "answer": "é"}
    write(data, rows)
    data.max_drop_share = 0.5
    table = prepared(data)
    assert len(table) == 4 and [table.origin(i) for i in range(4)] == [0, 3, 4, 5]
    assert table.trained.tolist() == [0] * 4
    for i, number in enumerate((0, 3, 4, 5)):
        found, row = table.asked(i), rows[number]
        assert found.columns == row and found.where.endswith(f"p.jsonl:{number + 1}")
        example = found.example()
        assert example.answer == str(row["answer"]) and example.where == found.where
        assert {k: v for k, v in row.items() if k != "answer"} == example.extra
        assert (example.prompt, example.messages) == (row.get("prompt"), row.get("messages"))
        assert BYTES.decode(table[i].input_ids).count(row.get("prompt", "system\ns<|im_end|>")) == 1
    assert table.asked(0).example().prompt == "q0"


def test_the_account_counts_the_replies_that_are_cut_off(data):
    write(data, [{"messages": [USER, SAID]}, {"messages": [USER]}, {"messages": [AGAIN, SAID]}])
    account = manifest(build(data, Loss(), BYTES, shape="prompts"), 3)
    assert account["sources"][0]["ignored"] == {"last reply": 2}


def test_a_prompt_under_another_name_reaches_rewards_that_want_it(data):
    write(data, [{"question": "q", "answer": "1"}, {"question": [USER], "answer": "2"}])
    table = prepared(data)
    assert table.asked(0).example().prompt == "q" and table.asked(1).example().messages == [USER]


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=5))
def test_any_text_comes_back(texts):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/p.jsonl"
        data = Data([Source("s", path=path)], template="chatml", cache_dir=f"{folder}/cache")
        write(data, [{"prompt": text, "answer": text} for text in texts])
        table = prepared(data)
        assert [table.asked(i).example().answer for i in range(len(table))] == texts


def test_damage_is_mended_or_named(data):
    """A damaged table is made again when it is opened; what breaks after that is named."""
    write(data, [{"prompt": f"q{i}", "answer": "1"} for i in range(3)])
    folder = prepared(data).folder
    for name, broken in (("columns.idx", b""), ("columns.idx", b"12345678"), ("columns.jsonl", b"{}\n")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(broken)
        prepared(data)
        assert (folder / name).read_bytes() == whole
    table, text = prepared(data), (folder / "columns.jsonl").read_bytes()
    (folder / "columns.jsonl").write_bytes(text.replace(b"[", b"{"))
    with pytest.raises(WorkError, match="damaged"):
        table.asked(1)
    (folder / "columns.idx").unlink()
    assert prepared(data).asked(1) and (folder / "columns.jsonl").read_bytes() == text


def test_prompts_rows_and_other_columns_are_cached_apart(data):
    write(data, [{"prompt": "q", "completion": "c", "answer": "1", "gold": "2"}])
    rows = prepare_sources(data.sources, data, Loss(), BYTES)[0]
    plain = prepared(data)
    data.sources[0].columns = Columns(answer="gold")
    other = prepared(data)
    assert len({rows.fingerprint, plain.fingerprint, other.fingerprint}) == 3
    assert (plain.asked(0).example().answer, other.asked(0).example().answer) == ("1", "2")


def test_prompts_mix_like_rows(data):
    write(data, [{"prompt": f"q{i}"} for i in range(10)])
    found = build(data, Loss(), BYTES, seed=3, shape="prompts")
    order = [found.mixture[i] for i in range(20)]
    assert {row for _, row in order[:10]} == set(range(10)) == {row for _, row in order[10:]}
    assert order[:10] != order[10:] and found.heldout_table is None


@pytest.mark.parametrize("empty", [None, "", " \n", [], float("nan")])
def test_a_row_without_its_answer_is_dropped(empty):
    """A reward would compare with nothing, or fail for every completion."""
    for row, columns in (
        ({"prompt": "q", "answer": empty}, Columns()),
        ({"prompt": "q", "gold": empty}, Columns(answer="gold")),
        ({"messages": [{"role": "user", "content": "q"}], "answer": empty}, Columns()),
    ):
        with pytest.raises(RowError, match=r"^no_answer: column '(answer|gold)' is empty$"):
            to_prompt(row, Source(name="s", path="f", columns=columns), "f:1")


def test_a_named_answer_that_is_not_there():
    """A row may lack it; another spelling of a usual name that the row has is a mistake of the recipe."""
    row = {"prompt": "q", "answer": "4"}
    with pytest.raises(RowError, match=r"^no_answer: the row has no column 'gold' \(columns.answer\)$"):
        to_prompt(row, Source(name="s", path="f", columns=Columns(answer="gold")), "f:1")
    words = r"^f:1: source 's' has no column 'anwser' \(columns.answer\); did you mean 'answer'\?$"
    with pytest.raises(RequestError, match=words):
        to_prompt(row, Source(name="s", path="f", columns=Columns(answer="anwser")), "f:1")


def test_the_remedy_of_no_answer_fits_every_name():
    assert REASONS["no_answer"].remedy.endswith("name the column under `ignore` on the source")
    for name in ("answer", "gold"):
        source = Source(name="s", path="f", columns=Columns(answer=name), ignore=[name])
        assert to_prompt({"prompt": "q", name: None}, source, "f:1").prompt == "q"


def test_a_row_may_do_without_an_answer():
    """Where it has no such column, no reward reads it, or its own verifiers need none; 0 is an answer."""
    for row, more in (
        ({}, {}),
        ({"answer": 0}, {}),
        ({"answer": None}, {"ignore": ["answer"]}),
        ({"answer": None, "rewards": "code", "tests": "t"}, {}),
        ({"answer": None, "kind": ["code"]}, {"columns": Columns(rewards="kind")}),
    ):
        assert to_prompt({"prompt": "q"} | row, Source(name="s", path="f", **more), "f:1").prompt == "q"
