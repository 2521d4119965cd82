"""What a reader sees of a completion: after the thinking, the last box, the marked answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.simple.visible import boxed, stated, visible


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a", "a"),
        ("<think>a</think> b ", "b"),
        ("a</think>b", "b"),  # the prompt opened the block
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a", None),
        ("<think>a</think>b<think>c", None),
        ("", ""),
    ],
)
def test_visible(text, seen):
    assert visible(text) == seen


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\fbox{ 4 }", "4"),
        (r"\boxed {5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed 6", None),
        (r"boxed{7}", None),
    ],
)
def test_boxed(text, inside):
    assert boxed(text) == inside


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is 4.\nBye", "4."),
        ("Answer: 4", "4"),
        ("**Answer:** 4", "4"),
        ("answer is 3. No, the answer is 4", "4"),
        (r"Answer: 3, that is \boxed{4}", "4"),
        ("1 + 3\n#### 4", "4"),
        ("the answers are 4", None),
        ("4", None),
    ],
)
def test_stated(text, answer):
    assert stated(text) == answer


@given(st.text("\\boxed{} a<think>/answer:is#", max_size=60))
def test_nothing_raises_and_a_box_is_part_of_its_text(text):
    seen = visible(text)
    assert seen is None or (seen in text and "</think>" not in seen)
    inside = boxed(text)
    assert inside is None or inside in text
    stated(text)


@pytest.mark.slow
def test_the_time_is_linear():
    began = time.perf_counter()
    for text in ("\\boxed{" * 300_000, "answer is " * 200_000, "<think>" * 400_000, "\\" * 2_000_000):
        visible(text), boxed(text), stated(text)
    assert time.perf_counter() - began < 10
