"""The lists that templates take names and wordings from; the ones of GSM-Symbolic are not released.

Names of the three lists are disjoint, so that two people of a question never share one.
"""

from __future__ import annotations

from fractions import Fraction

from posttrain.evaluate.tasks.symbolic.functions import WORDS, Worded

PARTS = {2: ("half", "halves"), 3: ("third", "thirds"), 4: ("quarter", "quarters")} | {
    n: (word, f"{word}s") for n, word in ((5, "fifth"), (6, "sixth"), (8, "eighth"), (10, "tenth"))
}


def _share(above: int, below: int, one: str = "one-") -> Worded:
    if (above, below) == (1, 2):
        return Worded("half", Fraction(1, 2))
    words = f"{one}{PARTS[below][0]}" if above == 1 else f"{WORDS[above]}-{PARTS[below][1]}"
    return Worded(words, Fraction(above, below))


def _ratio(above: int, below: int) -> Worded:
    return Worded(f"{above}/{below}", Fraction(above, below))


UNITS = [(1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 8), (1, 10)]
SHARES = [*UNITS, (2, 3), (3, 4), (2, 5), (3, 5), (4, 5)]
_TIMES = [Worded(f"{WORDS[n]} times", n) for n in range(3, 8)]

POOLS: dict[str, list[str] | list[Worded]] = {
    "names": str.split(
        "Alex Ariel Avery Blake Cameron Casey Charlie Dakota Devon Drew Eden Ellis Emery Finley Harper "
        "Hayden Jamie Jesse Jordan Kai Kendall Lee Logan Marley Morgan Noel Parker Pat Peyton Quinn Reese "
        "Riley River Robin Rowan Sage Sam Sasha Skyler Taylor"
    ),
    "names_male": str.split(
        "Ahmed Albert Arjun Benjamin Bruno Carlos Daniel David Diego Emeka Ethan Felix Fernando "
        "George Hassan Henry Hiroshi Ibrahim Ivan Jack Jacob Kenji Kwame Liam Lucas Mateo Michael Mohammed "
        "Nathan Oliver Omar Oscar Paul Pedro Rajesh Samuel Thomas Viktor Wei William"
    ),
    "names_female": str.split(
        "Abigail Aisha Alice Amara Anna Beatriz Camila Charlotte Chloe Clara Daniela Elena Emma "
        "Fatima Grace Hannah Ines Isabella Julia Keiko Layla Lucia Maria Mei Mia Nadia Naomi Nina Olga "
        "Olivia Priya Rosa Sakura Sofia Tanya Uma Victoria Yara Zainab Zoe"
    ),
    "cities": [
        "Boston",
        "Chicago",
        "Denver",
        "Lisbon",
        "London",
        "Nairobi",
        "Oslo",
        "Paris",
        "Rome",
        "Tokyo",
    ],
    "colors": str.split("black blue brown green orange pink purple red white yellow"),
    "currencies_sym": ["$", "€", "£", "₹"],
    "fruits": str.split("apple banana lemon mango melon orange peach pear plum"),
    "sports": str.split("baseball basketball football hockey tennis volleyball"),
    "weekdays": str.split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "length_lg": ["mile", "kilometer"],
    "weights_med": ["pound", "kilogram"],
    "weights_sm": ["ounce", "gram"],
    "fractions": [_share(*each) for each in UNITS],
    "fraction_alph": [_share(above, below, "a ") for above, below in UNITS[:5]],
    "fraction_alnum": [_share(*each) for each in SHARES] + [_ratio(*each) for each in SHARES],
    "fraction_nums": [_ratio(*each) for each in SHARES],
    "fraction_decimals": [Worded(f"0.{n}", Fraction(n, 10)) for n in range(1, 10)],
    "multiple": [Worded("double", 2), Worded("triple", 3), Worded("quadruple", 4)],
    "multiple_ice": [Worded("twice", 2), *_TIMES[:2]],
    "multi_times": [Worded("twice", 2), *_TIMES],
}
