r"""Words as the official checkers see them: runs of `\w`, and the tokens of the Penn Treebank.

`tokens` follows the rules of the Treebank tokenizer that nltk's `word_tokenize` applies to each sentence
(quotes, brackets, `n't`, `'s`, the final full stop). Left out: spans, and turning tokens back into text.
Linear in the text.
"""

from __future__ import annotations

import re
import string

from posttrain.rewards.instructions.sentences import sentences

WORD = re.compile(r"\w+")
PUNCTUATION = str.maketrans("", "", string.punctuation)
MARKS = string.punctuation + " "
BETWEEN = "\x1f"
"""Separates sentences while the rules run: white space that no rule mentions."""
FINAL = " ]})>\"'\u00bb\u201d\u2019"
"""What may follow the final full stop of a sentence."""


def word_count(text: str) -> int:
    """The number of runs of letters, digits and underscores: `don't` is two."""
    return sum(1 for _ in WORD.finditer(text))


def bare_words(text: str) -> list[str]:
    """Lower-case words without ASCII punctuation, split at white space: `don't` is `dont`."""
    return text.lower().translate(PUNCTUATION).split()


def tokens(text: str) -> list[str]:
    """Treebank tokens of each sentence."""
    parts = [one.replace(BETWEEN, " ") for one in sentences(text)]
    parts = [f"`` {one[1:]}" if one.startswith('"') else one for one in parts]
    # the rules run over all sentences at once, except those for the end of a sentence
    parts = _replace(BETWEEN.join(parts), BEFORE).split(BETWEEN)
    parts = [_split_final_stop(one, FINAL) for one in parts]
    parts = _replace(BETWEEN.join(parts), MIDDLE).split(BETWEEN)
    parts = [_split_final_stop(one, FINAL[1:7]) for one in parts]
    return _replace(f" {BETWEEN.join(parts)} ", CLOSE).split()


def word_tokens(text: str) -> list[str]:
    """`tokens` that contain a letter or a digit."""
    return [token for token in tokens(text) if any(char.isalnum() for char in token)]


Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*rules: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), into) for pattern, into in rules)


BEFORE = _rules(
    (r"[\u00ab\u201c\u2018\u201e]|`+", r" \g<0> "),
    (r"([ (\[{<])(?:\"|'')", r"\1 `` "),
    (r"(?i)(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
)
MIDDLE = _rules(
    (r"([:,])(\D)", r" \1 \2"), (r"[:,]$", r" \g<0> "), (r"\.{2,}|[;@#$%&\u2012-\u2015]", r" \g<0> ")
)
CLOSE = _rules(
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[*\]\[(){}<>]", r" \g<0> "),
    ("--", " -- "),
    (r"[\u00bb\u201d\u2019]", r" \g<0> "),
    ("''|\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sSmMdD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    (r"(?i)\b(can(?=not\b)|d(?='ye\b)|(?:gim|lem)(?=me\b)|gon(?=na\b)|got(?=ta\b))", r" \1 "),
    (r"(?i)\b(more(?='n\b)|wan(?=na\s))", r" \1 "),
    (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
)


def _replace(text: str, rules: Rules) -> str:
    for pattern, into in rules:
        text = pattern.sub(into, text)
    return text


def _split_final_stop(text: str, closing: str) -> str:
    """`text` with a space before its final full stop, if that is not part of `...`."""
    end = len(text.rstrip())
    stop = len(text[:end].rstrip(closing))
    if stop < 2 or text[stop - 1] != "." or text[stop - 2] == ".":
        return text
    return f"{text[: stop - 1]} . {text[stop:end]} "
