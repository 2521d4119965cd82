r"""Sentences as the official checkers see them: a version of the Punkt algorithm for English.

Kiss and Strunk, Unsupervised Multilingual Sentence Boundary Detection (Computational Linguistics 32, 2006),
with the decisions of nltk's English model: `?` and `!` before a space or a bracket end a sentence; a full
stop does, unless the word is an abbreviation or an initial, or a number is followed by a lower-case letter.
So `1. First` is two sentences, as for the official checker. Left out: the model's statistics of 20,000 words,
which tell which words occur in lower case; after an abbreviation or `...` a capital begins a sentence only
for the words below and for those that end in -ly, -ing, -ed. Everything takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ABBREVIATIONS = _words(
    """
    mr mrs ms messrs dr prof st sr jr gen col maj lt adm sen rep reps inc corp co cos ltd
    bros cie ave ft mg yr vs ct chg pa sw ok jan feb aug sept sep oct nov dec tues wed fri
    ala ariz calif colo conn fla ga ill kan ky mich minn nev okla ore tenn va vt wash wis
    w.va a.m p.m u.s u.k u.n u.s.a u.s.s.r d.c l.a n.y n.j n.c n.d n.h n.m s.a s.c r.i a.d
    ph.d m.b.a j.b j.c j.j j.k j.p j.r t.j c d e f g h k l m n p r s t v w
    """
)
"""Words whose full stop does not end a sentence. `etc`, `e.g` and `i.e` are not among them: the official
model ends a sentence after them."""
STARTERS = _words(
    """
    i he it they the this these there some many most both if when while since so but nor yet
    in under among although though despite even thus however instead indeed moreover
    meanwhile nevertheless nonetheless similarly separately according
    """
)
"""Words that, written with a capital after an abbreviation, begin a sentence."""
SMALL = STARTERS | _words(
    """
    a an and are as at be because been before by can could did do does for from had has have
    her his how its let more my no not of on one or our she should that their then to was we
    were what where which who will with would you your after all also any each every first
    here just like make new next now only other such
    """
)
"""Common words: with a capital after an initial they are not a name (`plan B. The`)."""
STARTER_ENDINGS = ("ly", "ing", "ed")
CLOSING = "\u2018\u2019\u201c\u201d\u00ab\u00bb"
NON_WORD = rf"[)\";}}\]*:@'({{\[!?{CLOSING}]"
MANY = r"(?:-{2,}|\.{2,})"
CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{NON_WORD}|\s+(?P<next>\S+)))")
TOKEN = re.compile(
    rf"{MANY}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{NON_WORD}|{MANY}|,(?=$|\s|{NON_WORD}|{MANY}))|\S"
)
REALIGN = re.compile(rf"[\"')\]}}{CLOSING}]+(?:\s+|(?=--)|$)", re.MULTILINE)
NUMBER = re.compile(r"-?[.,]?\d[\d,.\-]*\.?$")
INITIAL = re.compile(r"[^\W\d]\.$")
LONGEST = 200
"""Characters of a word, and of the word after it, that are examined."""


def sentences(text: str) -> list[str]:
    """The sentences of `text`, without the space between them."""
    parts, begin, moved = [], 0, 0
    for stop, following in _breaks(text):
        # a closing quote or bracket after the full stop belongs to the sentence before it
        closing = REALIGN.match(text, following)
        if closing:
            parts.append(text[begin + moved : following + len(closing[0].rstrip())])
            begin, moved = following, closing.end() - following
            continue
        parts.append(text[begin + moved : stop])
        begin, moved = following, 0
    last = text[begin + moved : len(text.rstrip())]
    return [*parts, last] if last else parts


def _breaks(text: str) -> Iterator[tuple[int, int]]:
    """(end of a sentence, begin of the next one)."""
    held: re.Match[str] | None = None
    begin = end = 0  # of the word before the mark that is held
    for match in CANDIDATE.finditer(text):
        space = max(text.rfind(one, end, match.start()) for one in " \n\t\r\v\f")
        # marks in one word are judged together, at the last of them
        word = space + 1 if space > end else begin
        if held is not None and end <= word and _ends(text, begin, held):
            yield held.end(), held.end() if held["next"] is None else held.start("next")
        held, begin, end = match, word, match.start()
    if held is not None and _ends(text, begin, held):
        yield held.end(), held.end() if held["next"] is None else held.start("next")


def _ends(text: str, begin: int, match: re.Match[str]) -> bool:
    if match[0] != ".":
        return True
    word = text[max(begin, match.start() - LONGEST) : match.end()]
    following = match["next"]
    return _is_break(word, match["after"] if following is None else f" {following[:LONGEST]}")


@lru_cache(maxsize=1 << 16)
def _is_break(word: str, after: str) -> bool:
    """Whether a token of `word`, other than the last one of `word + after`, ends a sentence."""
    tokens = TOKEN.findall(word + after)
    return any(_token_ends(one, two) for one, two in zip(tokens, tokens[1:], strict=False))


def _token_ends(token: str, following: str) -> bool:
    if token in (".", "?", "!"):
        return True
    if not token.endswith("."):
        return False
    ellipsis = token.endswith("..")
    name = token[:-1].lower()
    short = not ellipsis and name.split("-")[-1] in ABBREVIATIONS
    initial = not ellipsis and INITIAL.match(token) is not None
    number = NUMBER.match(token.lower()) is not None
    ends = not (short or ellipsis)
    if not (short or ellipsis or initial or number):
        return ends
    plain = following.lower()[:-1] if len(following) > 1 and following[-1] == "." else following.lower()
    if (short or ellipsis) and not initial and following[0].isupper():
        ends = plain in STARTERS or _no_name(plain)
    if initial or number:
        if following in (";", ":", ",", ".", "!", "?") or following[0].islower():
            return False
        if initial and following[0].isupper() and not (plain in SMALL or _no_name(plain)):
            return False
    return ends


def _no_name(word: str) -> bool:
    """Whether a word looks like one that is not a name (`quickly`, `looking`)."""
    return len(word) > 5 and word.endswith(STARTER_ENDINGS)
