"""Text that stays text on a terminal and on a page."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from posttrain.base.printable import UNSAFE, printable
from posttrain.report.text import both_ends

MOVES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
ANY = st.characters(exclude_categories=())
"""Halves of surrogate pairs too, which JSON can spell."""


@given(st.text(ANY, max_size=40))
def test_printable_moves_nothing_and_can_be_encoded(text):
    safe = printable(text)
    assert not MOVES.search(safe.replace("\t", "")) and printable(safe) == safe
    safe.encode("utf-8")
    if not UNSAFE.search(text):
        assert safe == text


def test_printable_by_hand():
    assert printable("a\x1b[31mb\r\nc\rd\x9b2J\u202eR\ud800") == "a\\x1b[31mb\nc\\x0dd\\x9b2J\\u202eR\\ud800"
    assert printable("é 漢 👩\u200d🚀\tx") == "é 漢 👩\u200d🚀\tx"
    assert both_ends("abcdefghij", 10) == "abcdefghij"
    assert both_ends("abcdefghijk", 6) == "abcd\n[… 5 more characters …]\njk"
