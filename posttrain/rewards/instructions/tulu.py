r"""The one instruction of a row of Tulu 3's RLVR data: a JSON object with a function and its arguments.

    {"func_name": "validate_word_constraint", "N": 80, "quantifier": "around", ...}       the others null

allenai/RLVR-IFeval and the mixture with GSM8K and MATH (arXiv 2411.15124, section 6.2) store it as text in
`ground_truth`. The 25 instructions are of IFEval's kinds but have other ids: counts are exact where IFEval
compares, and `around` allows a tenth. They are checked by what the prompt says, as in the published functions
(open-instruct, if_functions.py), except for texts that those accept by accident (`****` as highlighted
sections) or can never accept (a keyword of two words). Left out: the later data with several instructions per
row, which names ids and kwargs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

from posttrain.rewards.instructions.keywords import language_of
from posttrain.rewards.instructions.sentences import sentences
from posttrain.rewards.instructions.table import (
    Instruction,
    at_least,
    bind,
    exactly,
    instruction,
    unless,
    whole_word,
)

TULU: dict[str, Instruction] = {}
Quantifier = Literal["at least", "around", "at most"]


def decode(answer: Any, prompt: str | None = None) -> tuple[Instruction, dict[str, Any]]:
    """The instruction in `answer` (JSON text or an object) and its arguments. Raises ValueError."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            answer = None
    if not isinstance(answer, dict) or "func_name" not in answer:
        raise ValueError("the answer must be a JSON object with func_name and its arguments")
    kwargs = {key: value for key, value in answer.items() if key != "func_name"}
    if isinstance(kwargs.get("options"), str):
        kwargs["options"] = [kwargs["options"]]
    return bind(answer["func_name"], kwargs, prompt, TULU)


def quantified(count: int, quantifier: str, wanted: int, slack: int, what: str) -> str:
    """Why `count` is not at least, at most or around (within `slack`) `wanted`; empty if it is."""
    followed = {
        "at least": count >= wanted,
        "at most": count <= wanted,
        "around": abs(count - wanted) <= slack,
    }
    return unless(followed[quantifier], f"{count} {what}, asked for {quantifier} {wanted}")


def _tenth(number: int) -> int:
    return max(round(number * 0.1), 1)


def _add(name: str) -> Callable:
    return instruction(name, TULU)


@_add("verify_keywords")
def keywords(text: str, keyword_list: list[str]) -> str:
    missing = [one for one in keyword_list if one.lower() not in text.lower()]
    return unless(not missing, f"without the keywords {', '.join(missing)}")


@_add("verify_keyword_frequency")
def keyword_frequency(text: str, word: str, N: int) -> str:
    return exactly(len(whole_word(word).findall(text)), N, f"times {word!r}")


@_add("validate_forbidden_words")
def forbidden_words(text: str, forbidden_words: list[str]) -> str:
    found = [one for one in forbidden_words if one.lower() in text.lower()]
    return unless(not found, f"with the forbidden words {', '.join(found)}")


@_add("verify_letter_frequency")
def letter_frequency(text: str, letter: str, N: int) -> str:
    return exactly(text.count(letter), N, f"times the letter {letter!r}, in this case")


@_add("validate_response_language")
def response_language(text: str, language: str) -> str:
    found = language_of(text)
    return unless(found == language, f"in the language {found!r}, asked for {language!r}")


@_add("verify_paragraph_count")
def paragraph_count(text: str, N: int) -> str:
    parts = text.split("* * *")
    if not all(part.strip() for part in parts):
        return "an empty paragraph beside a divider"
    return exactly(len(parts), N, "paragraphs divided by * * *")


@_add("validate_word_constraint")
def words(text: str, N: int, quantifier: Quantifier) -> str:
    return quantified(len(text.split()), quantifier, N, _tenth(N), "words")


@_add("verify_sentence_constraint")
def sentence_count(text: str, N: int, quantifier: Quantifier) -> str:
    return quantified(len(sentences(text)), quantifier, N, 1, "sentences")


@_add("validate_paragraphs")
def paragraphs(text: str, N: int, first_word: str, i: int) -> str:
    parts = text.split("\n\n")
    if len(parts) != N or not 1 <= i <= N:
        return exactly(len(parts), N, "paragraphs") or f"no paragraph {i}"
    return unless(parts[i - 1].strip().startswith(first_word), f"paragraph {i} begins otherwise")


@_add("verify_postscript")
def postscript(text: str, postscript_marker: str) -> str:
    follows = text.partition(postscript_marker)[2].strip()
    return unless(bool(follows), f"nothing after {postscript_marker!r}")


@_add("validate_placeholders")
def placeholders(text: str, N: int) -> str:
    return at_least(len(re.findall(r"\[[^\[\]\n]+\]", text)), N, "placeholders")


@_add("verify_bullet_points")
def bullet_points(text: str, N: int) -> str:
    lines = [line.strip() for line in text.split("\n")]
    return exactly(sum(line.startswith(("*", "-")) for line in lines), N, "bullet points")


@_add("validate_title")
def title(text: str) -> str:
    return unless(bool(re.search(r"<<[^<>\n]+>>", text)), "without a title in << >>")


@_add("validate_choice")
def choice(text: str, options: list[str]) -> str:
    return unless(any(one in text for one in options), "none of the options")


@_add("validate_highlighted_sections")
def highlighted_sections(text: str, N: int) -> str:
    return at_least(len(re.findall(r"\*[^*\n]+\*", text)), N, "highlighted sections")


@_add("validate_sections")
def sections(text: str, N: int, section_splitter: str) -> str:
    heads = re.findall(rf"{re.escape(section_splitter)}\s?\d", text, re.IGNORECASE)
    return at_least(len(heads), N, f"sections marked {section_splitter} X")


@_add("validate_json_format")
def json_format(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"[:80]
    return ""


@_add("validate_repeat_prompt")
def repeat_prompt(text: str, original_prompt: str) -> str:
    return unless(text.startswith(original_prompt), "does not begin with the request")


@_add("validate_two_responses")
def two_responses(text: str) -> str:
    parts = [part.strip() for part in text.split("******")]
    if len(parts) != 2:
        return exactly(len(parts), 2, "responses divided by ******")
    return unless(parts[0] != parts[1], "the same response twice")


@_add("validate_uppercase")
def uppercase(text: str) -> str:
    return unless(text == text.upper(), "with lower-case letters")


@_add("validate_lowercase")
def lowercase(text: str) -> str:
    return unless(text == text.lower(), "with capital letters")


@_add("validate_frequency_capital_words")
def capital_words(text: str, N: int, quantifier: Quantifier) -> str:
    count = len(re.findall(r"\b[A-Z]+\b", text))
    return quantified(count, quantifier, N, _tenth(N), "words in capitals")


@_add("validate_end")
def end(text: str, end_phrase: str) -> str:
    return unless(text.rstrip().endswith(end_phrase.rstrip()), "ends otherwise")


@_add("validate_quotation")
def quotation(text: str) -> str:
    text = text.strip()
    marks = len(text) > 1 and text.startswith('"') and text.endswith('"')
    return unless(marks, "not in double quotation marks")


@_add("validate_no_commas")
def no_commas(text: str) -> str:
    return unless("," not in text, "with a comma")
