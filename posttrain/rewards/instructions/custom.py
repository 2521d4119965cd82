"""IFBench, group `custom`: tasks that are their own instruction (Pyatkin et al. 2025, arXiv 2507.02833).

Left out: whether dates, countries and questions are right, which the official checkers do not check either.
"""

from __future__ import annotations

import csv
import io
import re
import string
import unicodedata

from posttrain.rewards.instructions.sentences import sentences
from posttrain.rewards.instructions.table import exactly, instruction, unless
from posttrain.rewards.instructions.words import MARKS, PUNCTUATION

CAPITALS = """
Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam
Warsaw London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana
Zagreb
"""
COUNTRIES = 52
CITY = ["ID", "Country", "City", "Year", "Count"]
PRODUCT = ("ProductID", "Category", "Brand", "Price", "Stock")
STUDENT = ("StudentID", "Subject", "Grade", "Semester", "Score")
QUESTION = re.compile(r"Question \d+[.|):;]?")
CHOICE = re.compile(r"[A-Ea-e][.|)]\s*\w")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@instruction("custom:multiples")
def multiples(text: str) -> str:
    """The numbers are 14, 21, 28, 35, 42, 49."""
    found = re.findall(r"\d+", text)
    return unless(found == [str(n) for n in range(14, 50, 7)], "not the multiples of 7 up to 50")


@instruction("custom:mcq_count_length")
def mcq_count_length(text: str) -> str:
    """Four questions of five choices each, each longer than the one before, and nothing before them."""
    if not text.startswith("Question"):
        return "does not begin with 'Question'"
    parts = [part for one in QUESTION.split(text) if (part := one.strip())]
    if len(parts) != 4:
        return exactly(len(parts), 4, "questions")
    lengths = []
    for part in parts:
        lines = [line.strip() for line in part.split("\n")]
        choices = [number for number, line in enumerate(lines) if CHOICE.match(line)]
        if len(choices) != 5:
            return exactly(len(choices), 5, "choices")
        lengths.append(len(" ".join(lines[: choices[0]]).strip()))
    longer = all(one < two for one, two in zip(lengths, lengths[1:], strict=False))
    return unless(longer, f"questions of {lengths} characters, each must be longer")


@instruction("custom:reverse_newline")
def reverse_newline(text: str) -> str:
    """From the line with Zimbabwe on, 52 lines or more in reverse alphabetical order."""
    lines = [line for one in text.split("\n") if (line := one.strip(MARKS))]
    begin = next((number for number, line in enumerate(lines) if "Zimbabwe" in line), None)
    if begin is None:
        return "without Zimbabwe"
    lines = [_ascii(line) for line in lines[begin:]]
    if len(lines) < COUNTRIES:
        return f"{len(lines)} lines, asked for {COUNTRIES}"
    return unless(lines == sorted(lines, reverse=True), "not in reverse order")


@instruction("custom:word_reverse")
def word_reverse(text: str) -> str:
    """One sentence that contains the bald eagle when its words are read in reverse."""
    words = " ".join(text.lower().strip().translate(PUNCTUATION).split()[::-1])
    if "bald eagle" not in words:
        return "without the bald eagle in reverse"
    return unless(words in sentences(words), "more than one sentence")


@instruction("custom:character_reverse")
def character_reverse(text: str) -> str:
    """The bald eagle, with its letters in reverse."""
    return unless("elgae dlab" in text.lower(), "without 'elgae dlab'")


@instruction("custom:sentence_alphabet")
def sentence_alphabet(text: str) -> str:
    """26 sentences that begin with a, b, c ..."""
    found = sentences(text)
    if len(found) != 26:
        return exactly(len(found), 26, "sentences")
    for number, sentence in enumerate(found):
        first = sentence.lstrip(string.punctuation + string.whitespace)[:1].lower()
        if first != chr(ord("a") + number):
            return f"sentence {number + 1} begins with {first!r}"
    return ""


@instruction("custom:european_capitals_sort")
def european_capitals_sort(text: str) -> str:
    """The capitals north of 45 degrees, from north to south, separated by commas."""
    found = [one.strip() for one in _ascii(text).split(",") if one.strip()]
    return unless(found == CAPITALS.split(), "not the capitals from north to south")


@instruction("custom:csv_city")
def csv_city(text: str) -> str:
    """A header and seven rows of five fields."""
    rows = _table(text, ",")
    if rows is None or len(rows) != 8:
        return f"{'no table' if rows is None else f'{len(rows)} lines'}, asked for 8"
    if rows[0] != CITY:
        return f"the header is not {','.join(CITY)}"
    return unless(all(len(row) == 5 for row in rows), "a row without five fields")


@instruction("custom:csv_special_character")
def csv_special_character(text: str, fixed: bool) -> str:
    """A header and fourteen rows of five fields, one field with a special character in double quotes.

    `compat` stops at the first row with such a field; `fixed` checks all rows.
    """
    if not _is_header(text, PRODUCT, r",[ \t]*"):
        return f"the header is not {','.join(PRODUCT)}"
    rows = _table(text.replace('"', '"""'), ",")
    if rows is None or len(rows) != 15:
        return f"{'no table' if rows is None else f'{len(rows)} lines'}, asked for 15"
    special = False
    for row in rows[1:]:
        if len(row) != 5:
            return "a row without five fields"
        special = special or any(_is_special(field) for field in row)
        if special and not fixed:
            break
    return unless(special, "no special character in double quotes")


@instruction("custom:csv_quotes")
def csv_quotes(text: str) -> str:
    """A header and three rows of five fields, separated by tabs, each field in double quotes."""
    if not _is_header(text, STUDENT, r"\t *"):
        return "the header is not " + " ".join(STUDENT)
    rows = _table(text.replace('"', '"""'), "\t")
    if rows is None or len(rows) != 4:
        return f"{'no table' if rows is None else f'{len(rows)} lines'}, asked for 4"
    if any(len(row) != 5 for row in rows):
        return "a row without five fields"
    fields = [field.strip() for row in rows for field in row]
    quoted = all(field.startswith('"') and field.endswith('"') for field in fields)
    return unless(quoted, "a field without double quotes")


@instruction("custom:date_format_list")
def date_format_list(text: str, fixed: bool) -> str:
    """Dates YYYY-MM-DD of Napoleon's life with commas between them; `compat` lets month and day be 00."""
    for date in (one.strip() for one in text.strip().split(",")):
        if not DATE.fullmatch(date):
            return f"{date[:20]!r} is not a date YYYY-MM-DD"
        year, month, day = (int(part) for part in date.split("-"))
        if not 1769 <= year <= 1821 or month > 12 or (month > 0 and day > DAYS[month - 1]):
            return f"{date} is not a day of his life"
        if fixed and 0 in (month, day):
            return f"{date} is not a day"
    return ""


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def _is_header(text: str, names: tuple[str, ...], between: str) -> bool:
    pattern = between.join(rf'(?:{name}|"{name}")' for name in names)
    return re.fullmatch(pattern, text.partition("\n")[0].strip()) is not None


def _is_special(field: str) -> bool:
    """Whether a field is in double quotes and contains more than letters, digits and space."""
    line = field.partition("\n")[0]
    return line.startswith('"') and re.search(r"[^\w\s]", line[1 : line.rfind('"')]) is not None


def _table(text: str, delimiter: str) -> list[list[str]] | None:
    """The rows of a table; None if the text is not one (a NUL, an endless field)."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return None
