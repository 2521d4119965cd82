"""Segments of each kind, worked by hand."""

from __future__ import annotations

import pytest

from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Loss
from tests.data.tokens import BPE, BYTES, ids_of, pair, row_of


def segments_of(example, template="plain", tokenizer=BYTES, **loss) -> list[int]:
    return row_of(example, template, tokenizer, Loss(**loss)).segment_ids.tolist()


@pytest.mark.parametrize("name", ["cross_entropy", "confidence_limited"])
def test_segments_of_each_kind(name):
    """Q, then `a` newline `b` `#` `7` and the end token: six trained tokens."""
    example = pair("Q", "a\nb#7")
    kinds = {
        "token": [0, 1, 2, 3, 4, 5, 6],
        "completion": [0, 1, 1, 1, 1, 1, 1],
        "step": [0, 1, 1, 2, 2, 2, 2],
        "answer": [0, 0, 0, 0, 0, 1, 1],
    }
    for kind, expected in kinds.items():
        assert segments_of(example, name=name, segment=kind, answer_marker="#") == expected
    row = row_of(example, "plain", loss=Loss(segment="answer", answer_marker="#"))
    assert (row.labels >= 0).tolist() == [False] + [True] * 6  # before the answer: trained, no segment


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("ab", [1, 1, 1]),
        ("a\n", [1, 1, 1]),  # a delimiter at the end opens no step for the end token
        ("a\n\nb", [1, 1, 2, 3, 3]),
        ("\na", [1, 2, 2]),
        ("\n \n", [1, 2, 2, 2]),
        ("a\n\n", [1, 1, 2, 2]),
    ],
)
def test_steps(completion, expected):
    assert segments_of(pair("Q", completion), segment="step")[1:] == expected


def test_steps_of_a_longer_delimiter_and_of_tokens_across_it():
    found = segments_of(pair("Q", "a\n\nb\nc"), segment="step", step_delimiter="\n\n")
    assert found[1:] == [1, 1, 1, 2, 2, 2, 2]
    # half of the delimiter in the prompt is no delimiter of the reply
    assert segments_of(pair("Q\n", "\nb"), segment="step", step_delimiter="\n\n")[2:] == [1, 1, 1]
    tokens = [BPE.decode([i]) for i in ids_of("a\n\n\n\nb", BPE)]
    assert tokens == ["a", "\n\n\n\n", "b"]  # one token holds four delimiters: no step is left empty
    assert segments_of(pair("Q", "a\n\n\n\nb"), "plain", BPE, segment="step") == [0, 1, 1, 2, 2]
    with pytest.raises(RequestError, match="step_delimiter is empty"):
        segments_of(pair("Q", "a"), segment="step", step_delimiter="")


def test_segments_of_several_turns_go_on_counting():
    chat = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "a\n#1"},
        {"role": "user", "content": "R"},
        {"role": "assistant", "content": "b#2#3"},
    ]
    # Q a n # 1 e R b # 2 # 3 e
    assert segments_of(chat) == [0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 2]
    assert segments_of(chat, segment="step") == [0, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 3, 3]
    assert segments_of(chat, segment="token") == [0, 1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10, 11]
    found = segments_of(chat, segment="answer", answer_marker="#")
    assert found == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 2, 2]


def test_answers():
    with pytest.raises(RowError, match="no_answer_marker: a trained turn has no '####'"):
        segments_of(pair("####", "7"), segment="answer", answer_marker="####")
    with pytest.raises(RequestError, match="needs loss.answer_marker"):
        segments_of(pair("Q", "7"), segment="answer")
    # a token across the marker's end holds part of the answer, so it belongs to it
    tokens = [BPE.decode([i]) for i in ids_of("x = 0408", BPE)]
    assert tokens == ["x", " = 0408"]
    found = segments_of(pair("Q", "x = 0408"), "plain", BPE, segment="answer", answer_marker="= ")
    assert found == [0, 0, 1, 1]


def test_the_first_token_never_has_a_segment():
    assert segments_of(pair("", "ab"), segment="token") == [0, 1, 2]
    assert segments_of(pair("", "\nab"), segment="step") == [0, 1, 1, 1]
