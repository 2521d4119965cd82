"""Reward models: a tiny one made here, each score against that of a batch, and Qwen2.5-Math's shaping."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.model_based import reward_model as module
from posttrain.rewards.model_based.reward_model import sigmoid
from posttrain.rewards.registry import bind
from posttrain.types import Example

BARE = Example()
WORDS = [f"w{i}" for i in range(40)] + ["user", "assistant", ":", "Answer"]
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
TEXTS = ["w1", "w2 w3 w4 w5 w6 w7", "w8 w9", "w1 " * 30, "unknown words", "w3 w3 w3"]


def make(folder, labels: int = 1, template: str | None = None, pad: bool = True, kind: str = "llama") -> str:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", *WORDS]
    raw = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(names),
        num_labels=labels,
        pad_token_id=0,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        head = model.score if kind == "llama" else model.classifier
        head.weight *= 50  # scores far enough apart to tell texts from each other
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return make(tmp_path_factory.mktemp("rm"))


def score(path, texts, row=BARE, name="reward_model", **options):
    bound = bind(name, {"model": path, "device": "cpu", **options})
    return score_batch(bound, texts, [row] * len(texts))


def raw_score(path: str, text: str) -> float:
    """Straight from transformers, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    ids = AutoTokenizer.from_pretrained(path)(text, add_special_tokens=False, return_tensors="pt")
    model.config.pad_token_id = 0
    with torch.inference_mode():
        return model(input_ids=ids["input_ids"]).logits[0, 0].item()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_a_batch_scores_each_text_as_it_would_alone(path, batch_size):
    verdicts = score(path, TEXTS, squash=False, batch_size=batch_size)
    alone = [raw_score(path, text) for text in TEXTS]
    assert [v.value for v in verdicts] == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 0.1  # the texts are told apart, so an exchanged order would show
    assert [v.details["tokens"] for v in verdicts] == [1, 6, 2, 30, 2, 3]


@pytest.mark.slow
def test_padding_is_not_read_by_a_model_that_reads_both_ways(tmp_path):
    path = make(tmp_path, kind="bert")
    alone = [raw_score(path, text) for text in TEXTS]
    assert [v.value for v in score(path, TEXTS, squash=False)] == pytest.approx(alone, abs=1e-4)


def test_squashed_is_the_sigmoid_of_the_score(path):
    squashed, raw = score(path, TEXTS), score(path, TEXTS, squash=False)
    for a, b in zip(squashed, raw, strict=True):
        assert a.value == pytest.approx(1 / (1 + math.exp(-b.value)))
        assert a.details["score"] == b.value


def test_prompt_and_template(path, tmp_path):
    row = Example(prompt="w5 w6")
    assert score(path, ["w7"], row, squash=False)[0].value == pytest.approx(
        raw_score(path, "w5 w6 w7"), abs=1e-4
    )
    chat = make(tmp_path / "chat", template=TEMPLATE)
    whole = raw_score(chat, "user : w5 w6 </s> assistant : w7 </s>")
    for each in (row, Example(messages=[{"role": "user", "content": "w5 w6"}])):
        assert score(chat, ["w7"], each, squash=False)[0].value == pytest.approx(whole, abs=1e-4)


def test_long_texts_lose_their_end_and_say_so(path):
    kept, cut = score(path, ["w1 w2", "w1 w2 w3"], squash=False, max_length=2)
    assert kept.value == pytest.approx(cut.value, abs=1e-5)
    assert (kept.details["truncated"], cut.details["truncated"]) == (False, True)


def test_hostile_texts_have_a_score(path):
    for verdict in score(path, ["", "\ud800", "\x00", "<pad> <pad>", "w1 " * 20000], max_length=64):
        assert verdict.status == "scored" and 0 <= verdict.value <= 1


def test_without_a_pad_token_the_end_token_serves(tmp_path):
    path = make(tmp_path, pad=False)
    alone = [score(path, [t], squash=False)[0].value for t in TEXTS]
    assert [v.value for v in score(path, TEXTS, squash=False)] == pytest.approx(alone, abs=1e-4)


def test_the_model_is_loaded_once(path):
    score(path, ["w1"])
    loaded = dict(module._LOADED)
    score(path, ["w2"])
    assert list(loaded) == list(module._LOADED)
    assert all(loaded[key] is module._LOADED[key] for key in loaded)


def test_models_that_are_none(path, tmp_path):
    with pytest.raises(RequestError, match="it has 2 outputs"):
        score(make(tmp_path / "two", labels=2), ["w1"])
    with pytest.raises(RequestError, match="reward model .*nowhere"):
        score(str(tmp_path / "nowhere"), ["w1"])
    for bad in ({"batch_size": 0}, {"max_length": 1}):
        with pytest.raises(RequestError, match="batch_size must be 1 or more"):
            score(path, ["w1"], **bad)
    assert score(path, []) == []


def test_a_score_that_is_no_number_is_an_error(path, monkeypatch):
    monkeypatch.setattr(module, "_scores", lambda *_: [(math.nan, 1, False), (1.0, 1, False)])
    assert [v.status for v in score(path, ["a", "b"])] == ["error", "scored"]


def test_qwen_shaping_by_hand(path, monkeypatch):
    """r_m = 2, alpha = 0.5: sigmoid(1) = 0.731, so 0.731 if right and -0.269 if wrong.

    The worst right answer is above the best wrong one.
    """
    scores = [(2.0, 1, False), (2.0, 1, False), (-20.0, 1, False), (20.0, 1, False)]
    monkeypatch.setattr(module, "_scores", lambda *_: scores)
    texts = ["red", "blue", "red", "blue"]
    options = {"verifier": "exact", "name": "qwen_math_shaping"}
    values = [v.value for v in score(path, texts, Example(answer="red"), **options)]
    assert values[:2] == pytest.approx([0.7310586, -0.2689414])
    assert values[2] > 0 > values[3]
    steeper = score(path, texts, Example(answer="red"), alpha=1.0, **options)[0].value
    assert steeper == pytest.approx(0.8807971)


def test_qwen_shaping_knows_nothing_where_the_verifier_knows_nothing(path, monkeypatch):
    from posttrain.rewards.simple import text

    monkeypatch.setattr(text, "visible", lambda _: 1 / 0)
    (verdict,) = score(path, ["red"], Example(answer="red"), name="qwen_math_shaping", verifier="exact")
    assert (verdict.value, verdict.status) == (None, "error") and "exact: ZeroDivision" in verdict.reason

    def check_row(row: Example, verifier: str) -> None:
        bind("qwen_math_shaping", {"model": "x", "verifier": verifier}).check_row(row)

    with pytest.raises(RequestError, match="'repetition' is a shaping term, not a verifier"):
        check_row(Example(answer="red"), "repetition")
    with pytest.raises(RequestError, match="needs column 'answer"):
        check_row(Example(), "exact")


@given(st.floats(-1e6, 1e6))
def test_sigmoid(x):
    value = sigmoid(x)
    assert 0 <= value <= 1 and value + sigmoid(-x) == pytest.approx(1)
    assert sigmoid(0.0) == 0.5


def test_an_adapter_is_refused_before_anything_is_loaded(tmp_path):
    """On a base without a score head transformers draws one at random."""
    (tmp_path / "adapter_config.json").write_text("{}")
    for name in ("reward_model", "qwen_math_shaping"):
        with pytest.raises(RequestError, match=r"is an adapter: merge it into its base"):
            bind(name, {"model": str(tmp_path)}).check_row(Example(answer="1"))
    with pytest.raises(RequestError, match="is an adapter"):
        module._load(str(tmp_path), "cpu", "auto")


def test_a_causal_model_has_no_head_that_scores(tmp_path):
    """Loaded as a reward model it would score with random numbers."""
    from transformers import AutoModelForCausalLM

    place = make(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(place).save_pretrained(place)
    with pytest.raises(RequestError, match="reward model .* is not a whole model: .* lack score.weight"):
        score(place, ["w1"])
