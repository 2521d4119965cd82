r"""Cleaned mathematics as a list of tokens. Left out: the grammar.

A token is `(kind, value)`: `num` with a Fraction and its text, `sym`, `const`, `fn`, `cmd` (a LaTeX command
with arguments), `text` (what stands in `\text{}`) or `op`. Words are read letter by letter (`ab` is a times
b) except for names of functions and Greek letters; five or more letters that are no such name are prose,
which is refused.
"""

from __future__ import annotations

import re
from fractions import Fraction

from posttrain.rewards.math.limits import LARGEST_EXPONENT, TooCostly, Unreadable

Token = tuple

FUNCTIONS = frozenset(
    str.split(
        "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan asin acos atan log ln lg exp sqrt "
        "cbrt abs floor ceil max min gcd lcm factorial binomial"
    )
)
GREEK = frozenset(
    str.split(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon "
        "phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar triangle "
        "angle mho"
    )
)
ARGUMENTS = frozenset({"frac", "binom", "sqrt", "lfloor", "rfloor", "lceil", "rceil"})
PLAIN_GREEK = GREEK - {
    "eta",
    "nu",
    "mu",
    "xi",
    "chi",
    "ell",
    "rho",
    "tau",
    "phi",
    "psi",
    "angle",
    "triangle",
    "mho",
}
NAMES = sorted(FUNCTIONS | PLAIN_GREEK | {"pi", "infinity"}, key=len, reverse=True)
IN_WORD = re.compile("|".join(NAMES) + "|[A-Za-z]")
TOKEN = re.compile(
    r"""(?P<repeat>[0-9]*\.[0-9]*\\(?:overline|bar|dot)\s*\{[0-9]+\})
    |(?P<num>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)
     (?:[eE](?P<exp>[+-]?[0-9]+)(?![0-9A-Za-z.]))?
    |\\text\{(?P<text>[^{}]*)\}
    |\\(?P<cmd>[A-Za-z]+)
    |(?P<word>[A-Za-z]+)
    |(?P<op>[-+*/^_!%°()\[\]{}|'∞])
    |(?P<space>\s+)""",
    re.VERBOSE,
)
LONGEST_WORD = 4


def tokenize(text: str) -> list[Token]:
    """The tokens of `text`.

    Raises:
        Unreadable: a character, command or word is unknown.
        TooCostly: a number is too large.
    """
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"the character {text[at]!r}")
        at = match.end()
        kind = match.lastgroup
        if match["num"]:
            found.append(("num", number(match["num"], match["exp"]), match["num"]))
        elif kind == "op":
            found.append(("op", match["op"]))
        elif kind == "word":
            found.extend(_word(match["word"]))
        elif kind == "cmd":
            found.append(_command(match["cmd"]))
        elif kind == "repeat":
            found.append(("num", _repeating(match["repeat"]), ""))
        elif kind == "text":
            found.append(("text", match["text"].strip()))
    return found


def number(digits: str, exponent: str | None = None) -> Fraction:
    """The value of a decimal, with separators and an exponent."""
    digits = digits.replace(",", "")
    if exponent and (len(exponent) > 6 or abs(int(exponent)) > LARGEST_EXPONENT):
        raise TooCostly(f"the exponent {exponent[:12]}")
    whole, _, part = digits.partition(".")
    value = Fraction(int(whole + part or "0"), 10 ** len(part))
    return value * Fraction(10) ** int(exponent) if exponent else value


def _repeating(text: str) -> Fraction:
    whole, _, rest = text.partition(".")
    once, _, cycle = rest.partition("\\")
    cycle = cycle.partition("{")[2].rstrip("}")
    value = Fraction(int(whole + once or "0"), 10 ** len(once))
    return value + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(once))


def _word(word: str) -> list[Token]:
    parts = IN_WORD.findall(word)
    if sum(len(part) == 1 for part in parts) > LONGEST_WORD:
        raise Unreadable(f"the word {word[:20]!r}")
    return [_name(part) for part in parts]


def _name(name: str) -> Token:
    if name in FUNCTIONS:
        return ("fn", name)
    if name in ("e", "i", "pi"):
        return ("const", name)
    return ("op", "∞") if name == "infinity" else ("sym", name)


def _command(name: str) -> Token:
    if name in ARGUMENTS:
        return ("cmd", name)
    if name in FUNCTIONS:
        return ("fn", name)
    if name in GREEK:
        return ("sym", name)
    if name in ("e", "i", "pi"):
        return ("const", name)
    raise Unreadable(f"the command \\{name[:20]}")
