"""What an engine may not answer, and what is said of an answer that TRL's client cannot read."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import WorkError
from posttrain.generation.vllm_answer import explained, refuse_answer

STOPS = {1, 7}


def refused(ids, log_probs=None) -> str | None:
    """What is said of `ids` where 4 tokens were requested of a vocabulary of 23 rows."""
    log_probs = [[-1.0]] * len(ids) if log_probs is None else log_probs
    try:
        refuse_answer("vLLM answered prompt 3, sample 0,", ids, log_probs, 4, 23, STOPS)
    except WorkError as error:
        return str(error)
    return None


@pytest.mark.parametrize("ids", [[0], [22, 5, 6, 4], [5, 5, 5, 7], (1,), [5, 1]])
def test_an_answer_that_is_one(ids):
    assert refused(ids) is None


@pytest.mark.parametrize(
    ("ids", "log_probs", "said"),
    [
        ([], None, "without a token"),
        ([5] * 5, None, "with 5 tokens; at most 4 were requested"),
        ([5, 23], None, "with the token id 23, but the policy's vocabulary has 23 rows"),
        ([-1, 5], None, "with the token id -1, but"),
        (["5"], None, "with the token id '5', but"),
        ([5, 6], [[-1.0]], "with 2 tokens but 1 log-probabilities"),
        ([5, 6], [[-1.0]] * 3, "with 2 tokens but 3 log-probabilities"),
        ([5, 7, 6], None, "with 1 token(s) after the end token 7"),
        ([1, 1, 5, 6], None, "with 3 token(s) after the end token 1"),
    ],
)
def test_an_answer_that_is_none(ids, log_probs, said):
    found = refused(ids, log_probs)
    assert found.startswith(f"vLLM answered prompt 3, sample 0, {said}") and "\n" not in found


def test_an_error_that_explains_nothing_gets_a_sentence():
    requests = pytest.importorskip("requests", reason="TRL's client needs requests (posttrain[test])")
    for bare in (KeyError("token_ids"), IndexError("list index out of range"), TypeError("bad operand")):
        assert f"cannot read the answer ({type(bare).__name__}: {bare}); serve with" in explained(bare)
    assert "cannot read the answer (JSONDecodeError" in explained(
        requests.JSONDecodeError("Expecting", "x", 0)
    )
    assert "cannot read the answer" in explained(json.JSONDecodeError("Expecting", "x", 0))
    for own in (
        Exception("Request failed: 500"),
        ConnectionError("refused"),
        requests.exceptions.InvalidURL("x"),
    ):
        assert explained(own) == str(own)
