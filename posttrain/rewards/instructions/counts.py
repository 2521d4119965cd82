r"""IFBench, groups `count` and `ratio`: numbers and shares (Pyatkin et al. 2025, arXiv 2507.02833).

Sentences and tokens are those of `sentences` and `words`. Left out: nothing of the two groups.
"""

from __future__ import annotations

import re

from posttrain.rewards.instructions.sentences import sentences
from posttrain.rewards.instructions.table import at_least, exactly, instruction, unless
from posttrain.rewards.instructions.words import MARKS, PUNCTUATION, WORD, bare_words, tokens, word_count

NAMES = """
Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia
Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett
Nathan Victoria Elijah Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria
Joseph Claire Ryan Stella Jonathan
"""
PRONOUNS = """
i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself
ourselves yourself yourselves himself herself itself themselves this that these those who whom whose
which what whoever whomever whatever whichever anybody anyone anything everybody everyone everything
nobody nothing somebody someone something each either neither both all some any none
"""
STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves what which who whom this that these those am is
are was were be been being have has had having do does did doing a an the and but if or because as until
while of at by for with about against between into through during before after above below to from up
down in out on off over under again further then once here there when where why how all any both each
few more most other some such no nor not only own same so than too very s t can will just don should now
d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn
weren won wouldn
"""
CONJUNCTIONS = ("and", "but", "for", "nor", "or", "so", "yet")
TIMES = (1, 2, 3, 5, 7)
"""How often each of the five keywords of `count:keywords_multiple` must occur."""
JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
INTERROBANG = re.compile(r"\?!|!\?|\u203d")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


STOPS, PRONOUN_SET = _set(STOP_WORDS), _set(PRONOUNS)
NAME = re.compile(rf"\b(?:{'|'.join(NAMES.split())})\b")


@instruction("count:word_count_range")
def word_count_range(text: str, min_words: int, max_words: int) -> str:
    """Between `min_words` and `max_words` words, inclusive."""
    count = word_count(text)
    return unless(min_words <= count <= max_words, f"{count} words, not {min_words} to {max_words}")


@instruction("count:unique_word_count")
def unique_word_count(text: str, N: int) -> str:
    """At least N different words, split at spaces, ignoring case and outer punctuation."""
    return at_least(len({one.strip(MARKS) for one in text.lower().split()}), N, "different words")


@instruction("count:conjunctions")
def conjunctions(text: str, small_n: int, fixed: bool) -> str:
    """At least `small_n` different coordinating conjunctions; for `compat`, `and` and `And,` differ."""
    found = {one for one in text.split() if one.strip(MARKS).lower() in CONJUNCTIONS}
    if fixed:
        found = {one.strip(MARKS).lower() for one in found}
    return at_least(len(found), small_n, "different conjunctions")


@instruction("count:person_names")
def person_names(text: str, N: int) -> str:
    """At least N different names from a list of fifty."""
    return at_least(len(set(NAME.findall(text))), N, "different names")


@instruction("count:numbers")
def numbers(text: str, N: int) -> str:
    """Exactly N numbers; `1,234.5` is one."""
    return exactly(len(re.findall(r"\d+", text.translate(PUNCTUATION))), N, "numbers")


@instruction("count:punctuation")
def punctuation(text: str) -> str:
    """Every mark of `. , ! ? ; :` and one `?!`, `!?` or interrobang, whose two signs do not count again."""
    if not INTERROBANG.search(text):
        return "without an interrobang (?!)"
    rest = text.replace("?!", "", 1)
    if len(rest) == len(text):
        rest = text.replace("!?", "", 1)
    missing = [mark for mark in ".,!?;:" if mark not in rest]
    return unless(not missing, f"without {' '.join(missing)}")


@instruction("count:words_japanese")
def words_japanese(text: str, N: int) -> str:
    """Every N-th word contains a Japanese character or is a number."""
    if N < 1:
        raise ValueError("N must be at least 1")
    for number, word in enumerate(text.split()[N - 1 :: N], start=1):
        word = word.strip(MARKS)
        if word and not word.isdigit() and not JAPANESE.search(word):
            return f"word {number * N} is not Japanese"
    return ""


@instruction("count:pronouns")
def pronouns(text: str, N: int) -> str:
    """At least N pronouns; `she/her` is two."""
    words = tokens(text.replace("/", " ").lower())
    return at_least(sum(1 for one in words if one in PRONOUN_SET), N, "pronouns")


@instruction("count:keywords_multiple")
def keywords_multiple(
    text: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> str:
    """The five keywords occur 1, 2, 3, 5 and 7 times as whole words."""
    for word, times in zip((keyword1, keyword2, keyword3, keyword4, keyword5), TIMES, strict=True):
        pattern = re.compile(rf"\b{re.escape(word.strip())}\b", re.IGNORECASE)
        if reason := exactly(len(pattern.findall(text)), times, f"times {word.strip()!r}"):
            return reason
    return ""


@instruction("ratio:stop_words")
def stop_words(text: str, percentage: int) -> str:
    """At most `percentage` percent of the words are English stop words."""
    words = [one.lower() for one in WORD.findall(text)]
    if not words:
        return "no words"
    share = 100 * sum(1 for one in words if one in STOPS) / len(words)
    return unless(share <= percentage, f"{share:.1f} % stop words, at most {percentage} % allowed")


@instruction("ratio:sentence_type")
def sentence_type(text: str) -> str:
    """Twice as many sentences that end with `.` as with `?`."""
    stops, questions, _ = _endings(text)
    return unless(stops == 2 * questions, f"{stops} statements to {questions} questions, not 2:1")


@instruction("ratio:sentence_balance")
def sentence_balance(text: str) -> str:
    """As many sentences that end with `.` as with `?` and with `!`."""
    found = _endings(text)
    return unless(len(set(found)) == 1, "{} ending with '.', {} with '?', {} with '!'".format(*found))


def _endings(text: str) -> tuple[int, int, int]:
    last = [one[-1] for one in sentences(text)]
    return last.count("."), last.count("?"), last.count("!")


@instruction("ratio:overlap")
def overlap(text: str, reference_text: str, percentage: int) -> str:
    """`percentage` percent (within 2) of the text's trigrams of tokens are in the reference."""
    own = _trigrams(text)
    if not own:
        return "fewer than three tokens"
    share = len(own & _trigrams(reference_text)) / len(own) * 100
    followed = percentage - 2 <= share <= percentage + 2
    return unless(followed, f"{share:.1f} % of the trigrams, asked for {percentage} % (within 2)")


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = tokens(text)
    return set(zip(words, words[1:], words[2:], strict=False))


@instruction("ratio:sentence_words")
def sentence_words(text: str) -> str:
    """Three sentences of the same length in characters, without a word that occurs twice."""
    found = sentences(text)
    if len(found) != 3:
        return exactly(len(found), 3, "sentences")
    lengths = [len(one.strip()) for one in found]
    if len(set(lengths)) != 1:
        return f"sentences of {lengths} characters"
    words = bare_words(" ".join(found))
    return unless(len(words) == len(set(words)), "a word occurs twice")
