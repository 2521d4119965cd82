"""Dates of the Gregorian calendar: weekdays, days after a date, days between dates.

Days are counted by a formula of its own, so nothing depends on a time zone or on the machine.
"""

from __future__ import annotations

from random import Random

from posttrain.data.problems.base import Family

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
YEARS = (1900, 2100)

Date = tuple[int, int, int]


def make(rng: Random, level: int) -> tuple[str, str]:
    """`Today is Monday. Which weekday is it 45 days from now?`"""
    date = _date(rng)
    if level == 1:
        today, days = rng.randrange(7), rng.randint(1, 999)
        asked = f"Today is {WEEKDAYS[today]}. Which weekday is it {days} days from now?"
        return asked, WEEKDAYS[(today + days) % 7]
    if level == 2:
        days = rng.randint(1, 60)
        asked = f"Which date is {days} days after {iso(date)}? Answer as YYYY-MM-DD."
        return asked, iso(after(date, days))
    if level == 3:
        return f"Which weekday is {iso(date)}?", WEEKDAYS[(ordinal(date) - 1) % 7]
    if level == 4:
        first, last = sorted((date, _date(rng)))
        asked = f"How many days are there from {iso(first)} to {iso(last)}?"
        return asked, str(ordinal(last) - ordinal(first))
    days, weekday = rng.randint(1, 900), rng.randrange(7)
    found = after(date, days)
    while (ordinal(found) - 1) % 7 != weekday:
        found = after(found, 1)
    asked = (
        f"Which date is the first {WEEKDAYS[weekday]} that is at least {days} days after "
        f"{iso(date)}? Answer as YYYY-MM-DD."
    )
    return asked, iso(found)


def ordinal(date: Date) -> int:
    """Days since the day before 0001-01-01, a Monday."""
    year, month, day = date
    past = year - 1
    leaps = past // 4 - past // 100 + past // 400
    return 365 * past + leaps + sum(days_of(year, m) for m in range(1, month)) + day


def after(date: Date, days: int) -> Date:
    """The date `days` days later."""
    year, month, day = date
    day += days
    while day > days_of(year, month):
        day -= days_of(year, month)
        month += 1
        if month > 12:
            year, month = year + 1, 1
    return year, month, day


def days_of(year: int, month: int) -> int:
    """Days of a month."""
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return MONTHS[month - 1] + (month == 2 and leap)


def iso(date: Date) -> str:
    """`2024-02-29`"""
    return "{:04d}-{:02d}-{:02d}".format(*date)


def _date(rng: Random) -> Date:
    year, month = rng.randint(*YEARS), rng.randint(1, 12)
    return year, month, rng.randint(1, days_of(year, month))


FAMILY = Family("calendar", make, "exact")
