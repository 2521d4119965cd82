r"""One spelling for the many ways to type the same mathematics.

`clean` drops delimiters, spacing and sizes, renames synonyms, and turns operators into single characters
(`\le`, `<=` and `≤` become `≤`). Left out: every change that depends on what the text means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from posttrain.rewards.math.limits import LONGEST, TooCostly, Unreadable
from posttrain.rewards.math.spellings import CHARACTERS, COMMANDS, CURRENCY, ROW

ROWS = re.compile(r"\\\\(?:\s*\[[0-9.]+[a-z]{2}\])?")
COMMAND = re.compile(r"\\([A-Za-z]+)")
NULL_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
JOIN = re.compile(r"(?<=[0-9])\s*(?:\{,\}|,\s*\\!|\\!\s*,(?:\s*\\!)?|\\,|\{\\,\})\s*(?=[0-9]{3}(?![0-9]))")
"""A separator that can only separate thousands."""
SPACED = re.compile(r"(?<![0-9.,] )(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9]| [0-9]|/)")
LOOSE = re.compile(r"(\\[A-Za-z]+) +(?=[A-Za-z])|(?<![0-9]) | (?![0-9])")
SPACE = re.compile(r"\\[,;:> ]|~")
CIRCLE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\textdegree(?![A-Za-z])")
BLANK_TEXT = re.compile(r"\\text\s*\{\s*\}")
WORD_IN_TEXT = re.compile(r"\\text\s*\{\s*,?\s*(and|or)\s*,?\s*\}")
SINGLE_IN_TEXT = re.compile(r"\\text\s*\{\s*([iedA-Za-z])\s*\}")
PHANTOM = re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[^{}\\])")
RATE = re.compile(
    r"\\text\{([^{}]*)\}\s*/\s*\\text\{([^{}]*)\}|\\frac\s*\{\\text\{([^{}]*)\}\}\s*\{\\text\{([^{}]*)\}\}"
)
SEGMENT = re.compile(r"\\(?:overline|overrightarrow|overleftrightarrow|widehat)\s*\{([A-Z]{2,3})\}")
CHOOSE = re.compile(r"\{([^{}]*)\\choose([^{}]*)\}")
OVER = re.compile(r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}")
BY_X = re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)")
OPERATOR_NAME = re.compile(r"\\(?:operatorname|mathop)\s*\*?\s*\{\s*(?:\\text\s*\{)?([A-Za-z]+)\}?\s*\}")
REALS = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?")
WRAPPED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("`", "`"), ("**", "**"))
BOXES = (r"\boxed{", r"\fbox{")


def clean(text: str) -> str:
    """`text` in the spelling that `reading` reads.

    Raises:
        TooCostly: more than 1,000 characters.
        Unreadable: braces that do not balance.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise TooCostly(f"an answer of {len(text):,} characters")
    text = _unwrapped(text.translate(CHARACTERS) if not text.isascii() else text.replace("\n", " "))
    if "\\" in text or "{" in text or "}" in text:
        text = _latex(text)
    text = text.replace("<=", "≤").replace(">=", "≥").replace("!=", "≠").replace("==", "=")
    if "10" in text:
        text = BY_X.sub("*", text)
    text = text.replace("**", "^").replace('"', "").replace("&nbsp", " ")
    text = _money(text)
    text = SPACED.sub(lambda match: match[0].replace(" ", ""), " ".join(text.split()))
    return text.strip(" ,;").removesuffix(".").strip(" ,;")


def squeezed(text: str) -> str:
    r"""Cleaned text without the spaces that change nothing: `1 2` and `\pi r` keep theirs."""
    return LOOSE.sub(lambda m: f"{m[1]} " if m[1] else "", text)


def _unwrapped(text: str) -> str:
    """`text` without delimiters or boxes around all of it."""
    for _ in range(LONGEST):
        text = text.strip().rstrip(".,;").rstrip() if len(text) > 1 else text
        for before, after in WRAPPED:
            inner = text[len(before) : -len(after)]
            if (
                len(text) > len(before + after)
                and text.startswith(before)
                and text.endswith(after)
                and before not in inner
                and not inner.endswith("\\")
            ):
                text = inner
                break
        else:
            box = next((b for b in BOXES if text.startswith(b)), None)
            if box is None or closing(text, len(box) - 1) != len(text) - 1:
                return text
            text = text[len(box) : -1]
    return text


def closing(text: str, start: int) -> int | None:
    """Where the brace at `start` closes; None if it does not."""
    return next((at for at, depth in _braces(text, start) if depth == 0), None)


def _braces(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """(position, depth after it) of every unescaped brace from `start` on."""
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            yield at, depth
        at += 1


def _latex(text: str) -> str:
    if not _balanced(text):
        raise Unreadable("braces that do not balance")
    text = ROWS.sub(ROW, text)
    text = JOIN.sub("", text).replace(r"\!", "").replace("{,}", ",")
    text = NULL_DELIMITER.sub("", text)
    text = PHANTOM.sub(" ", text)
    text = REALS.sub(r"\\R ", text)
    text = OPERATOR_NAME.sub(r"\\\1 ", text)
    text = CIRCLE.sub("°", text)
    text = COMMAND.sub(lambda m: COMMANDS.get(m[1], m[0]), text)
    text = SPACE.sub(" ", text).replace(r"\%", "%").replace(r"\_", "_").replace(r"\#", "#")
    text = text.replace(r"\|", "|").replace(r"\text {", r"\text{")
    text = RATE.sub(lambda m: rf"\text{{{m[1] or m[3]}/{m[2] or m[4]}}}", text)
    text = BLANK_TEXT.sub(" ", text)
    text = SINGLE_IN_TEXT.sub(r" \1 ", text)
    text = WORD_IN_TEXT.sub(r" \1 ", text)
    text = OVER.sub(r"\\frac{\1}{\2}", text)
    text = text.replace(r"\R -", r"\R ∖").replace(r"\R  -", r"\R ∖")
    text = CHOOSE.sub(r"\\binom{\1}{\2}", text)
    return SEGMENT.sub(r"\1", text)


def _balanced(text: str) -> bool:
    depths = [depth for _, depth in _braces(text)]
    return not depths or (min(depths) >= 0 and depths[-1] == 0)


def _money(text: str) -> str:
    r"""Escaped or single dollar signs become `CURRENCY`; pairs are delimiters and are dropped."""
    text = text.replace(r"\$", CURRENCY)
    if text.count("$") == 1:
        text = text.replace("$", CURRENCY)
    text = text.replace("$", " ").replace("US" + CURRENCY, CURRENCY)
    return re.sub(rf"^-\s*{CURRENCY}\s*", f"{CURRENCY}-", text)
