"""The columns that an error proposes where none has a usual name."""

from __future__ import annotations

import json

import pytest

from posttrain.data.shapes.pairs import to_pair
from posttrain.data.shapes.prompts import to_prompt
from posttrain.data.shapes.rows import to_example
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source

HH = "\n\nHuman: u\n\nAssistant: a"
TALK = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def hint(row, read=to_example, **source) -> str:
    """What follows the question of the error, without its question mark. With a proposal nothing else is
    advised."""
    with pytest.raises(RequestError) as error:
        read(row, Source(name="s", path="f", **source), "f:1")
    before, asked, after = str(error.value).partition("; did you mean columns: ")
    has = ", ".join(row) or "no column at all"
    if asked:
        assert before == f"f:1: it is not known which columns of source 's' are meant; it has {has}"
    else:
        assert before.startswith("f:1: no column with the ") and ". Name the column under columns." in before
    return after.removesuffix("?")


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"q": "2+2?", "a": "4"}, "{prompt: q, completion: a}"),
        ({"a": "4", "q": "2+2?", "id": "x", "n": 3}, "{prompt: q, completion: a}"),
        ({"Q": "2+2?", "A": "4"}, "{prompt: Q, completion: A}"),
        (
            {"answer_text": "4", "question_text": "2+2?", "id": "x"},
            "{prompt: question_text, completion: answer_text}",
        ),
        # the only two columns of texts, in their order
        ({"context": "2+2?", "utterance": "4", "level": 3}, "{prompt: context, completion: utterance}"),
        ({"question": "2+2?", "verdict": "4"}, "{completion: verdict}"),
        ({"request": "2+2?", "output": "4"}, "{prompt: request}"),
        ({"story": "Once.", "id": 3}, "{text: story}"),
        ({"dialog": TALK, "id": "x"}, "{messages: dialog}"),
        # messages that end in a question have their reply in another column
        ({"input": TALK[:1], "output": "4"}, "{prompt: input}"),
        ({"dialog": TALK[:1], "gold": "4"}, "{prompt: dialog, completion: gold}"),
        ({"dialog": TALK[:1], "id": 3}, ""),
        ({"dialog": json.dumps(TALK), "id": "x"}, "{messages: dialog}"),
        ({"dialog": HH}, "{messages: dialog}"),
        ({"dialog": {"role": ["user", "assistant"], "content": ["u", "a"]}}, "{messages: dialog}"),
        # what is about a row, and what is read as something else, is no reply
        (
            {"input": "q", "reasoning_content": "t", "content": "a", "repo_name": "x/y"},
            "{prompt: input, completion: content}",
        ),
        ({"input": "q", "repo_name": "x/y"}, ""),
        ({"question": "q", "thinking": "t", "user_id": "u"}, ""),
        ({"question": "q", "dialog": [{"from": "Alice", "value": "x"}]}, ""),
        ({"question": "q", "gold": [{"text": "x"}]}, ""),
        # nothing is proposed where it is not known which of them is meant, or they have no text
        ({"alpha": "x", "beta": "y", "gamma": "z"}, ""),
        ({"q": 1, "a": 2}, ""),
        ({"question": "2+2?"}, ""),
        ({}, ""),
    ],
)
def test_columns_are_proposed(row, want):
    assert hint(row) == want


def test_what_is_proposed_can_be_read():
    row = {"q": "2+2?", "a": "4"}
    assert hint(row) == "{prompt: q, completion: a}"
    found = to_example(row, Source(name="s", path="f", columns=Columns(prompt="q", completion="a")), "f:1")
    assert (found.prompt, found.completion) == ("2+2?", "4")


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"q": "2+2?", "a": "4"}, "{prompt: q}"),
        ({"dialog": TALK, "answer": "4"}, "{messages: dialog}"),
        ({"dialog": TALK[:1], "answer": "4"}, "{prompt: dialog}"),
        ({"chosen": TALK, "rejected": TALK}, "{messages: chosen}"),
        ({"completion": "c", "answer": "4"}, ""),
    ],
)
def test_stages_that_sample_are_told_the_prompt(row, want):
    assert hint(row, to_prompt) == want


def test_messages_that_are_asked_can_be_read_beside_their_reply():
    row = {"input": TALK[:1], "output": "a"}
    found = to_example(row, Source(name="s", path="f", columns=Columns(prompt="input")), "f:1")
    assert found.messages == TALK


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "u", "chosen": "a", "rejected": "b"}, {"completion": "chosen"}),
        ({"q": "u", "chosen": "a", "rejected": "b"}, {"prompt": "q", "completion": "chosen"}),
        ({"prompt": TALK[:1], "chosen": TALK[1:], "rejected": TALK[1:]}, {"completion": "chosen"}),
        ({"prompt": "u", "chosen": TALK, "rejected": TALK}, {"messages": "chosen"}),
        ({"chosen": TALK, "rejected": TALK}, {"messages": "chosen"}),
        ({"chosen": HH, "rejected": HH}, {"messages": "chosen"}),
    ],
)
def test_pairs_are_told_from_single_replies(row, columns):
    with pytest.raises(RequestError) as error:
        to_example(row, Source(name="s", path="f"), "f:1")
    written = ", ".join(f"{what}: {name}" for what, name in columns.items())
    assert str(error.value) == (
        f"f:1: source 's' has pairs, not single replies; the row has {', '.join(row)}. Set stage: dpo, or "
        f"columns: {{{written}}} on the source to train the better reply alone"
    )
    found = to_example(row, Source(name="s", path="f", columns=Columns(**columns)), "f:1")
    assert (found.messages or [{"content": found.prompt}, {"content": found.completion}])[1]["content"] == "a"
    assert (found.messages or [{"content": found.prompt}])[0]["content"] == "u"


def test_rated_replies_need_a_stage_of_pairs():
    row = {"prompt": "q", "responses": [{"response": "a", "rating": 1}, {"response": "b", "rating": 2}]}
    for value in (row["responses"], json.dumps(row["responses"])):
        with pytest.raises(
            RequestError, match="has rated replies in column 'responses', not .* Set stage: dpo"
        ):
            to_example(row | {"responses": value}, Source(name="s", path="f"), "f:1")
    assert to_pair(row, Source(name="s", path="f"), "f:1")[0].completion == "b"


def test_beside_calls_the_completion_may_be_empty():
    row = {"prompt": "q", "tool_calls": [{"name": "add", "arguments": {}}]}
    with pytest.raises(
        RequestError, match="beside 'tool_calls'.* write a column 'completion' that is empty$"
    ):
        to_example(row, Source(name="s", path="f"), "f:1")
    found = to_example(row | {"completion": None}, Source(name="s", path="f"), "f:1")
    assert found.messages[1]["tool_calls"][0]["function"]["name"] == "add"


@pytest.mark.parametrize("value", [[{"response": "x"}], ["x", "y"], {"response": ["x"], "model": ["m"]}])
def test_a_list_of_replies_cannot_be_named_as_the_completion(value):
    """The proposed column can be read; the list under `columns.completion` cannot."""
    for name in ("responses", "completions"):
        with pytest.raises(RequestError) as error:
            to_example({"prompt": "q", name: value}, Source(name="s", path="f"), "f:1")
        assert str(error.value) == (
            f"f:1: source 's' has lists of replies in column {name!r}, not single ones; the row has prompt, "
            f"{name}. Write the one to train as text into a column 'completion'"
        )
    row = {"prompt": "q", "responses": value, "completion": "x"}
    assert to_example(row, Source(name="s", path="f"), "f:1").completion == "x"
    turns = {"prompt": "q", "responses": [{"role": "assistant", "content": "x"}]}
    with pytest.raises(RequestError, match="Set columns: {completion: responses}"):
        to_example(turns, Source(name="s", path="f"), "f:1")
    named = Source(name="s", path="f", columns=Columns(completion="responses"))
    assert to_example(turns, named, "f:1").messages[-1]["content"] == "x"
