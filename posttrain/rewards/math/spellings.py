r"""Spellings that mean the same: characters of Unicode and commands of LaTeX, each as `clean` rewrites it.

Left out: everything that depends on more than one character or command.
"""

from __future__ import annotations

CURRENCY = "¤"
"""Replaces a dollar sign that is money and not a delimiter."""
ROW = "↵"
"""Replaces the end of a row of a matrix."""

_CHARACTERS = {
    "-": "−–—",
    "*": "×·⋅∙",
    "/": "÷⁄∕",
    r"\pi ": "π",
    r"\theta ": "θ",
    r"\alpha ": "α",
    r"\beta ": "β",
    r"\gamma ": "γ",
    r"\lambda ": "λ",
    r"\phi ": "φ",
    r"\omega ": "ω",
    r"\mu ": "μ",
    r"\sigma ": "σ",
    r"\sqrt ": "√",
    "°": "º",
    "^{2}": "²",
    "^{3}": "³",
    "^{1}": "¹",
    "^{4}": "⁴",
    "^{5}": "⁵",
    "^{6}": "⁶",
    "^{n}": "ⁿ",
    r"\frac{1}{2}": "½",
    r"\frac{1}{3}": "⅓",
    r"\frac{2}{3}": "⅔",
    r"\frac{1}{4}": "¼",
    r"\frac{3}{4}": "¾",
    '"': "“”",
    "'": "‘’′",
    " ": "\xa0\t\n\r",
    r"\,": "\u2009\u202f",
    r"\R ": "ℝ",
    r"\langle ": "⟨",
    r"\rangle ": "⟩",
    "": "\u200b",
    "≤": "⩽",
    "≥": "⩾",
    " or ": "∨",
    " and ": "∧",
}
"""Spelling -> the characters that it replaces."""
CHARACTERS = str.maketrans({char: new for new, chars in _CHARACTERS.items() for char in chars})
_COMMANDS = {
    "*": "cdot times ast",
    "/": "div",
    "≤": "le leq leqslant leqq",
    "≥": "ge geq geqslant geqq",
    "≠": "ne neq",
    "<": "lt",
    ">": "gt",
    "≈": "approx simeq",
    "∈": "in",
    "∪": "cup bigcup",
    "∩": "cap",
    "∖": "setminus backslash",
    "±": "pm",
    "∓": "mp",
    "∅": "emptyset varnothing",
    "∞": "infty infin",
    "°": "degree",
    r"\{": "lbrace",
    r"\}": "rbrace",
    "|": "lvert rvert vert mid",
    ":": "colon",
    "[": "lbrack",
    "]": "rbrack",
    "(": "lparen",
    ")": "rparen",
    " and ": "land wedge",
    " or ": "lor vee",
    r"\frac": "dfrac tfrac cfrac",
    r"\binom": "dbinom tbinom",
    r"\text": "mbox textrm textnormal textbf textit texttt emph hbox mathrm",
    "": "mathbf mathit mathsf boldsymbol bm bf rm displaystyle textstyle scriptstyle limits nolimits "
    "left middle right big bigl bigr bigg biggl biggr Big Bigl Bigr Bigg Biggl Biggr",
    " ": "quad qquad thinspace enspace",
    r"\dots": "implies ldots cdots",
    r"\neg": "lnot",
    r"\epsilon": "varepsilon",
    r"\phi": "varphi",
    r"\theta": "vartheta",
    r"\arctan": "arctg",
    r"\tan": "tg",
    r"\cot": "ctg",
}
"""Spelling -> the commands that it replaces."""
COMMANDS = {name: new for new, names in _COMMANDS.items() for name in names.split()}
