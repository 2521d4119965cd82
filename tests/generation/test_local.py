"""The generation loop against `model.generate`, exact probabilities, and its own promises."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from posttrain.errors import RequestError, WorkError
from posttrain.generation.base import Sampling
from posttrain.generation.local import TransformersGenerator, batches, choose
from tests.tiny import build_model

GREEDY = Sampling(temperature=0, max_new_tokens=20, batch_size=8)


def texts(found):
    return [(r.prompt_index, r.sample_index, r.text, r.finish) for r in found]


def prompts_of(digits, *written: str) -> list[list[int]]:
    return [digits(text, add_special_tokens=False)["input_ids"] for text in written]


MIXED = ("1", "12*34=", "7+8+9=", "3", "99-1=", "1,2,3,4,5,", "0", "42/", "(1+2)*3", "8", "5.", "77=")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mistral"])
def test_greedy_equals_generate(kind, digits):
    """Prompts of all lengths together (left padding), against transformers one by one."""
    model = build_model(kind, len(digits))
    stops = [digits.eos_token_id, digits("7", add_special_tokens=False)["input_ids"][0]]
    prompts = prompts_of(digits, *MIXED)
    found = TransformersGenerator(model, digits, stops[1:]).generate(prompts, 1, GREEDY, seed=0)
    assert [r.prompt_index for r in found] == list(range(len(prompts)))
    finishes = set()
    for prompt, completion in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=stops,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert completion.token_ids == out
        assert (completion.finish == "stop") == (out[-1] in stops)
        kept = out[:-1] if out[-1] in stops else out
        assert completion.text == digits.decode([i for i in kept if i != digits.pad_token_id])
        finishes.add(completion.finish)
    assert finishes == {"stop", "length"}  # both happen, or this test shows little


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_log_probs_are_those_of_a_plain_forward(kind, digits):
    """Of the model itself, whatever the temperature; also after sequences have left the batch."""
    model = build_model(kind, len(digits), seed=1)
    sampling = Sampling(temperature=1.7, top_p=0.9, max_new_tokens=24, batch_size=16)
    prompts = prompts_of(digits, *MIXED[:5])
    for completion in TransformersGenerator(model, digits).generate(prompts, 3, sampling, seed=3):
        prompt = prompts[completion.prompt_index]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert completion.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def g_statistic(counts: Counter, expected: dict, total: int) -> float:
    """Likelihood-ratio statistic; chi-square with len(expected) - 1 degrees of freedom if all is right."""
    assert set(counts) <= set(expected)
    return 2 * sum(n * math.log(n / (total * expected[key])) for key, n in counts.items())


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (1.5, 0.8)])
def test_two_tokens_follow_their_exact_distribution(digits, llama, temperature, top_p):
    """20,000 draws of two tokens; the joint probabilities are computed independently, by enumeration."""

    def distribution(ids):
        with torch.no_grad():
            p = (llama(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1).tolist()
        kept, mass = {}, 0.0
        for token in sorted(range(len(p)), key=lambda t: -p[t]):
            if mass >= top_p:
                break
            kept[token] = p[token]
            mass += p[token]
        return {token: value / mass for token, value in kept.items()}

    prompt = prompts_of(digits, "1+")[0]
    expected = {}
    for first, p in distribution(prompt).items():
        if first == digits.eos_token_id:
            expected[(first,)] = p
        else:
            following = distribution([*prompt, first])
            expected |= {(first, second): p * q for second, q in following.items()}
    total = 20_000
    sampling = Sampling(temperature, top_p, max_new_tokens=2, batch_size=5000)
    found = TransformersGenerator(llama, digits).generate([prompt], total, sampling, seed=11)
    rare = {key for key, p in expected.items() if p * total < 5}
    pooled = {key: p for key, p in expected.items() if key not in rare}
    counts = Counter(key if (key := tuple(r.token_ids)) not in rare else "rare" for r in found)
    if rare:
        pooled["rare"] = sum(expected[key] for key in rare)
    degrees = len(pooled) - 1
    assert degrees > 3
    assert g_statistic(counts, pooled, total) < degrees + 5 * math.sqrt(2 * degrees)


def test_choose_never_takes_what_has_no_probability():
    """Numbers at both ends of [0, 1) land on the first and last token that may be drawn."""
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(2, 4)
    uniform = torch.tensor([[0.0], [1 - 2**-24]])
    assert choose(logits, uniform, Sampling()).tolist() == [1, 2]
    nucleus = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]])).expand(2, 4)
    assert choose(nucleus, uniform, Sampling(top_p=0.6)).tolist() == [1, 3]
    assert choose(nucleus, uniform, Sampling(top_p=0.5)).tolist() == [1, 1]
    assert choose(nucleus, uniform, Sampling(top_p=1e-9)).tolist() == [1, 1]
    assert choose(nucleus, uniform, Sampling(temperature=0)).tolist() == [1, 1]


@pytest.mark.slow
def test_samples_do_not_depend_on_company_or_number(digits, llama):
    """A prompt's stream is its own: alone, among others, in other batches, with more samples."""
    prompts = prompts_of(digits, *MIXED)
    generator = TransformersGenerator(llama, digits)

    def sample(which, n, batch_size, seed=5):
        sampling = Sampling(max_new_tokens=12, batch_size=batch_size)
        found = generator.generate([prompts[i] for i in which], n, sampling, seed, streams=which)
        return {(which[r.prompt_index], r.sample_index): r.text for r in found}

    whole = sample(list(range(12)), 4, 48)
    assert len(set(whole.values())) > 30
    assert sample(list(range(12)), 4, 8) == whole
    assert sample(list(range(12)), 4, 3) == whole  # fewer sequences a batch than samples
    parts = [sample(list(range(12))[rank::3], 4, 8) for rank in range(3)]
    assert {key: text for part in parts for key, text in part.items()} == whole
    more = sample([7, 2], 6, 12)
    assert all(more[key] == text for key, text in whole.items() if key[0] in (2, 7))
    other = sample(list(range(12)), 4, 48, seed=6)
    assert sum(other[key] != whole[key] for key in whole) > 40
    same_prompt = generator.generate([prompts[0]] * 2, 1, Sampling(max_new_tokens=12), 5)
    assert same_prompt[0].text != same_prompt[1].text


def test_leaves_no_trace(digits, llama):
    """No random number consumed, training mode restored, nothing that needs gradients."""
    llama.train()
    before = torch.get_rng_state()
    TransformersGenerator(llama, digits).generate(prompts_of(digits, "1"), 4, Sampling(max_new_tokens=3), 0)
    assert torch.equal(torch.get_rng_state(), before) and llama.training
    llama.eval()


def test_positions_run_out(digits):
    """8 positions: 5 of prompt leave room for 3 tokens; the other prompt has room for 7."""
    model = build_model("gpt2", len(digits), positions=8, seed=2)
    generator = TransformersGenerator(model, digits)
    generator.stops = generator.stops[:0]
    found = generator.generate(prompts_of(digits, "1+2+3", "1"), 1, GREEDY, 0)
    assert [len(r.token_ids) for r in found] == [3, 7]
    assert [r.finish for r in found] == ["length", "length"]
    with pytest.raises(RequestError, match="prompt 1 has 8 tokens; the model has 8 positions"):
        generator.generate(prompts_of(digits, "1", "12345678"), 1, GREEDY, 0)


class SixthTokenEnds:
    """Stands for a model that writes 5 5 5 5 5 and its end token, whatever it reads."""

    training, device, generation_config, calls = False, torch.device("cpu"), None, 0

    def __init__(self, positions: int) -> None:
        text = SimpleNamespace(max_position_embeddings=positions)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.eval = lambda: self
        self.train = lambda mode: self

    def forward(self, input_ids, position_ids):
        """Only its arguments are looked at."""

    def __call__(self, input_ids, **_):
        self.calls += 1
        logits = torch.zeros(len(input_ids), 1, 22)
        logits[..., 1 if self.calls == 6 else 5] = 9.0
        return SimpleNamespace(logits=logits, past_key_values=object())


def test_what_comes_after_the_end_does_not_count(digits):
    """Room for 3 tokens ends the first; the end token it would write at step 6 is not its own."""
    found = TransformersGenerator(SixthTokenEnds(8), digits).generate([[3] * 5, [3]], 1, GREEDY, 0)
    assert [(r.token_ids, r.finish) for r in found] == [([5] * 3, "length"), ([5] * 5 + [1], "stop")]
    assert [r.text for r in found] == ["222", "22222"]


def test_end_tokens_come_from_three_places(digits):
    model = build_model("llama", len(digits))
    model.generation_config.eos_token_id = [5, 6]
    assert TransformersGenerator(model, digits, [9]).stops.tolist() == [1, 5, 6, 9]
    model.generation_config.eos_token_id = 5
    assert TransformersGenerator(model, digits).stops.tolist() == [1, 5]


def test_impossible_requests(digits, llama):
    generator, prompts = TransformersGenerator(llama, digits), prompts_of(digits, "1")
    for n, sampling, message in [
        (2, GREEDY, "greedy"),
        (1, Sampling(temperature=-1), "temperature"),
        (1, Sampling(temperature=float("nan")), "temperature"),
        (1, Sampling(top_p=0.0), "top_p"),
        (1, Sampling(max_new_tokens=0), "at least 1"),
        (0, Sampling(), "at least 1"),
    ]:
        with pytest.raises(RequestError, match=message):
            generator.generate(prompts, n, sampling, 0)
    with pytest.raises(RequestError, match="prompt 1 is empty"):
        generator.generate([*prompts, []], 1, GREEDY, 0)
    assert generator.generate([], 1, GREEDY, 0) == []


def test_a_broken_model_is_a_failure_not_a_text(digits):
    model = build_model("llama", len(digits))
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(WorkError, match="not finite"):
        TransformersGenerator(model, digits).generate(
            prompts_of(digits, "1"), 1, Sampling(max_new_tokens=2), 0
        )


def test_batches():
    assert batches([1, 5, 3, 5], 2, 4) == [[1, 3], [2, 0]]
    assert batches([1, 2], 8, 4) == [[1], [0]]
    assert batches([], 1, 4) == []
    everything = list(itertools.chain(*batches(list(range(7)), 1, 3)))
    assert sorted(everything) == list(range(7))
