"""IFEval: lengths in words, sentences and paragraphs (Zhou et al. 2023, arXiv 2311.07911)."""

from __future__ import annotations

import re

from posttrain.rewards.instructions.sentences import sentences
from posttrain.rewards.instructions.table import Relation, compare, exactly, instruction, unless
from posttrain.rewards.instructions.words import word_count

DIVIDER = re.compile(r"\s?\*\*\*\s?")
DIVIDER_LINE = re.compile(r"^[ \t]*\*{3}[ \t]*$", re.MULTILINE)
LIST_NUMBER = re.compile(r"(?:\d+|[A-Za-z])[.)]")
STOPS = re.compile(r"[.,?!'\"]")


@instruction("length_constraints:number_words")
def number_words(text: str, num_words: int, relation: Relation) -> str:
    r"""Words are runs of `\w`: `don't` is two."""
    return compare(word_count(text), relation, num_words, "words")


@instruction("length_constraints:number_sentences")
def number_sentences(text: str, num_sentences: int, relation: Relation, fixed: bool) -> str:
    """`fixed`: a text without letters, or a list number alone (`1.`), is not a sentence."""
    found = sentences(text)
    if fixed:
        found = [one for one in found if not LIST_NUMBER.fullmatch(one) and re.search(r"\w", one)]
    return compare(len(found), relation, num_sentences, "sentences")


@instruction("length_constraints:number_paragraphs")
def number_paragraphs(text: str, num_paragraphs: int, fixed: bool) -> str:
    """Paragraphs are divided by `***`; `fixed`: on its own line."""
    parts = [one.strip() for one in (DIVIDER_LINE if fixed else DIVIDER).split(text)]
    if any(not one for one in parts[1:-1]):
        return "an empty paragraph between two dividers"
    return exactly(sum(1 for one in parts if one), num_paragraphs, "paragraphs")


@instruction("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str, fixed: bool
) -> str:
    """Paragraphs are divided by blank lines; the n-th begins with a word.

    `compat` counts the paragraphs without the empty ones, but takes the n-th of the list with them, and
    compares with the word as given; `fixed` ignores empty ones in both.
    """
    every = text.split("\n\n")
    filled = [one for one in every if one.strip()]
    if len(filled) != num_paragraphs:
        return exactly(len(filled), num_paragraphs, "paragraphs")
    if not 1 <= nth_paragraph <= len(filled):
        return f"no paragraph {nth_paragraph}"
    paragraph = (filled if fixed else every)[nth_paragraph - 1].strip()
    if not paragraph:
        return f"paragraph {nth_paragraph} is empty"
    word = paragraph.split(maxsplit=1)[0].lstrip("*_#(\u201c\u2018\"'") if fixed else None
    if word is None:
        word = paragraph.split(maxsplit=1)[0].lstrip("'").lstrip('"')
    word = STOPS.split(word, maxsplit=1)[0].lower()
    if fixed:
        word = re.match(r"\w*(?:-\w+)*", word)[0]
    wanted = first_word.strip() if fixed else first_word
    return unless(word == wanted.lower(), f"paragraph {nth_paragraph} begins with {word!r}, not {wanted!r}")
