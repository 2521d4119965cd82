r"""Units of measure, currencies and counted things after a number.

A unit is its dimensions and its scale (cm: length, 1/100). Counted things ("dogs") are dimensions of their
own name. Left out: prefixes and units that the table does not name; conversions with an offset (°C and °F are
two dimensions).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """`dimensions` are sorted (name, power) pairs; one unit is `scale` base units."""

    dimensions: tuple[tuple[str, int], ...]
    scale: Fraction = Fraction(1)


TABLE = """
length 1 | m meter meters metre metres
length 1000 | km kms kilometer kilometers kilometre kilometres
length 1/100 | cm cms centimeter centimeters centimetre centimetres
length 1/1000 | mm millimeter millimeters millimetre millimetres
length 1/1000000000 | nm nanometer nanometers
length 381/1250 | ft foot feet
length 127/5000 | in inch inches
length 1143/1250 | yd yds yard yards
length 201168/125 | mi mile miles
time 1 | s sec secs second seconds
time 60 | min mins minute minutes
time 3600 | h hr hrs hour hours
time 86400 | day days
time 604800 | week weeks
month 1 | month months
month 12 | year years yr yrs
mass 1 | g gm gram grams
mass 1000 | kg kgs kilogram kilograms
mass 1/1000 | mg milligram milligrams
mass 1000000 | tonne tonnes
pound 1 | lb lbs pound pounds
pound 1/16 | oz ounce ounces
ton 1 | ton tons
volume 1 | L l liter liters litre litres
volume 1/1000 | mL ml milliliter milliliters millilitre millilitres
gallon 1 | gal gallon gallons
gallon 1/4 | quart quarts
gallon 1/8 | pint pints
cup 1 | cup cups
dollar 1 | ¤ dollar dollars usd buck bucks
dollar 1/100 | cent cents ¢
euro 1 | € euro euros eur
sterling 1 | £ gbp
yen 1 | ¥ yen
rupee 1 | ₹ rupee rupees rs
angle 1 | ° deg degree degrees
radian 1 | rad radian radians
celsius 1 | °c celsius
fahrenheit 1 | °f fahrenheit
kelvin 1 | kelvin kelvins
newton 1 | N newton newtons
joule 1 | J joule joules
joule 1000 | kJ kilojoule kilojoules
watt 1 | W watt watts
watt 1000 | kW kilowatt kilowatts
volt 1 | V volt volts
ampere 1 | ampere amperes amp amps
ohm 1 | ohm ohms
pascal 1 | Pa pascal pascals
pascal 1000 | kPa
hertz 1 | Hz hertz
mole 1 | mol mole moles
acre 1 | acre acres
hectare 1 | hectare hectares
person 1 | person persons people
unit 1 | unit units
child 1 | child children
man 1 | man men
woman 1 | woman women
"""
UNITS: dict[str, Unit] = {}
for _line in TABLE.strip().splitlines():
    _head, _, _names = _line.partition("|")
    _dimension, _scale = _head.split()
    for _name in _names.split():
        UNITS[_name] = Unit(((_dimension, 1),), Fraction(_scale))
UNITS |= {f"degrees {name}": UNITS[name] for name in ("celsius", "fahrenheit")}
UNITS |= {
    "mph": Unit((("length", 1), ("time", -1)), Fraction(201168, 125) / 3600),
    "kph": Unit((("length", 1), ("time", -1)), Fraction(1000, 3600)),
    "kmh": Unit((("length", 1), ("time", -1)), Fraction(1000, 3600)),
    "cc": Unit((("length", 3),), Fraction(1, 10**6)),
}
AMBIGUOUS = frozenset(str.split("m g s h l L N J W V"))
"""Single letters that are a unit only after a number and a space: they may be variables."""
SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "millions": 10**6,
    "billions": 10**9,
    "thousands": 10**3,
}
STOP = frozenset(
    str.split(
        "and or not no is are was were be if else then than to from of the a an in at by on with for it "
        "that this these its wrong false true maybe about around approximately roughly nearly almost more "
        "less fewer least most exactly only over under above below plus minus times squared cubed "
        "factorial percent percents half halves third thirds quarter quarters hundred thousand million "
        "billion trillion dozen dozens score mod modulo divided multiplied but because since where when "
        "while hence thus so infinity infinite negative positive answer final correct incorrect either "
        "neither both none all each any some many few lambda import sin cos tan log sqrt exp pi raised "
        "power per cent solution solutions undefined unknown something anything nothing between inclusive "
        "exclusive base binary otherwise wait actually hmm must should could would may might can cannot "
        "does do did has have had"
    )
)
WORD = re.compile(r"[A-Za-z€£¥₹¢°¤]+")
FACTOR = re.compile(
    r"(?:(square|sq\.?|cubic|cu\.?)\s+)?([A-Za-z€£¥₹¢°¤][A-Za-z° ]*?)\.?"
    r"(?:\s*\^\s*\{?([0-9])\}?|\s+(squared|cubed))?"
)
SQUARES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}


def parse_unit(text: str, *, in_text: bool) -> Unit | None:
    r"""The unit that `text` names, or None.

    `in_text`: it was in `\text{}`, where up to three ordinary words may name the things counted.
    """
    text = text.strip().rstrip(".").strip()
    if text in UNITS:
        return UNITS[text]
    if len(text) > 60:
        return None
    dimensions: dict[str, int] = {}
    scale = Fraction(1)
    for index, part in enumerate(re.split(r"\s*/\s*|\s+per\s+", text)):
        factor = _factor(part, in_text)
        if factor is None:
            return None
        sign = 1 if index == 0 else -1
        for name, power in factor.dimensions:
            dimensions[name] = dimensions.get(name, 0) + sign * power
        scale *= factor.scale**sign
    return Unit(tuple(sorted((n, p) for n, p in dimensions.items() if p)), scale)


def _factor(text: str, in_text: bool) -> Unit | None:
    match = FACTOR.fullmatch(text.strip())
    if match is None:
        return None
    before, name, power, after = match.groups()
    exponent = int(power) if power else SQUARES[(before or after or "").rstrip(".")] if before or after else 1
    unit = UNITS.get(name) or UNITS.get(name.lower()) or _counted(name, in_text)
    if unit is None or not 1 <= exponent <= 4:
        return None
    return Unit(tuple((n, p * exponent) for n, p in unit.dimensions), unit.scale**exponent)


def _counted(name: str, in_text: bool) -> Unit | None:
    words = name.lower().split()
    if not words or len(words) > 3 or any(word in STOP for word in words):
        return None
    for word in words:
        if not in_text and (len(word) < 4 or not set(word) & set("aeiou")):
            return None
        if len(word) < 2:
            return None
    return Unit(((" ".join(_singular(word) for word in words), 1),))


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
