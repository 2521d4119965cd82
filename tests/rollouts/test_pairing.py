"""Pairs from a group: which two, why none, in any order; and the file is read back as it was sampled."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.shapes.pairs import to_pair
from posttrain.data.template import load_template
from posttrain.data.tokenize import conversation, tokenize_example
from posttrain.data.tokenizers import load_tokenizer
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.recipe.sections import Pairing
from posttrain.rollouts.pairing import STRATEGIES, NoPair, Pair, Side, pair_row, text_of
from posttrain.types import Example


def row(sample, reward=0.0, success=None, text=None, tokens=5, finish="stop", position=0):
    success = reward is not None and reward >= 1 if success is None else success
    return {
        "position": position,
        "sample": sample,
        "reward": reward,
        "success": success,
        "tokens": tokens,
        "finish": finish,
        "completion": f"reply {sample}" if text is None else text,
        "source": "s",
        "row": 7,
        "where": "f:8",
    }


def rewarded(*rewards, **more):
    return [row(i, reward, **more) for i, reward in enumerate(rewards)]


def judged(truths, position=0):
    return [row(i, float(t), t, position=position) for i, t in enumerate(truths)]


def pairs(strategy, rows, seed=0, **options):
    made = STRATEGIES[strategy](rows, Pairing(**options), seed)
    return [(pair.chosen.sample, pair.rejected.sample) for pair in made]


def reason(strategy, rows, **options):
    with pytest.raises(NoPair) as caught:
        pairs(strategy, rows, **options)
    return caught.value.reason


def test_best_and_worst_by_hand():
    assert pairs("best_worst", rewarded(0.2, 1.0, 0.5, 0.0)) == [(1, 3)]
    assert pairs("best_worst", rewarded(-1.0, -0.5)) == [(1, 0)]
    # a random lower one: never the best itself, never an equal one
    seen = {pairs("best_random", rewarded(0.2, 1.0, 0.5, 1.0), seed)[0] for seed in range(200)}
    assert seen == {(1, 0), (1, 2), (3, 0), (3, 2)}


def test_right_against_wrong_in_pairs_without_a_common_completion():
    rows = judged([True, False, True, False, False])
    made = pairs("correct_incorrect", rows, per_prompt=5)
    assert len(made) == 2 and {c for c, _ in made} == {0, 2}  # two are right: two pairs
    assert len({r for _, r in made} & {1, 3, 4}) == 2
    assert pairs("correct_incorrect", rows, per_prompt=1) == made[:1]  # more pairs keep the first


def test_a_right_answer_may_cost_more_than_a_wrong_one():
    """By success, not by reward: a penalty for length must not turn a pair round."""
    rows = [row(0, -0.5, True), row(1, 0.2, False)]
    assert pairs("correct_incorrect", rows) == [(0, 1)]
    assert pairs("best_worst", rows) == [(1, 0)]
    assert reason("correct_incorrect", rows, min_gap=0.1) == "gap_too_small"


@pytest.mark.parametrize(
    ("strategy", "rows", "why"),
    [
        ("best_worst", rewarded(1.0), "too_few"),
        ("best_worst", rewarded(1.0, None, None), "unjudged"),
        ("best_random", rewarded(0.5, 0.5, None), "all_equal"),
        ("best_worst", rewarded(0.1 + 0.2, 0.3), "all_equal"),  # 0.30000000000000004: a rounding
        ("best_worst", [row(0, 1.0, finish="length"), row(1, 0.0)], "cut_off"),
        ("best_worst", [row(0, 1.0), row(1, 0.0, text=" \n")], "blank"),
        ("best_worst", [row(0, 1.0, text="x"), row(1, 0.0, text=" x\n")], "same_text"),
        ("correct_incorrect", judged([True]), "too_few"),
        ("correct_incorrect", judged([True, True]), "all_right"),
        ("correct_incorrect", judged([False, False]), "all_wrong"),
        ("correct_incorrect", [row(0, None), row(1, 1.0), row(2, None)], "unjudged"),
        ("correct_incorrect", [row(0, 1.0, finish="length"), row(1, 0.0)], "cut_off"),
        ("correct_incorrect", [row(0, 1.0), row(1, 0.0, text="")], "blank"),
        ("correct_incorrect", [row(0, 1.0, text="x"), row(1, 0.0, text="x ")], "same_text"),
    ],
)
def test_why_there_is_no_pair(strategy, rows, why):
    assert reason(strategy, rows) == why


def test_a_failed_check_takes_no_part():
    """A null is neither a low reward nor a wrong answer."""
    rows = rewarded(None, 0.4, 0.6, None)
    assert pairs("best_worst", rows) == [(2, 1)]
    half = row(0, 0.9)
    half["success"] = None  # the verifier failed, a shaping term did not
    assert pairs("best_worst", [half, row(1, 0.2), row(2, 0.8)]) == [(2, 1)]


def test_the_gap():
    assert reason("best_worst", rewarded(0.3, 0.6), min_gap=0.5) == "gap_too_small"
    assert pairs("best_worst", rewarded(1.0, 0.9), min_gap=0.1) == [(0, 1)]  # 1 - 0.9 < 0.1 in fp64
    assert {pairs("best_random", rewarded(0.0, 0.6, 1.0), s, min_gap=0.5)[0] for s in range(50)} == {(2, 0)}


def test_the_nearest_length():
    rows = [row(0, 1.0, tokens=20), row(1, tokens=90), row(2, tokens=23), row(3, tokens=2)]
    for strategy in ("best_worst", "best_random", "correct_incorrect"):
        assert {pairs(strategy, rows, s, prefer_length="closest")[0] for s in range(20)} == {(0, 2)}
        assert len({pairs(strategy, rows, s)[0] for s in range(40)}) == 3
    uneven = [row(0, 1.0, tokens=20), row(1, 0.0, tokens=90), row(2, 0.5, tokens=20)]
    assert pairs("best_worst", uneven, prefer_length="closest") == [(0, 1)]  # the worst comes first


def test_cut_off_is_never_chosen_and_a_prefix_where_rejected():
    rows = [row(0, 2.0, finish="length"), row(1, 1.0), row(2, 0.0, finish="length")]
    (pair,) = STRATEGIES["best_worst"](rows, Pairing(), 0)
    assert (pair.chosen.sample, pair.rejected.sample) == (1, 2)
    assert pair.rejected.is_prefix and not pair.chosen.is_prefix


def test_a_text_stands_in_one_pair_only():
    rows = [row(i, float(i < 6), text="right" if i < 6 else "wrong") for i in range(8)]
    assert len(pairs("correct_incorrect", rows, per_prompt=4)) == 1
    # ... and is drawn as often as it was sampled: 6 of 8 wrong ones are "a", so are about 75 % of the first
    # pairs
    drawn = Counter()
    for position in range(400):
        group = [row(0, 1.0, position=position)]
        group += [row(i, text="a" if i < 7 else f"b{i}", position=position) for i in range(1, 9)]
        (pair,) = STRATEGIES["correct_incorrect"](group, Pairing(), 3)
        drawn[pair.rejected.text[0]] += 1
    assert 270 <= drawn["a"] <= 330  # mean 300, sd 8.7


def test_lots_are_fair_and_belong_to_the_seed_and_the_prompt():
    tied = [rewarded(1.0, 1.0, 1.0, 1.0, 0.0, position=p) for p in range(400)]
    first = [pairs("best_worst", rows)[0][0] for rows in tied]
    counts = Counter(first)
    assert set(counts) == {0, 1, 2, 3} and all(70 <= n <= 130 for n in counts.values())
    assert first == [pairs("best_worst", rows)[0][0] for rows in tied]
    assert first != [pairs("best_worst", rows, seed=1)[0][0] for rows in tied]


TEXTS = ["", " ", "a", "a ", "b", "c", "dd", "\n\nHuman: x", "e"]


@st.composite
def groups(draw):
    """Groups in which equal texts have equal verdicts, as deterministic checkers give them."""
    verdict = {
        t.strip(): (draw(st.sampled_from([None, 0.0, 0.5, 1.0])), draw(st.sampled_from([None, True, False])))
        for t in TEXTS
    }
    chosen = draw(st.lists(st.sampled_from(TEXTS), max_size=8))
    found = []
    for i, text in enumerate(chosen):
        reward, success = verdict[text.strip()]
        made = row(
            i,
            reward,
            text=text,
            tokens=draw(st.integers(1, 9)),
            finish=draw(st.sampled_from(["stop", "stop", "length"])),
        )
        found.append(made | {"success": success})
    return found


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    groups(),
    st.sampled_from(sorted(STRATEGIES)),
    st.integers(0, 9),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.6]),
    st.sampled_from(["none", "closest"]),
    st.randoms(),
)
def test_every_pair_keeps_the_rules_and_none_is_missed(rows, strategy, seed, most, least, length, shuffler):
    options = Pairing(per_prompt=most, min_gap=least, prefer_length=length)
    by_success = strategy == "correct_incorrect"

    def make(rows):
        try:
            return STRATEGIES[strategy](rows, options, seed)
        except NoPair as error:
            return error.reason

    made = make(rows)
    shuffler.shuffle(shuffled := list(rows))
    assert make(shuffled) == made

    known = [r for r in rows if None not in (r["reward"], r["success"]) and r["completion"].strip()]
    ended = [r for r in known if r["finish"] == "stop"]
    top = max((r["reward"] for r in ended), default=0)
    good = [r for r in ended if (r["success"] if by_success else r["reward"] == top)]
    possible = [
        (a, b)
        for a in good
        for b in known
        if (not b["success"] if by_success else b["reward"] < a["reward"])
        and text_of(a) != text_of(b)
        and (least == 0 or a["reward"] - b["reward"] >= least)
    ]
    if isinstance(made, str):
        assert not possible
        return
    allowed = {(a["sample"], b["sample"]) for a, b in possible}
    assert 1 <= len(made) <= (most if by_success else 1)
    assert {(p.chosen.sample, p.rejected.sample) for p in made} <= allowed
    texts = [s.text.strip() for p in made for s in (p.chosen, p.rejected)]
    assert len(set(texts)) == 2 * len(made)
    if strategy == "best_worst":
        assert made[0].rejected.reward == min(b["reward"] for _, b in possible)


# ---- the file
# ------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6*7?"}]


def line(prompt, chosen="42", rejected="41", **more):
    pair = Pair(Side(chosen, 3, 1.0, 0), Side(rejected, 4, 0.25, 5, **more))
    asked = Example(prompt=prompt) if isinstance(prompt, str) else Example(messages=prompt)
    made = pair_row(pair, asked, row(9), "best_worst", "runs/a/checkpoints/step-000010")
    return json.loads(json.dumps(made, ensure_ascii=False))


def test_a_row_by_hand():
    assert line("6*7?") == {
        "prompt": "6*7?",
        "chosen": "42",
        "rejected": "41",
        "chosen_reward": 1.0,
        "rejected_reward": 0.25,
        "chosen_tokens": 3,
        "rejected_tokens": 4,
        "strategy": "best_worst",
        "source": "s",
        "row": 7,
        "where": "f:8",
        "checkpoint": "runs/a/checkpoints/step-000010",
        "chosen_sample": 0,
        "rejected_sample": 5,
    }
    assert line(MESSAGES)["chosen"] == [{"role": "assistant", "content": "42"}]
    assert line("6*7?", is_prefix=True)["rejected_is_prefix"] is True


@pytest.mark.parametrize("style", ["chatml", "llama3", "tulu", "plain"])
@pytest.mark.parametrize("reply", ["42", "\n\nHuman: no", "\n\nAssistant: a\n\nHuman: b"])
@pytest.mark.parametrize("prompt", ["6*7?", MESSAGES, "\n\nHuman: hm\n\nAssistant:"])
def test_training_sees_the_prompt_that_was_sampled_from(style, prompt, reply):
    tokenizer = load_tokenizer("builtin:bytes")
    template = load_template(style, tokenizer)
    asked = Example(prompt=prompt) if isinstance(prompt, str) else Example(messages=prompt)
    text = template.render(conversation(asked), add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    source = Source(name="made", path="pairs.jsonl")
    data = Data([source], template=style, train_on="last", max_length=4096)
    sides = to_pair(line(prompt, chosen="43", rejected=reply), source, "pairs.jsonl:1")
    for side, said in zip(sides, ("43", reply), strict=True):
        got = tokenize_example(side, tokenizer, data, Loss())
        start = int(np.flatnonzero(got.labels >= 0)[0])
        assert got.input_ids[:start].tolist() == ids
        assert said.strip() in tokenizer.decode(got.input_ids[start:])


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1), st.text(), st.text())
def test_any_text_reads_back(prompt, chosen, rejected):
    """What is paired at all (two replies, neither blank) comes back letter by letter."""
    if not prompt.strip() or not chosen.strip() or not rejected.strip():
        return
    if chosen.strip() == rejected.strip():
        return
    sides = to_pair(line(prompt, chosen, rejected), Source(name="made", path="p"), "p:1")
    for got, said in zip(sides, (chosen, rejected), strict=True):
        assert [m["content"] for m in conversation(got)] == [prompt, said]
