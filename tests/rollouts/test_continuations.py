"""What goes on from a prefix: from which ids, on which random stream, and what is judged. No model."""

from __future__ import annotations

import pytest

from posttrain.data.shapes.prompts import Asked
from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.generation.base import Completion
from posttrain.recipe.sections import Rollout
from posttrain.rewards.compose import Graded
from posttrain.rollouts.continuations import Continuer
from posttrain.rollouts.groups import Prompt
from posttrain.rollouts.step_pairing import Continuation

PREFIXES = ["", "a\n", "a\nbé\n"]
ROW = {"position": 5, "sample": 2}


class Echo:
    """Continuation j of any prefix says `<j>` and, where j is even, ends with "." as its end token."""

    positions = None

    def __init__(self, tokenizer) -> None:
        self.ids = {
            j: tokenizer(f"<{j}>." if j % 2 == 0 else f"<{j}>", add_special_tokens=False)["input_ids"]
            for j in range(9)
        }
        self.prompts, self.streams, self.settings = [], [], []

    def generate(self, prompts, n, sampling, seed, streams):
        self.prompts += prompts
        self.streams += streams
        self.settings.append((n, sampling.temperature, sampling.max_new_tokens, seed))
        return [
            Completion(i, j, "not read", self.ids[j], *(("length",) if j % 2 else ("stop", None, 1)))
            for i in range(len(prompts))
            for j in range(n)
        ]


class FakeRewards:
    """Solved where the text has an even length; the check of continuation 1 fails."""

    def __init__(self) -> None:
        self.seen = []

    def grade(self, texts, rows, deadline=None):
        assert {row.answer for row in rows} == {"42"} and deadline == 7.0
        self.seen += texts
        return [Graded(None, None) if "<1>" in t else Graded(0.5 * len(t), len(t) % 2 == 0) for t in texts]


@pytest.fixture
def made():
    tokenizer = load_tokenizer("builtin:bytes")
    template = load_template("chatml", tokenizer)
    rollout = Rollout(temperature=0.7, max_new_tokens=9, deadline=7.0)
    told = []
    continuer = Continuer(
        Echo(tokenizer), tokenizer, template, FakeRewards(), rollout, 11, lambda *seen: told.append(seen)
    )
    return continuer, told


def prompt(asked="6*7?"):
    return Prompt(5, "s", 0, [1, 2], Asked("f:1", asked, {"answer": "42", "prompt": "6*7?"}))


def test_ids_texts_and_verdicts(made):
    continuer, told = made
    tokenizer = continuer.tokenizer
    found = continuer.of(prompt())(ROW, PREFIXES, 3)
    start = "<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n"
    asked = [tokenizer(start + p, add_special_tokens=False)["input_ids"] for p in PREFIXES]
    assert continuer.generator.prompts == asked  # of bytes: two parts are as one
    assert continuer.generator.settings == [(3, 0.7, 9, 11)]
    texts = [f"{p}<{j}>" for p in PREFIXES for j in range(3)]  # without the end token
    assert continuer.rewards.seen == texts
    assert found == [
        [
            Continuation("<0>", True, len(p) % 2 == 1, (len(p) + 3) / 2),
            Continuation("<1>", False, None, None),
            Continuation("<2>", True, len(p) % 2 == 1, (len(p) + 3) / 2),
        ]
        for p in PREFIXES
    ]
    assert told == [(9, 3)]
    assert continuer.count("é") == 2


def test_messages_are_asked_as_messages(made):
    continuer, _ = made
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    continuer.of(prompt(talk))(ROW, [""], 1)
    text = continuer.tokenizer.decode(continuer.generator.prompts[0])
    assert text == continuer.template.render(talk, add_generation_prompt=True)


def test_each_prefix_has_a_stream_of_its_own_that_stays(made):
    continuer, _ = made
    go_on = continuer.of(prompt())
    go_on(ROW, PREFIXES, 1)
    go_on(ROW, PREFIXES[:2], 1)
    go_on(ROW | {"sample": 3}, PREFIXES, 1)
    go_on(ROW | {"position": 6}, PREFIXES, 1)
    streams = continuer.generator.streams
    assert streams[3:5] == streams[:2] and len(set(streams)) == 9
    assert all(2**32 < s < 2**63 for s in streams)  # of no prompt, and an int64


def test_a_prefix_that_fills_the_model_has_no_continuation(made):
    continuer, _ = made
    text = continuer.template.render([{"role": "user", "content": "6*7?"}], True)
    longest_last = continuer.of(prompt())(ROW, PREFIXES, 2)
    continuer.positions = len(continuer.tokenizer(text, add_special_tokens=False)["input_ids"]) + 3
    found = continuer.of(prompt())(ROW, PREFIXES, 2)
    assert [len(each) for each in found] == [2, 2, 0]  # 0 and 2 tokens fit below 3, 6 do not
    assert found[:2] == longest_last[:2]
    found = continuer.of(prompt())(ROW, ["abcdef", *PREFIXES[:2]], 2)
    assert [len(each) for each in found] == [0, 2, 2]
    assert continuer.rewards.seen[-4:] == ["<0>", "<1>", "a\n<0>", "a\n<1>"]
    streams = continuer.generator.streams
    assert streams[3:5] == streams[:2] and streams[5:7] == streams[1:3]


def test_special_tokens_before_and_after_the_cut_are_text(made):
    """Completions that hold `<|im_start|>`, which is a special token, go on with it."""
    continuer, _ = made
    mark, tokenizer = "<|im_start|>", continuer.tokenizer
    ids = tokenizer(f"{mark}<0>{mark}.", add_special_tokens=False)["input_ids"]
    continuer.generator.ids = {0: ids, 1: ids[:-1]}
    ((ended, cut),) = continuer.of(prompt())(ROW, [f"a{mark}\n"], 2)
    assert ended.text == cut.text == f"{mark}<0>{mark}" and (ended.ended, cut.ended) == (True, False)
    assert continuer.rewards.seen == [f"a{mark}\n{mark}<0>{mark}"] * 2
    assert continuer.generator.prompts[0][-2:] == tokenizer(f"{mark}\n")["input_ids"]


def test_an_end_of_several_tokens_is_no_text(made):
    """All of it is left out, decoded behind the prefix."""
    continuer, tokenizer = made[0], made[0].tokenizer
    head, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("2 + 2 = ", "4<end>"))
    assert continuer._after(head, ids, 5) == "4"
