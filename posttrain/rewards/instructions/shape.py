"""IFEval: case, punctuation, beginnings and ends, two responses (Zhou et al. 2023, arXiv 2311.07911)."""

from __future__ import annotations

import re

from posttrain.rewards.instructions.keywords import language_of
from posttrain.rewards.instructions.table import Relation, compare, instruction, unless
from posttrain.rewards.instructions.words import tokens

WORDS = re.compile(r"\w+(?:['\u2019-]\w+)*")
COMMAS = re.compile("[,\uff0c\u060c\u3001]")


@instruction("change_case:capital_word_frequency")
def capital_word_frequency(text: str, capital_frequency: int, capital_relation: Relation, fixed: bool) -> str:
    """Words in capitals, `I` and `A` among them. `compat` counts Treebank tokens (`DON'T` is two)."""
    words = WORDS.findall(text) if fixed else tokens(text)
    count = sum(1 for word in words if word.isupper())
    return compare(count, capital_relation, capital_frequency, "words in capitals")


@instruction("change_case:english_capital")
def english_capital(text: str, fixed: bool) -> str:
    """English in capitals only. `compat` detects the language of the capitals, often wrongly as German."""
    if not text.isupper():
        return "not in capitals only"
    return _english(text, fixed)


@instruction("change_case:english_lowercase")
def english_lowercase(text: str, fixed: bool) -> str:
    """English in lower case only."""
    if not text.islower():
        return "not in lower case only"
    return _english(text, fixed)


def _english(text: str, fixed: bool) -> str:
    found = language_of(text.lower() if fixed else text)
    return unless(found in ("en", None), f"in the language {found!r}, asked for 'en'")


@instruction("punctuation:no_comma")
def no_comma(text: str, fixed: bool) -> str:
    """No comma; `fixed`: nor a Chinese, Japanese or Arabic one."""
    return unless(not (COMMAS.search(text) if fixed else "," in text), "with a comma")


@instruction("startend:end_checker")
def end_checker(text: str, end_phrase: str, fixed: bool) -> str:
    """The text ends with the phrase, ignoring quotes; `fixed`: in the same case."""
    end, phrase = text.strip().strip('"'), end_phrase.strip()
    if not fixed:
        end, phrase = end.lower(), phrase.lower()
    return unless(end.endswith(phrase), f"does not end with {end_phrase.strip()!r}")


@instruction("startend:quotation")
def quotation(text: str, fixed: bool) -> str:
    """The text is in double quotes; `fixed`: with something between them."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return unless(quoted and (not fixed or bool(text[1:-1].strip())), "not in double quotes")


@instruction("combination:two_responses")
def two_responses(text: str) -> str:
    """Two different responses with `******` between them."""
    parts = [one.strip() for one in text.split("******")]
    if any(not one for one in parts[1:-1]):
        return "an empty response between two dividers"
    parts = [one for one in parts if one]
    if len(parts) != 2:
        return f"{len(parts)} responses, asked for exactly 2"
    return unless(parts[0] != parts[1], "the two responses are the same")


@instruction("combination:repeat_prompt")
def repeat_prompt(text: str, prompt_to_repeat: str, fixed: bool) -> str:
    """Begins with the request; `fixed`: word for word in the same case, with an answer after it."""
    text, prompt = text.strip(), prompt_to_repeat.strip()
    if not fixed:
        text, prompt = text.lower(), prompt.lower()
    if not text.startswith(prompt):
        return "does not begin with the request"
    return unless(not fixed or bool(text[len(prompt) :].strip()), "no answer after the request")
