"""Patterns: the two ways to match, bans, rows with their own, and one that blows up in a worker."""

from __future__ import annotations

import pytest

from posttrain.errors import RequestError
from posttrain.rewards import bind
from posttrain.rewards.simple.regex import regex
from posttrain.types import Example

ROW = Example()


def own(pattern) -> Example:
    return Example(extra={"pattern": pattern})


def test_full_and_search():
    assert regex("abc", ROW, "b").value == 0
    assert regex("abc", ROW, "b", match="search").value == 1
    assert regex("abc", ROW, "a.c").value == 1
    assert regex("a\nc", ROW, "a.c").value == 1 and regex("a\nc", ROW, "a.c", dot_all=False).value == 0
    assert regex("ABC", ROW, "abc").value == 0 and regex("ABC", ROW, "abc", ignore_case=True).value == 1


def test_a_ban_is_not_kept_by_silence():
    assert regex("fine", ROW, "bad", match="search", forbid=True).value == 1
    assert regex("bad", ROW, "bad", match="search", forbid=True).value == 0
    for text in ("", "  ", "<think>fine"):
        assert regex(text, ROW, "bad", match="search", forbid=True).status == "unparseable"


def test_thinking_is_read_only_when_asked():
    text = "<think>bad</think>good"
    assert regex(text, ROW, "good").value == 1
    assert regex(text, ROW, "bad", match="search").value == 0
    assert regex(text, ROW, "bad", match="search", thinking=True).value == 1


def test_the_rows_pattern_goes_first():
    assert regex("x", own("x"), "y").value == 1
    assert regex("y", own("x"), "y").value == 0


def test_bad_patterns():
    broken, plain = bind("regex", {"pattern": "("}), bind("regex")
    with pytest.raises(RequestError, match=r"reward 'regex': pattern '\(' is not a regular expression"):
        broken.check_row(ROW)
    with pytest.raises(RequestError, match=r"column 'pattern': '\(' is not a regular expression"):
        plain.check_row(own("("))
    with pytest.raises(RequestError, match="column 'pattern' is int, not text"):
        plain.check_row(own(5))
    with pytest.raises(RequestError, match="set the option 'pattern'"):
        plain.check_row(ROW)
    broken.check_row(own("a"))  # the option is not used for this row
