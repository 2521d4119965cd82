"""Step values on a tree that is worked by hand: the model is a table of what follows each prefix.

The wrong completion is "a\nb\nc\nd" (4 steps). Of four continuations are solved
    from ""  "a\n"  "a\nb\n"  "a\nb\nc\n"   (whole: wrong)
        4/4    2/4      1/4        1/4           0
so the first pit is the last step; with 0/4 after "a\nb\n" it is step 2, though step 3 then recovers.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe.sections import Pairing
from posttrain.rollouts.pairing import NoPair
from posttrain.rollouts.step_pairing import Continuation, cross_model, first_pit, pit, prefixes, value

WRONG = "a\nb\nc\nd"


def row(sample, text, success, reward=None, finish="stop", tokens=None):
    return {
        "position": 3,
        "sample": sample,
        "success": success,
        "reward": float(success) if reward is None else reward,
        "completion": text,
        "tokens": len(text) + 1 if tokens is None else tokens,
        "finish": finish,
    }


def tree(solved: dict[str, int], unjudged: int = 0, asked: list | None = None, rewards=None):
    """Of k continuations of a prefix `unjudged` have no verdict, the next solved[prefix] are right."""

    def continue_from(completion, starts, k):
        found = []
        for start in starts:
            if asked is not None:
                asked.append(start)
            right = solved[start]
            verdicts = [*[None] * unjudged, *[True] * right, *[False] * k][:k]
            found.append(
                [
                    Continuation(
                        f"<{start.count(chr(10))}.{i}>", True, v, rewards[i] if rewards else v and float(v)
                    )
                    for i, v in enumerate(verdicts)
                ]
            )
        return found

    return continue_from


def one(strategy, rows, continue_from, **options):
    given = Pairing(strategy=strategy.__name__, continuations=4, **options)
    (pair,) = strategy(rows, given, 0, continue_from, len)
    return pair


def why(strategy, rows, continue_from, **options):
    with pytest.raises(NoPair) as caught:
        one(strategy, rows, continue_from, **options)
    return caught.value.reason


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a\nb", ["a\n", "a\nb"]),
        ("a\nb\n", ["a\n", "a\nb\n"]),  # no step after the last delimiter
        ("a\n\n\nb", ["a\n\n\n", "a\n\n\nb"]),  # blank lines belong to the step before
        ("\n\na\nb", ["\n\na\n", "\n\na\nb"]),
        ("a", ["a"]),
        ("", [""]),
        ("a\n \n", ["a\n \n"]),
    ],
)
def test_steps_of_a_text(text, steps):
    assert prefixes(text, "\n") == steps


@given(st.text("ab\n ", max_size=30), st.sampled_from(["\n", "\n\n", "ab"]))
def test_prefixes_grow_by_something_visible(text, delimiter):
    found = prefixes(text, delimiter)
    assert found[-1] == text
    for before, after in zip(found, found[1:], strict=False):
        assert after.startswith(before) and after[len(before) :].strip()
        assert delimiter in before
    visible = [p for p in text.split(delimiter) if p.strip()]
    if delimiter.isspace():
        assert len(found) == max(1, len(visible))


def test_values_and_the_first_pit():
    said = [Continuation("", True, v, 0.0) for v in (True, None, False, None, True)]
    assert value(said) == 2 / 3 and value(said[1:2]) is None and value([]) is None
    assert pit([0.5, 0.25, 0.25, 0.5]) == 1
    assert pit([None, 0.5, 0.0, None, 0.0]) == 2
    assert pit([0.0]) == 0


def test_first_pit_by_hand():
    rows = [row(0, "right", True), row(1, WRONG, False)]
    asked: list[str] = []
    pair = one(first_pit, rows, tree({"a\n": 2, "a\nb\n": 0, "a\nb\nc\n": 1}, asked=asked))
    assert asked == ["a\n", "a\nb\n", "a\nb\nc\n"]  # the whole one is known to be wrong
    assert (pair.chosen.text, pair.chosen.is_prefix) == ("right", False)
    assert (pair.rejected.text, pair.rejected.is_prefix) == ("a\nb\n", True)
    assert (pair.rejected.tokens, pair.rejected.sample, pair.rejected.reward) == (4, 1, 0.0)
    # no step before the end is hopeless: the last one is the pit, and the completion is whole
    pair = one(first_pit, rows, tree({"a\n": 2, "a\nb\n": 1, "a\nb\nc\n": 1}))
    assert (pair.rejected.text, pair.rejected.is_prefix) == (WRONG, False)
    assert pair.rejected.tokens == len(WRONG) + 1
    # equal values: the first
    pair = one(first_pit, rows, tree({"a\n": 0, "a\nb\n": 0, "a\nb\nc\n": 0}))
    assert pair.rejected.text == "a\n"


def test_continuations_without_a_verdict_say_nothing():
    rows = [row(0, "right", True), row(1, WRONG, False)]
    pair = one(first_pit, rows, tree(dict.fromkeys(("a\n", "a\nb\n", "a\nb\nc\n"), 0), unjudged=4))
    assert pair.rejected.text == WRONG  # nothing is known of the steps: not a pit
    pair = one(first_pit, rows, tree({"a\n": 1, "a\nb\n": 0, "a\nb\nc\n": 1}, unjudged=3))
    assert pair.rejected.text == "a\nb\n"


def test_the_chosen_one_does_not_begin_with_the_pit():
    values = {"a\n": 0, "a\nb\n": 1, "a\nb\nc\n": 1}
    shared, other = row(0, "a\nx", True), row(2, "y", True)
    assert why(first_pit, [shared, row(1, WRONG, False)], tree(values)) == "same_text"
    for sample in range(3, 9):  # whatever the lot of the shared one
        rows = [shared | {"sample": sample}, row(1, WRONG, False), other]
        assert one(first_pit, rows, tree(values)).chosen.text == "y"


def test_first_pit_without_steps_or_partners():
    assert one(first_pit, [row(0, "r", True), row(1, "w", False)], tree({})).rejected.text == "w"
    cut = one(first_pit, [row(0, "r", True), row(1, "w", False, finish="length")], tree({}))
    assert cut.rejected.is_prefix
    assert why(first_pit, [row(0, "r", True), row(1, "s", True)], tree({})) == "all_right"
    assert why(first_pit, [row(0, "r", False), row(1, "s", False)], tree({})) == "all_wrong"
    rows = [row(0, "r", True, 0.4), row(1, "w", False, 0.2)]
    assert why(first_pit, rows, tree({}), min_gap=0.5) == "gap_too_small"


def test_the_teacher_corrects_from_the_step_before_the_pit():
    rows = [row(0, WRONG, False), row(1, "z", False)]
    rows[1]["completion"] = ""  # blank: only the first can be corrected
    asked: list[str] = []
    values = {"": 4, "a\n": 2, "a\nb\n": 0, "a\nb\nc\n": 0}
    pair = one(cross_model, rows, tree(values, asked=asked))
    assert asked == ["", "a\n", "a\nb\n", "a\nb\nc\n"]
    assert pair.chosen.text == "a\n<1.0>"  # good up to step 1, then the teacher's
    assert (pair.chosen.tokens, pair.chosen.sample, pair.chosen.reward) == (8, None, 1.0)
    assert (pair.rejected.text, pair.rejected.sample) == (WRONG, 0)
    assert not pair.chosen.is_prefix and not pair.rejected.is_prefix
    # wrong from the first step on: the teacher answers the bare prompt
    pair = one(cross_model, rows, tree({"": 1, "a\n": 0, "a\nb\n": 0, "a\nb\nc\n": 0}))
    assert pair.chosen.text == "<0.0>"
    # the last step only: everything before it stands
    pair = one(cross_model, rows, tree({"": 4, "a\n": 4, "a\nb\n": 4, "a\nb\nc\n": 3}))
    assert pair.chosen.text == "a\nb\nc\n<3.0>"


def test_no_correction():
    rows = [row(0, WRONG, False), row(1, "z", True)]
    nothing = dict.fromkeys(("", "a\n", "a\nb\n", "a\nb\nc\n"), 0)
    assert why(cross_model, rows, tree(nothing)) == "no_correction"
    assert why(cross_model, [row(0, "y", True), row(1, "z", True)], tree({})) == "all_right"

    def never_ends(completion, starts, k):
        return [[Continuation("x", False, True, 1.0)] * k for _ in starts]

    assert why(cross_model, rows, never_ends) == "no_correction"
    some = {"": 4, "a\n": 2, "a\nb\n": 0, "a\nb\nc\n": 0}
    low = tree(some, rewards=[0.2, 0.3, 0.0, 0.0])
    assert why(cross_model, rows, low, min_gap=0.5) == "gap_too_small"
    assert one(cross_model, rows, low, min_gap=0.3).chosen.text == "a\n<1.1>"
    unknown = tree(some, rewards=[None, 0.3, 0.0, 0.0])  # a shaping term failed: no reward, no side
    assert one(cross_model, rows, unknown).chosen.text == "a\n<1.1>"

    def same_again(completion, starts, k):  # a judge that changes its mind
        return [[Continuation(WRONG[len(start) :], True, True, 1.0)] for start in starts]

    assert why(cross_model, rows, same_again) == "no_correction"

    def silent(completion, starts, k):  # solved by saying nothing: no reply to learn from
        return [[Continuation("", True, not start, 1.0)] for start in starts]

    assert why(cross_model, rows, silent) == "no_correction"


def test_the_correction_nearest_in_length():
    def continue_from(completion, starts, k):
        texts = ["x" * 20, "yy", "z" * 9]
        return [[Continuation(t, True, i == 0, 1.0) for t in texts] for i, _ in enumerate(starts)]

    rows = [row(0, "a\nbcde", False), row(1, "z", True)]  # 7 tokens; the pit is step 1
    assert one(cross_model, rows, continue_from).chosen.text == "x" * 20
    near = one(cross_model, rows, continue_from, prefer_length="closest")
    assert near.chosen.text == "z" * 9  # 10 tokens against 3 and 21
