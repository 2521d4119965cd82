"""Languages: the same verdict every time, paragraph by paragraph, code and formulas left out."""

from __future__ import annotations

import pytest

pytest.importorskip("langdetect")

from posttrain.errors import RequestError
from posttrain.rewards import bind
from posttrain.rewards.simple.language import _pieces, language
from posttrain.types import Example

EN = "The children are playing in the garden behind the old house."
DE = "Die Kinder spielen im Garten hinter dem alten Haus und lachen laut."
IT = "I bambini giocano nel giardino dietro la vecchia casa e ridono forte."
ROW = Example()


@pytest.mark.parametrize(("text", "code"), [(EN, "en"), (DE, "de"), (IT, "it")])
def test_each_is_its_own_language_and_no_other(text, code):
    for other in ("en", "de", "it", "fr"):
        assert language(text, ROW, other).value == (code == other)


def test_the_verdict_is_the_same_every_time():
    unsure = "Hotel Taxi Radio Video Auto"  # es or it, about half and half, without a seed
    assert len({str(language(unsure, ROW).details) for _ in range(20)}) == 1


def test_every_paragraph_counts_by_its_letters():
    verdict = language(f"{DE}\n\n{EN}", ROW, "de")
    letters = {"de": sum(map(str.isalpha, DE)), "en": sum(map(str.isalpha, EN))}
    assert verdict.value == 0 and verdict.details["letters"] == letters
    assert language(f"{DE}\n\n{EN}", ROW, "de", share=0.5).value == 1
    assert language(f"{DE}\n\n{EN}", ROW, "de", share=0.6).value == 0


def test_what_is_no_prose_does_not_count():
    for other in (f"```\n{EN}\n```", f"`{EN}`", f"$${EN}$$", f"<think>{EN}</think>"):
        assert language(f"{other}\n{DE}", ROW, "de").value == 1, other


def test_pieces():
    assert _pieces("ab\ncdef\nx", 3) == ["ab cdef x"]
    assert _pieces("abc\ndef\ng", 3) == ["abc", "def g"]
    assert _pieces("a\nb", 3) == []
    assert len(_pieces("abc\n" * 1000, 3)) == 200
    assert [len(p) for p in _pieces("a" * 2500, 3)] == [1000, 1000, 500]


def test_too_little_to_tell():
    for text in ("", "Ja.", "1 + 1 = 2", f"<think>{DE}"):
        assert language(text, ROW, "de").status == "unparseable"
    assert language("Ja.", ROW, "de", at_least_letters=2).status == "scored"


def test_unknown_languages_are_refused_early():
    with pytest.raises(RequestError, match="reward 'language': language = 'english' cannot be detected"):
        bind("language", {"language": "english"}).check_row(ROW)
    with pytest.raises(RequestError, match="column 'language': 'xx' cannot be detected"):
        bind("language").check_row(Example(extra={"language": "xx"}))
    for code in ("en", "zh", "zh-cn"):
        bind("language", {"language": code}).check_row(ROW)
