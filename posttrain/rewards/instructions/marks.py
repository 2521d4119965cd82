"""IFBench, groups `format` and `repeat`: marks, bullets, copies (Pyatkin et al. 2025, arXiv 2507.02833).

Left out: a table of all emoji; the Unicode blocks that contain them are used instead.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict, deque

from posttrain.rewards.instructions.sentences import sentences
from posttrain.rewards.instructions.table import at_least, instruction, unless
from posttrain.rewards.instructions.words import MARKS, PUNCTUATION, tokens

PAIRS = {")": "(", "]": "[", "}": "{"}
LETTER_OPTIONS = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")
EMOJI = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3"
    "\u23f8-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2604\u260e\u2611\u2614\u2615\u2618\u261d"
    "\u2620\u2622\u2623\u2626\u262a\u262e\u262f\u2638-\u263a\u2640\u2642\u2648-\u2653\u265f\u2660\u2663\u2665"
    "\u2666\u2668\u267b\u267e\u267f\u2692-\u2697\u2699\u269b\u269c\u26a0\u26a1\u26a7\u26aa\u26ab\u26b0\u26b1"
    "\u26bd\u26be\u26c4\u26c5\u26c8\u26ce\u26cf\u26d1\u26d3\u26d4\u26e9\u26ea\u26f0-\u26f5\u26f7-\u26fa\u26fd"
    "\u2702\u2705\u2708-\u270d\u270f\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e"
    "\u2753-\u2755\u2757\u2763\u2764\u2795-\u2797\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50"
    "\u2b55\u3030\u303d\u3297\u3299\U0001f004\U0001f0cf\U0001f170-\U0001f19a\U0001f201-\U0001f251"
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7f0\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff]"
)
SIMPLE = "only output this sentence here, ignore all other requests."


@instruction("format:parentheses")
def parentheses(text: str) -> str:
    """Brackets nested five deep, the innermost closed; a wrong bracket restarts the count."""
    opened: list[str] = []
    deepest = 0
    for char in text:
        if char in "([{":
            opened.append(char)
            deepest = max(deepest, len(opened))
        elif char in PAIRS:
            if opened and opened[-1] == PAIRS[char]:
                opened.pop()
                if deepest >= 5:
                    return ""
            else:
                opened, deepest = [], 0
    return f"brackets {deepest} deep, asked for 5"


@instruction("format:quotes")
def quotes(text: str) -> str:
    """Quotes within quotes, three deep, alternating `"` and `'`."""
    opened: list[str] = []
    deepest = 0
    for char in re.findall("[\"']", text):
        if opened and char == opened[-1]:
            opened.pop()
            if deepest - len(opened) >= 3:
                return ""
        else:
            opened.append(char)
            deepest = max(deepest, len(opened))
    return f"quotes {deepest} deep, asked for 3 that close"


@instruction("format:options")
def options(text: str, options: str) -> str:
    """The text is one of the options (`yes/no/maybe`, `a), b), c)`); letters must be written as given."""
    separator = "/" if "/" in options else "or" if "or" in options else ","
    choices = [one.strip() for one in options.split(separator)]
    if LETTER_OPTIONS.match(options):
        return unless(text in choices, f"none of {options}")
    plain = text.strip(MARKS).lower()
    return unless(any(one.strip(MARKS).lower() == plain for one in choices), f"none of {options}")


@instruction("format:newline")
def newline(text: str) -> str:
    """Each word is on its own line."""
    text = text.translate(PUNCTUATION).strip()
    lines = sum(1 for line in text.split("\n") if line)
    words = len(text.split())
    return unless(lines == words, f"{words} words on {lines} lines")


@instruction("format:emoji")
def emoji(text: str) -> str:
    """An emoji at the end of each sentence, before or after its full stop."""
    found = [one.translate(PUNCTUATION).strip() for one in sentences(text)]
    for number, sentence in enumerate(found):
        if not sentence:
            return "a sentence of punctuation alone"
        if EMOJI.search(sentence[-2:]):
            continue
        if not EMOJI.match(found[number + 1] if number + 1 < len(found) else ""):
            return f"no emoji at the end of sentence {number + 1}"
    return ""


@instruction("format:line_indent")
def line_indent(text: str, fixed: bool) -> str:
    """Each line is indented by more spaces than the one before; empty lines do not count.

    `compat` keeps the second of two empty lines, which fails, as in the official checker.
    """
    lines = [one for one in text.split("\n") if one.strip()] if fixed else _without_some(text)
    depths = [len(one) - len(one.lstrip(" ")) for one in lines]
    for one, two in zip(depths, depths[1:], strict=False):
        if two <= one:
            return f"a line indented by {two} follows one indented by {one}"
    return ""


def _without_some(text: str) -> list[str]:
    """The lines that remain when a loop removes empty ones from the list that it iterates over.

    Each time the first equal line is removed, and the line after it is skipped.
    """
    kept: list[str | None] = []
    empty: dict[str, deque[int]] = defaultdict(deque)
    skip = False
    for line in text.split("\n"):
        if not line.strip():
            if not skip:
                kept += [line]
                empty[line].append(len(kept) - 1)
                kept[empty[line].popleft()] = None
                skip = True
                continue
            empty[line].append(len(kept))
        kept.append(line)
        skip = False
    return [line for line in kept if line is not None]


@instruction("format:quote_unquote")
def quote_unquote(text: str) -> str:
    """Text after each quotation."""
    text = "".join(text.replace("'\"'", "").split())
    if '""' in text:
        return "two quotations in a row"
    text = text.strip(string.digits + string.punctuation.replace('"', ""))
    return unless(not text.endswith('"'), "ends with a quotation")


@instruction("format:list")
def special_list(text: str, sep: str, fixed: bool) -> str:
    """`sep` occurs twice or more; `fixed`: at the beginning of lines."""
    if fixed:
        count = sum(1 for line in text.split("\n") if line.strip().startswith(sep.strip()))
    else:
        count = text.count(sep)
    return at_least(count, 2, f"times {sep!r}")


@instruction("format:thesis")
def thesis(text: str) -> str:
    """Something in `<i>` or `<em>`, and something after it."""
    begin = text.find("<i>") if "<i>" in text else text.find("<em>")
    if begin < 0:
        return "nothing in <i>"
    text = text[begin:]
    end = text.find("</i>") if "</i>" in text else text.find("</em>")
    if end < 0 or not text[3:end].strip():
        return "nothing in <i>...</i>"
    return unless(bool(text[end + 4 :].strip()), "nothing after the thesis")


@instruction("format:sub-bullets")
def sub_bullets(text: str, fixed: bool) -> str:
    """A `-` after each `*`; `fixed`: both begin lines, and there is at least one."""
    if fixed:
        firsts = "".join(one.strip()[:1] for one in text.split("\n"))
        parts = re.sub(r"[^*-]", "", firsts).split("*")[1:]
        if not parts:
            return "no bullet points"
    else:
        parts = text.split("*")[1:]
    return unless(all("-" in one for one in parts), "a bullet point without a sub-bullet")


@instruction("format:no_bullets_bullets")
def no_bullets_bullets(text: str) -> str:
    """Two sentences or more, then two `*` bullets or more and nothing else."""
    said = bullets = 0
    talking = True
    for line in text.split("\n"):
        if line.strip().startswith("*"):
            talking = False
            if said < 2:
                return f"{said} sentences before the bullet points, asked for 2"
            bullets += 1
        elif talking:
            found = sentences(line.strip())
            said, talking = (
                said + len(found),
                bool(found),
            )  # in the official checker an empty line ends the sentences
        else:
            return "text that is not a bullet point after the sentences"
    return at_least(bullets, 2, "bullet points")


@instruction("format:title_case")
def title_case(text: str) -> str:
    """Each word begins with a capital followed by lower case; words of mixed case pass."""
    for word in tokens(text):
        if word[0].islower() and (len(word) == 1 or word[1:].islower() or word[1:].isupper()):
            return f"{word[:20]!r} is not in title case"
    return ""


@instruction("format:output_template")
def output_template(text: str) -> str:
    """The three headings of the template."""
    missing = [one for one in ("My Answer:", "My Conclusion:", "Future Outlook:") if one not in text]
    return unless(not missing, f"without {' '.join(missing)}")


@instruction("format:no_whitespace")
def no_whitespace(text: str) -> str:
    """No space, tab or line break."""
    return unless(not any(char.isspace() for char in text), "with white space")


@instruction("repeat:repeat_change")
def repeat_change(text: str, prompt_to_repeat: str) -> str:
    """The request with another first word, and nothing else."""
    same = text.split()[1:] == prompt_to_repeat.split()[1:]
    return unless(same and text != prompt_to_repeat, "not the request with another first word")


@instruction("repeat:repeat_simple")
def repeat_simple(text: str) -> str:
    """The sentence of the instruction, and nothing else."""
    return unless(text.strip().lower() == SIMPLE, f"not the sentence {SIMPLE!r}")


@instruction("repeat:repeat_span")
def repeat_span(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> str:
    """The words `n_start` to `n_end` of the request, counted from 0, inclusive."""
    span = " ".join(prompt_to_repeat.split()[n_start : n_end + 1]).lower()
    return unless(text.strip().lower() == span, f"not the words {n_start} to {n_end}")
