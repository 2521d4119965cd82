"""Sentences and tokens: what the official tokenizers do in worked cases, and what is true of any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.instructions.layout import _bullet_lines
from posttrain.rewards.instructions.marks import _without_some
from posttrain.rewards.instructions.sentences import sentences
from posttrain.rewards.instructions.words import bare_words, tokens, word_count, word_tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Go. Stay! Why? Yes", ["Go.", "Stay!", "Why?", "Yes"]),
        ("Dr. Lee met Mr. Fox on Jan. 5.", ["Dr. Lee met Mr. Fox on Jan. 5."]),
        ("It is 5 p.m. on it.", ["It is 5 p.m. on it."]),
        ("He left the U.S. He came back.", ["He left the U.S.", "He came back."]),
        ("The U.S. Army left.", ["The U.S. Army left."]),
        ("J. Smith wrote it.", ["J. Smith wrote it."]),
        ("Take plan B. The rest waits.", ["Take plan B.", "The rest waits."]),
        ("1. First\n2. Second", ["1.", "First\n2.", "Second"]),
        ("It cost 3.50 in 1999. then it rose.", ["It cost 3.50 in 1999. then it rose."]),
        ("Fruit, e.g. apples.", ["Fruit, e.g.", "apples."]),
        ("Wait... what? No.", ["Wait... what?", "No."]),
        ("Wait... The end.", ["Wait...", "The end."]),
        ('She said "Go." Then he went.', ['She said "Go."', "Then he went."]),
        ("(All is well.) Good.", ["(All is well.)", "Good."]),
        ("**Bold.** Next.", ["**Bold.", "** Next."]),
        ("Really?Yes.No", ["Really?Yes.No"]),
        ("One. I saw (dr.)(mr.) here", ["One.", "I saw (dr.)(mr.) here"]),
        ("What?! Why", ["What?!", "Why"]),
        ("  Hi.  ", ["  Hi."]),
        ("", []),
        (" \n", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@given(st.text(alphabet="aB1.?!\"') \n", max_size=30))
def test_sentences_hold_the_text_in_order_and_leave_out_only_space(text):
    at = 0
    for one in sentences(text):
        begin = text.index(one, at)
        assert one and not text[at:begin].strip()
        at = begin + len(one)
    assert not text[at:].strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I can't go.", "I ca n't go ."),
        ("It's DON'T, I'M, he'd", "It 's DO N'T , I 'M , he 'd"),
        ('"Go," he\'ll say; I\'ve "it"', "`` Go , '' he 'll say ; I 've `` it ''"),
        ('He said "no".', "He said `` no '' ."),
        ("(NASA) paid $3.50, 50%", "( NASA ) paid $ 3.50 , 50 %"),
        ("The U.S. is big. It is.", "The U.S. is big . It is ."),
        ("Wait... what?! -- yes", "Wait ... what ? ! -- yes"),
        ("You cannot; we gonna: 3,000 at 5:30", "You can not ; we gon na : 3,000 at 5:30"),
        ("'Tis a *bold* state-of-the-art", "' T is a * bold * state-of-the-art".replace("T is", "Tis")),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected.split()


def test_words():
    assert word_count("don't stop_it: 3.5 caf\u00e9s") == 6
    assert bare_words("Don't stop!") == ["dont", "stop"]
    assert word_tokens("Yes, -- 3!") == ["Yes", "3"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("* a\n- b\n  * c", 3),
        ("** a\n**b**", 0),
        ("*\n* b", 1),
        ("* a\n*", 1),
        ("---", 1),
        ("\n\n * a", 1),
        ("a * b - c", 0),
    ],
)
def test_bullet_lines_are_those_of_the_official_pattern(text, count):
    assert _bullet_lines(text) == count


@given(st.lists(st.sampled_from(["", " ", "a", " a", "  b"]), max_size=9))
def test_the_lines_that_deleting_in_a_loop_leaves(lines):
    left = list(lines)
    for line in left:
        if not line.strip():
            left.remove(line)
    assert _without_some("\n".join(lines)) == (left if lines else [])
