r"""IFBench, groups `words` and `sentence`: words in order (Pyatkin et al. 2025, arXiv 2507.02833).

Left out: `words:start_verb`, which needs a part-of-speech tagger, and `words:odd_even_syllables`, which needs
a dictionary of syllables.
"""

from __future__ import annotations

import re
import string
from collections import Counter

from posttrain.rewards.instructions.sentences import sentences
from posttrain.rewards.instructions.table import at_least, instruction, unless
from posttrain.rewards.instructions.words import MARKS, PUNCTUATION, bare_words, word_tokens

LETTERS = string.ascii_lowercase
CLUSTER = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
PRIMES = frozenset(n for n in range(2, 100) if all(n % d for d in range(2, n)))


@instruction("words:alphabet")
def alphabet(text: str) -> str:
    """Each word begins with the next letter of the alphabet, with `a` after `z`."""
    words = [one.lower() for one in text.translate(PUNCTUATION).split()]
    if not words or words[0][0] not in LETTERS:
        return "does not begin with a letter a-z"
    first = LETTERS.index(words[0][0])
    for number, word in enumerate(words):
        if word[0] != LETTERS[(first + number) % 26]:
            return f"word {number + 1}, {word[:20]!r}, is out of order"
    return ""


@instruction("words:vowel")
def vowel(text: str) -> str:
    """One paragraph with at most three of the five vowels."""
    text = text.strip()
    if "\n" in text:
        return "more than one paragraph"
    found = set(text.lower()) & set("aeiou")
    return unless(len(found) <= 3, f"{len(found)} different vowels, at most 3 allowed")


@instruction("words:consonants")
def consonants(text: str) -> str:
    """Each word has two consonants side by side."""
    for word in text.lower().split():
        if not CLUSTER.search(word):
            return f"no two consonants side by side in {word[:20]!r}"
    return ""


@instruction("words:palindrome")
def palindrome(text: str) -> str:
    """Ten palindromes of five or more characters."""
    words = text.translate(PUNCTUATION).lower().split()
    found = sum(1 for one in words if len(one) >= 5 and one == one[::-1])
    return at_least(found, 10, "palindromes")


@instruction("words:prime_lengths")
def prime_lengths(text: str) -> str:
    """The length of each word is a prime number below 100."""
    for word in text.translate(PUNCTUATION).split():
        if len(word) not in PRIMES:
            return f"{word[:20]!r} has {len(word)} characters, not a prime number"
    return ""


@instruction("words:repeats")
def repeats(text: str, small_n: int) -> str:
    """No word occurs more than `small_n` times."""
    for word, count in Counter(bare_words(text)).most_common(1):
        return unless(count <= small_n, f"{word[:20]!r} occurs {count} times")
    return ""


@instruction("words:last_first")
def last_first(text: str) -> str:
    """The last word of each sentence is the first of the next."""
    found = sentences(text)
    for before, after in zip(found, found[1:], strict=False):
        last, first = before.rstrip(MARKS).split()[-1:], after.lstrip(MARKS).split()[:1]
        if not last or not first or last[0].lower() != first[0].lower():
            return f"{before[-20:]!r} is followed by {after[:20]!r}"
    return ""


@instruction("words:paragraph_last_first")
def paragraph_last_first(text: str) -> str:
    """Each line ends with the word it begins with."""
    for line in text.split("\n"):
        words = line.strip().lower().strip(MARKS).split()
        if words and words[0] != words[-1]:
            return f"a paragraph begins with {words[0][:20]!r} and ends with {words[-1][:20]!r}"
    return ""


@instruction("words:no_consecutive")
def no_consecutive(text: str) -> str:
    """No two words in a row begin with the same letter."""
    words = bare_words(text)
    for one, two in zip(words, words[1:], strict=False):
        if one[0] == two[0]:
            return f"{one[:20]!r} is followed by {two[:20]!r}"
    return ""


@instruction("words:keywords_specific_position")
def keywords_specific_position(text: str, keyword: str, n: int, m: int) -> str:
    """The keyword is the m-th word of the n-th sentence."""
    found = sentences(text)
    words = word_tokens(found[n - 1]) if 1 <= n <= len(found) else []
    followed = 1 <= m <= len(words) and words[m - 1].lower() == keyword.strip().lower()
    return unless(followed, f"{keyword.strip()!r} is not word {m} of sentence {n}")


@instruction("words:words_position")
def words_position(text: str, keyword: str) -> str:
    """The second word and the second to last are the keyword."""
    words = [one.lower() for one in word_tokens(text)]
    followed = len(words) > 1 and words[1] == words[-2] == keyword.strip().lower()
    return unless(followed, f"the second and the second to last word are not {keyword.strip()!r}")


@instruction("sentence:keyword")
def keyword(text: str, word: str, N: int) -> str:
    """The N-th sentence contains the keyword as a whole word."""
    found = sentences(text)
    if not 1 <= N <= len(found):
        return f"{len(found)} sentences, no sentence {N}"
    held = re.search(rf"\b{re.escape(word)}\b", found[N - 1], re.IGNORECASE)
    return unless(held is not None, f"sentence {N} is without {word!r}")


@instruction("sentence:increment")
def increment(text: str, small_n: int) -> str:
    """Each sentence has exactly `small_n` words more than the one before."""
    counts = [len(one.translate(PUNCTUATION).split()) for one in sentences(text)]
    for one, two in zip(counts, counts[1:], strict=False):
        if two != one + small_n:
            return f"a sentence of {two} words follows one of {one}"
    return ""


@instruction("sentence:alliteration_increment")
def alliteration_increment(text: str) -> str:
    """Each sentence has more words that alliterate with a neighbour than the one before."""
    last = -1
    for number, sentence in enumerate(sentences(text), start=1):
        firsts = [word[0] for one in sentence.lower().split() if (word := one.lstrip(MARKS))]
        pairs = [one == two for one, two in zip(firsts, firsts[1:], strict=False)]
        # a run of k words has k - 1 pairs: a pair that begins a run counts two words
        count = sum(
            2 if not before else 1 for before, pair in zip([False, *pairs], pairs, strict=False) if pair
        )
        if count <= last:
            return f"sentence {number} has {count} alliterating words, the one before {last}"
        last = count
    return ""
