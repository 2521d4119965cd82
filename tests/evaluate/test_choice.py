"""Continuations of a prompt: their tokens, log-probabilities, and what a question of options is scored by."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from posttrain.data.template import load_template
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate.choice import Question, encode, filled, option_log_probs
from posttrain.evaluate.score import Subject, score_task
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.evaluate.values import choice_values
from posttrain.recipe.schema import Task
from tests.evaluate.test_score import over_ranks
from tests.evaluate.tokenizer_kinds import KINDS, model_of, tokenizer_of
from tests.tiny import build_model

CASES = [
    ("What is half of two?\nAnswer:", [" A", " B", " C", " D"]),
    ("Question: 1?\nAnswer: ", ["A", "B"]),
    ("Answer:\n\n", ["True, False", "none of these", "é"]),
    ("The first", [" and the second", " one", "s"]),
    ("Question: What", [" is half of two?", " is half", " two"]),
]


def read(tokenizer, prompt):
    """A prompt without the token before texts, which stands for one of which nothing is left."""
    return prompt[1:] if prompt[0] == tokenizer.eos_token_id else prompt


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("context", "texts"), CASES)
def test_prompt_and_option_are_the_tokens_of_the_text(kind, context, texts):
    """Together they are what the whole text encodes to; the prompt has no token of an option; and where the
    prompt's own tokens begin the whole, the split is where lm-eval has it."""
    tokenizer = tokenizer_of(kind)
    prompt, options = encode(tokenizer, context, texts)
    kept = ids(tokenizer, context.rstrip())
    begins = []
    for text, option in zip(texts, options, strict=True):
        whole = ids(tokenizer, context + text)
        assert read(tokenizer, prompt) + option == whole and option
        begins.append(whole[: len(kept)] == kept)
    prompt = read(tokenizer, prompt)
    assert prompt == kept[: len(prompt)]
    assert (prompt == kept) == all(begins)


@pytest.mark.parametrize(
    ("kind", "apart", "merged"), [("bytes", 0, 0), ("bpe", 5, 3), ("gpt2", 3, 0), ("unigram", 3, 0)]
)
def test_where_texts_encode_otherwise_together(kind, apart, merged):
    """The cases above contain what they are about: options whose tokens are others apart from the prompt, and
    options that change its last token."""
    tokenizer = tokenizer_of(kind)
    pairs = [(context.rstrip(), context[len(context.rstrip()) :] + t) for context, ts in CASES for t in ts]
    whole = [(ids(tokenizer, a + b), ids(tokenizer, a), ids(tokenizer, b)) for a, b in pairs]
    assert sum(both != a + b for both, a, b in whole) >= apart
    assert sum(both[: len(a)] != a for both, a, _ in whole) >= merged
    if not apart:
        assert all(both == a + b for both, a, b in whole)


def test_an_option_that_merges_with_the_prompt_takes_its_token_from_all():
    """The last token changes: the options then begin before it, and are compared for the same text."""
    tokenizer = tokenizer_of("bpe")
    alone = ids(tokenizer, "10 Answer:")
    prompt, options = encode(tokenizer, "10 Answer:", [" A", " x"])
    assert prompt == alone[: len(prompt)] and 0 < len(prompt) < len(alone)
    assert {tokenizer.decode(prompt + option) for option in options} == {"10 Answer: A", "10 Answer: x"}


def test_a_prompt_that_merges_as_a_whole_leaves_the_token_before_texts():
    tokenizer = tokenizer_of("bpe")
    prompt, options = encode(tokenizer, "Answer:", [" A", " x"])
    assert prompt == [tokenizer.eos_token_id]
    assert options == [ids(tokenizer, "Answer: A"), ids(tokenizer, "Answer: x")]


def test_white_space_of_a_template_stays_with_the_prompt():
    tokenizer = tokenizer_of("bytes")
    moved, kept = (encode(tokenizer, "assistant\n", ["A"], keep) for keep in (False, True))
    assert (tokenizer.decode(moved.prompt), tokenizer.decode(kept.prompt)) == ("assistant", "assistant\n")
    assert [tokenizer.decode(option) for option in (*moved.options, *kept.options)] == ["\nA", "A"]


def by_hand(model, prompt, option, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + option])).logits[0, len(prompt) - 1 : -1].double()
    terms = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(option)[:, None])
    return float(terms.sum())


QUESTIONS = [
    Question([3, 4, 5, 6], [[7], [8], [7], [9]]),  # one pass
    Question([5], [[6, 7, 8], [3], [4, 4]]),
    Question([8, 8], [[3, 4, 5], [3, 4, 6]]),  # one pass: they differ in the last token
    Question([7, 3, 3], [[4, 5], [3, 5]]),
]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equals_one_forward_an_option(kind, batch_size, digits):
    model, heats = build_model(kind, len(digits)), [1.0, 0.5, 3.0]
    found = option_log_probs(model, QUESTIONS, batch_size, heats)
    for question, at in zip(QUESTIONS, found, strict=True):
        for heat, logps in zip(heats, at, strict=True):
            wanted = [by_hand(model, question.prompt, option, heat) for option in question.options]
            assert logps == pytest.approx(wanted, abs=1e-4)


def test_one_forward_where_options_differ_in_the_last_token(llama, monkeypatch):
    rows = []
    forward = type(llama).forward

    def counted(self, input_ids=None, **more):
        rows.append(len(input_ids))
        return forward(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(llama), "forward", counted)
    for question, passes in zip(QUESTIONS, (1, 3, 1, 2), strict=True):
        rows.clear()
        option_log_probs(llama, [question])
        assert rows == [passes]


def test_probabilities_of_all_tokens_sum_to_one_and_nan_is_refused(digits):
    model = build_model("llama", len(digits))
    (((*logps,),),) = option_log_probs(model, [Question([3, 4], [[t] for t in range(len(digits))])])
    assert math.fsum(map(math.exp, logps)) == pytest.approx(1, abs=1e-5)
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(WorkError, match="not finite"):
        option_log_probs(model, QUESTIONS)


def test_a_text_with_an_option_in_its_gap():
    tokenizer = tokenizer_of("bytes")
    begin, (text,) = filled(tokenizer, "The sky is ____.", "blue")
    assert begin == [tokenizer.eos_token_id] and tokenizer.decode(text) == "The sky is blue."
    assert filled(tokenizer, "No gap __", "x") is None and filled(tokenizer, "___ and ___", "x") is None
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    assert filled(bare, "ab___", "c") == Question(ids(bare, "a"), [ids(bare, "bc")])


def option(text, logp, **more):
    return {"text": text, "bytes": len(text.encode()), "characters": len(text), "logp": logp, **more}


def test_values_by_hand():
    """ab: -2, 1 a byte and a character. ééé: -3, .5 a byte, 1 a character. abcd: -2.8, .7. By sum the first,
    by byte the second, by character the third; among equal ones the first."""
    options = [option("ab", -2.0), option("ééé", -3.0), option("abcd", -2.8)]
    for right, wanted in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)]):
        found = choice_values([{"options": options, "right": right}], 0)
        assert tuple(found[m][0] for m in ("acc", "acc_norm", "acc_per_char")) == wanted
        assert found["nll"] == [-options[right]["logp"]]
        size = options[right]["bytes"]
        assert found["bits_per_byte"][0] == pytest.approx(-options[right]["logp"] / math.log(2) / size)
        assert found["acc_uncond"] == found["acc_blank"] == found["blank_perplexity"] == [None]
    same = [option("A", -1.0), option("B", -1.0), option("B", -1.0)]
    tied = choice_values([{"options": same, "right": 0}, {"options": same, "right": 1}], 0)
    assert tied["acc"] == tied["acc_norm"] == [1.0, 0.0]
    assert tied["valid_mass"][0] == pytest.approx(2 * math.exp(-1)), "one text twice is one possibility"


def test_values_without_the_question_in_a_gap_and_at_another_temperature():
    first = option("a", -2.0, unconditional=-1.0, filled=-6.0, filled_tokens=6)
    other = option("b", -3.0, unconditional=-5.0, filled=-5.0, filled_tokens=4)
    heated = [first | {"at": {"2.0": {"logp": -9.0}}}, other | {"at": {"2.0": {"logp": -1.0}}}]
    found = choice_values([{"options": [first, other], "right": 1}], 0)
    assert (found["acc"], found["acc_uncond"], found["acc_blank"]) == ([0.0], [1.0], [0.0])
    assert found["blank_perplexity"] == [pytest.approx(math.exp(5 / 4))]
    at = choice_values([{"options": heated, "right": 1}], 1)
    assert (at["acc"], at["nll"]) == ([1.0], [1.0])


@pytest.fixture
def own(tmp_path):
    """A task file and three questions of two groups, one of them with a gap."""
    rows = [
        {"q": "Half of two is ___.", "o": ["one", "two thirds"], "a": "one", "g": "x"},
        {"q": "Is 10 the first?", "o": ["True", "False", "none of these"], "a": "C", "g": "x"},
        {"q": "Is é?", "o": [10, 15], "a": 1, "g": "y"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "about: Mine\nkind: choice\nsource: {file: rows.jsonl}\nprompt: '{{ q }}\n\n  {{ o | lettered }}\n\n"
        "  Answer:'\nchoices: o\nanswer: a\ngroup: g\n"
    )
    return Task("mine", file=str(tmp_path / "mine.yaml"))


def scored(kind, task, template="chatml"):
    tokenizer = tokenizer_of(kind)
    subject = Subject(model_of(kind), tokenizer, load_template(template, tokenizer), "c", 0, "d")
    return score_task(subject, task)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plain", [True, False])
def test_a_task_is_scored_by_the_probabilities_of_its_options(kind, plain, own):
    """Every number of a row by a forward of its own, and the scores from the rows."""
    style = {"continuation": "text", "blank": "q", "unconditional": "Answer:", "chat": not plain}
    result = scored(kind, replace(own, options=style, batch_size=2, temperatures=[2.0]), "tulu")
    tokenizer, model = tokenizer_of(kind), model_of(kind)
    asked = [("one", "two thirds"), ("True", "False", "none of these"), ("10", "15")]
    for row, texts, right in zip(result.samples, asked, (0, 2, 1), strict=True):
        assert row["prompt"].endswith("Answer:" if plain else "Answer:\n<|assistant|>\n")
        assert (row["answer"], row["right"]) == (texts[right], right)
        assert [o["text"] for o in row["options"]] == [*texts]
        context = {"logp": row["prompt"], "unconditional": "Answer:"}
        context["unconditional"] = "Answer:" if plain else "<|user|>\nAnswer:\n<|assistant|>\n"
        for what, before in context.items():
            written = [" " + text if plain else text for text in texts]
            prompt, options = encode(tokenizer, before, written, not plain)
            for each, tokens in zip(row["options"], options, strict=True):
                assert each[what] == pytest.approx(by_hand(model, prompt, tokens), abs=1e-4)
                hot = by_hand(model, prompt, tokens, 2.0)
                assert each["at"]["2.0"][what] == pytest.approx(hot, abs=1e-4)
        best = max(range(len(texts)), key=lambda i: row["options"][i]["logp"])
        assert (row["greedy"], row["correct"]) == (texts[best], best == right)
        assert row["logp"] == row["options"][right]["logp"] == row["logp_at"]["1.0"]
    gap = result.samples[0]["options"]
    for each, text in zip(gap, asked[0], strict=True):
        start, (tokens,) = filled(tokenizer, "Half of two is ___.", text)
        assert each["filled"] == pytest.approx(by_hand(model, start, tokens), abs=1e-4)
        assert each["filled_tokens"] == len(tokens)
    first = {s.metric: s for s in result.scores if s.settings == result.scores[0].settings}
    task = replace(own, options=style)
    assert list(first) == metrics(task) == [*metrics(task)[:-2], "acc_macro", "acc_norm_macro"]
    values = choice_values(result.samples, 0)
    for metric in ("acc", "acc_norm", "acc_uncond", "nll", "bits_per_byte"):
        assert first[metric].value == pytest.approx(sum(values[metric]) / 3)
    a, b, c = values["acc"]
    assert first["acc_macro"].value == pytest.approx(((a + b) / 2 + c) / 2)
    assert first["acc_blank"].n == first["blank_perplexity"].n == 1


def test_letters_and_their_mass(own):
    """`valid_mass` is the probability that the reply is one of the letters."""
    result = scored("bytes", own)
    assert metrics(own)[:4] == ["acc", "acc_norm", "acc_per_char", "valid_mass"]
    row = result.samples[1]
    assert [o["text"] for o in row["options"]] == ["A", "B", "C"] and row["answer"] == "C"
    assert row["group"] == "x" and row["independent"], "the groups are no clusters"
    tokenizer = tokenizer_of("bytes")
    with torch.no_grad():
        last = model_of("bytes")(torch.tensor([ids(tokenizer, row["prompt"])])).logits[0, -1].softmax(-1)
    mass = sum(float(last[ids(tokenizer, letter)[0]]) for letter in "ABC")
    assert choice_values([row], 0)["valid_mass"] == [pytest.approx(mass, rel=1e-4)]
    formed = scored("bytes", replace(own, options={"form": "({})", "space": "always"}))
    assert formed.samples[0]["options"][1]["text"] == "(B)"
    assert [o["tokens"] for o in formed.samples[0]["options"]] == [4, 4]
    assert formed.scores[0].settings != result.scores[0].settings


def test_any_number_of_ranks_gives_the_same(own):
    task = replace(own, batch_size=1)
    alone, two = (over_ranks(model_of("bytes"), tokenizer_of("bytes"), task, n, "chatml") for n in (1, 2))
    assert alone[0] == two[0] == two[1]


def test_a_question_that_does_not_fit(own):
    tokenizer = tokenizer_of("bytes")
    model = build_model("llama", len(tokenizer), positions=40)
    with pytest.raises(RequestError, match=r"task mine, problem 0000\d: \d\d tokens, but .* 40 positions"):
        score_task(Subject(model, tokenizer, load_template("plain", tokenizer), "c", 0, "d"), own)
