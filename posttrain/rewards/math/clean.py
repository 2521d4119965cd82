r"""One spelling for the many ways to type the same mathematics.

`clean` drops delimiters, spacing and sizes, renames synonyms, and turns operators into single characters
(`\le`, `<=` and `≤` become `≤`). Left out: every change that would need to know what the text means.
"""

from __future__ import annotations

import re

from posttrain.rewards.math.limits import LONGEST, TooCostly, Unreadable

CURRENCY = "¤"
"""Stands for a dollar sign that is money, not a delimiter."""
ROW = "↵"
"""Stands for the end of a row of a matrix."""
ROWS = re.compile(r"\\\\(?:\s*\[[0-9.]+[a-z]{2}\])?")

CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "∙": "*",
        "÷": "/",
        "⁄": "/",
        "∕": "/",
        "π": r"\pi ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ",
        "λ": r"\lambda ",
        "φ": r"\phi ",
        "ω": r"\omega ",
        "μ": r"\mu ",
        "σ": r"\sigma ",
        "√": r"\sqrt ",
        "∞": "∞",
        "º": "°",
        "²": "^{2}",
        "³": "^{3}",
        "¹": "^{1}",
        "⁴": "^{4}",
        "⁵": "^{5}",
        "⁶": "^{6}",
        "ⁿ": "^{n}",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "′": "'",
        "\u00a0": " ",
        "\u2009": r"\,",
        "\u202f": r"\,",
        "ℝ": r"\R ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "\u200b": "",
        "⩽": "≤",
        "⩾": "≥",
        "∨": " or ",
        "∧": " and ",
        "\t": " ",
        "\n": " ",
        "\r": " ",
    }
)
OPERATORS = {
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "div": "/",
    "le": "≤",
    "leq": "≤",
    "leqslant": "≤",
    "leqq": "≤",
    "ge": "≥",
    "geq": "≥",
    "geqslant": "≥",
    "geqq": "≥",
    "ne": "≠",
    "neq": "≠",
    "lt": "<",
    "gt": ">",
    "approx": "≈",
    "simeq": "≈",
    "in": "∈",
    "cup": "∪",
    "bigcup": "∪",
    "cap": "∩",
    "setminus": "∖",
    "backslash": "∖",
    "pm": "±",
    "mp": "∓",
    "emptyset": "∅",
    "varnothing": "∅",
    "infty": "∞",
    "infin": "∞",
    "degree": "°",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "colon": ":",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "land": " and ",
    "wedge": " and ",
    "lor": " or ",
    "vee": " or ",
    "dfrac": r"\frac",
    "tfrac": r"\frac",
    "cfrac": r"\frac",
    "dbinom": r"\binom",
    "tbinom": r"\binom",
    "mbox": r"\text",
    "textrm": r"\text",
    "textnormal": r"\text",
    "textbf": r"\text",
    "textit": r"\text",
    "texttt": r"\text",
    "emph": r"\text",
    "hbox": r"\text",
    "mathrm": r"\text",
    "mathbf": "",
    "mathit": "",
    "mathsf": "",
    "boldsymbol": "",
    "bm": "",
    "bf": "",
    "rm": "",
    "left": "",
    "right": "",
    "displaystyle": "",
    "textstyle": "",
    "scriptstyle": "",
    "limits": "",
    "nolimits": "",
    "quad": " ",
    "qquad": " ",
    "thinspace": " ",
    "enspace": " ",
    "implies": r"\dots",
    "ldots": r"\dots",
    "cdots": r"\dots",
    "Bigl": "",
    "Bigr": "",
    "bigl": "",
    "bigr": "",
    "big": "",
    "Big": "",
    "bigg": "",
    "Bigg": "",
    "biggl": "",
    "biggr": "",
    "Biggl": "",
    "Biggr": "",
    "middle": "",
    "lnot": r"\neg",
    "varepsilon": r"\epsilon",
    "varphi": r"\phi",
    "vartheta": r"\theta",
    "arctg": r"\arctan",
    "tg": r"\tan",
    "ctg": r"\cot",
}
COMMAND = re.compile(r"\\([A-Za-z]+)")
NULL_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
JOIN = re.compile(r"(?<=[0-9])\s*(?:\{,\}|,\s*\\!|\\!\s*,(?:\s*\\!)?|\\,|\{\\,\})\s*(?=[0-9]{3}(?![0-9]))")
"""A separator that can only be one of thousands."""
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
    """`text` in the one spelling that the readers of this package know.

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
    r"""Cleaned text without the spaces that separate nothing: `1 2` and `\pi r` keep theirs."""
    return LOOSE.sub(lambda m: f"{m[1]} " if m[1] else "", text)


def _unwrapped(text: str) -> str:
    """Without the delimiters or boxes around the whole."""
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
    """Where the brace at `start` closes."""
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None


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
    text = COMMAND.sub(lambda m: OPERATORS.get(m[1], m[0]), text)
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
    depth, at = 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth < 0:
                return False
        at += 1
    return depth == 0


def _money(text: str) -> str:
    r"""Escaped or lone dollar signs become `CURRENCY`; pairs are delimiters and go."""
    text = text.replace(r"\$", CURRENCY)
    if text.count("$") == 1:
        text = text.replace("$", CURRENCY)
    text = text.replace("$", " ").replace("US" + CURRENCY, CURRENCY)
    return re.sub(rf"^-\s*{CURRENCY}\s*", f"{CURRENCY}-", text)
