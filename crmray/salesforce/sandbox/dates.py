"""SOQL's date literals: TODAY, LAST_N_DAYS:30, THIS_MONTH and the others, as half-open ranges of days.

The org's time zone is UTC, its weeks begin on Sunday, its fiscal year in January. Source: "Date Formats and Date
Literals in WHERE", SOQL and SOSL Reference.
"""

from __future__ import annotations

import re
from datetime import date, timedelta

MONTHS = {"MONTH": 1, "QUARTER": 3, "FISCAL_QUARTER": 3, "YEAR": 12, "FISCAL_YEAR": 12}
"""months of a period"""
UNITS = "DAY|WEEK|MONTH|QUARTER|FISCAL_QUARTER|YEAR|FISCAL_YEAR"
COUNTED = re.compile(rf"^(?:(LAST|NEXT)_N_({UNITS})S|N_({UNITS})S_AGO)$")
PLAIN = re.compile(rf"^(LAST|THIS|NEXT)_({UNITS.removeprefix('DAY|')})$")
DAYS = {"YESTERDAY": (-1, 0), "TODAY": (0, 1), "TOMORROW": (1, 2), "LAST_90_DAYS": (-90, 1), "NEXT_90_DAYS": (1, 91)}
"""days from today, the end excluded"""


def date_range(name: str, count: int, today: date) -> tuple[date, date] | None:
    """First day and the day after the last; `count` is the n of LAST_N_DAYS:n, else -1. None for no date literal.

    Raises OverflowError where the range leaves the calendar.
    """
    if count < 0 and name in DAYS:
        low, high = DAYS[name]
        return today + timedelta(low), today + timedelta(high)
    if count < 0 and (match := PLAIN.match(name)):
        back = {"LAST": -1, "THIS": 0, "NEXT": 1}[match[1]]
        return _start(match[2], today, back), _start(match[2], today, back + 1)
    if count >= 0 and (match := COUNTED.match(name)):
        if match[3]:
            return _start(match[3], today, -count), _start(match[3], today, 1 - count)
        unit = match[2]
        if match[1] == "LAST":
            # days count up to now, longer periods leave out the current one
            return _start(unit, today, -count), _start(unit, today, 1 if unit == "DAY" else 0)
        return _start(unit, today, 1), _start(unit, today, 1 + count)
    return None


def _start(unit: str, today: date, step: int) -> date:
    """First day of the period `step` periods after today's."""
    if unit == "DAY":
        return today + timedelta(step)
    if unit == "WEEK":
        return today - timedelta((today.weekday() + 1) % 7) + timedelta(7 * step)
    months = MONTHS[unit]
    number = 12 * today.year + (today.month - 1) // months * months + months * step
    if not 12 <= number < 12 * 10_000:
        raise OverflowError("date out of range")
    return date(number // 12, number % 12 + 1, 1)
