"""Teacher-forced log-probabilities against one plain forward a row, and against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from posttrain.errors import RequestError, WorkError
from posttrain.evaluate.exact import answer_log_probs
from tests.tiny import build_model

PROMPTS = [[3, 4], [5], [6, 7, 8, 9, 3], [4, 4, 4]]
ANSWERS = [[5, 1], [7, 8, 9, 1], [1], [3, 3, 3, 3, 3, 1]]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_equals_one_forward_a_row(kind, batch_size, digits):
    model = build_model(kind, len(digits))
    found = answer_log_probs(model, PROMPTS, ANSWERS, batch_size)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        terms = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        assert found.log_probs[0, i] == pytest.approx(float(terms.sum()), abs=1e-4)
        assert found.predicted[i] == logits.argmax(-1).tolist()
    assert found.log_probs.dtype == np.float64


@pytest.mark.parametrize("batch_size", [1, 4])
def test_temperatures_divide_the_logits(batch_size, digits):
    """Each as a forward of its own; at the ends a hot model guesses, a cold one takes the likeliest."""
    model, asked = build_model("llama", len(digits)), [1.0, 0.5, 3.0, 1e6, 1e-6]
    found = answer_log_probs(model, PROMPTS, ANSWERS, batch_size, asked)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        for at, temperature in enumerate(asked[:3]):
            terms = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
            assert found.log_probs[at, i] == pytest.approx(float(terms.sum()), abs=1e-4)
        assert found.log_probs[3, i] == pytest.approx(-len(answer) * math.log(len(digits)), abs=1e-3)
    best = answer_log_probs(model, PROMPTS, found.predicted, batch_size, asked)
    first = [len(answer) == 1 for answer in ANSWERS]  # the likeliest token is the likeliest answer
    assert best.log_probs[4][first] == pytest.approx(0, abs=1e-6)
    assert (
        answer_log_probs(model, PROMPTS, ANSWERS, batch_size).log_probs[0].tolist()
        == found.log_probs[0].tolist()
    )


def test_probabilities_of_all_answers_sum_to_one(digits):
    """Every text of two tokens, and every one that ends after one: exactly one of them follows the prompt."""
    model = build_model("llama", len(digits))
    size, end = len(digits), digits.eos_token_id
    pairs = [list(pair) for pair in itertools.product(range(size), repeat=2) if pair[0] != end]
    answers = [[end], *pairs]
    found = answer_log_probs(model, [[3, 4, 5]] * len(answers), answers, 128)
    assert np.exp(found.log_probs).sum() == pytest.approx(1.0, abs=1e-5)


def test_what_greedy_decoding_writes_is_predicted(digits):
    """An answer made of the predictions themselves is predicted throughout."""
    from posttrain.generation.base import Sampling
    from posttrain.generation.local import TransformersGenerator

    model = build_model("qwen2", len(digits), seed=4)
    sampling = Sampling(temperature=0, max_new_tokens=6)
    answers = [r.token_ids for r in TransformersGenerator(model, digits).generate(PROMPTS, 1, sampling, 0)]
    assert answer_log_probs(model, PROMPTS, answers, 4).predicted == answers


def test_refusals(digits):
    model = build_model("llama", len(digits), positions=8)
    with pytest.raises(RequestError, match="problem 1: the prompt has no tokens"):
        answer_log_probs(model, [[3], []], [[1], [1]])
    with pytest.raises(RequestError, match="problem 0: the answer has no tokens"):
        answer_log_probs(model, [[3]], [[]])
    assert answer_log_probs(model, [[3] * 5], [[4] * 4]).log_probs.shape == (1, 1)  # 8 are read
    with pytest.raises(RequestError, match="5 \\+ 5 tokens, but the model has 8 positions"):
        answer_log_probs(model, [[3] * 5], [[4] * 5])
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(WorkError, match="not finite"):
        answer_log_probs(model, [[3]], [[1]])


def test_mode_is_restored(digits, llama):
    llama.train()
    answer_log_probs(llama, PROMPTS, ANSWERS)
    assert llama.training
    llama.eval()
