"""Cutting an object by time so that one query job reads a bounded number of rows, and SOQL's way to write times.

Source: SOQL and SOSL Reference, "Date Formats and Date Literals". Row counts by COUNT(), ends by ORDER BY … LIMIT 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime, timezone

from crmray.salesforce.client import Client

SLICE_ROWS = 1_000_000
"""of one query job: what is lost when the org loses a job, and asked again"""
FINEST_S = 2
"""slices are not cut finer: a bulk load may give many rows the same time"""
MOST_PIECES = 64
"""that a slice is cut into at once"""


def literal(moment: datetime) -> str:
    """A time in SOQL, in UTC to the millisecond, rounded down."""
    utc = moment.astimezone(timezone.utc)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"


def both(*conditions: str) -> str:
    """SOQL conditions joined by AND; empty ones are left out."""
    there = [condition for condition in conditions if condition]
    return there[0] if len(there) == 1 else " AND ".join(f"({condition})" for condition in there)


def within(field: str, start: datetime | None, end: datetime | None) -> str:
    """Condition start <= field < end; None: open."""
    return both(
        f"{field} >= {literal(start)}" if start else "",
        f"{field} < {literal(end)}" if end else "",
    )


def plan(
    client: Client, name: str, field: str, until: datetime, where: str, cap: int, *, all_rows: bool = False
) -> list[tuple[str, int]]:
    """(condition, rows now) of slices that together hold every row with `field` < until, of about `cap` rows at most.

    The first has no lower end, so no row falls out below. where: a further condition on all rows; all_rows: archived
    ones too.
    """
    total = client.count(name, both(where, within(field, None, until)), all_rows=all_rows)
    if total <= cap:
        return [(both(where, within(field, None, until)), total)]
    first = next(client.query(_first(name, field, both(where, within(field, None, until))), all_rows=all_rows))[field]
    low = datetime.fromisoformat(str(first))

    def count(start: datetime, end: datetime) -> int:
        return client.count(name, both(where, within(field, start, end)), all_rows=all_rows)

    parts = _cut(low, until, total, cap, count)
    ends = [(None if index == 0 else start, end, rows) for index, (start, end, rows) in enumerate(parts)]
    return [(both(where, within(field, start, end)), rows) for start, end, rows in ends]


def _first(name: str, field: str, where: str) -> str:
    return f"SELECT {field} FROM {name} WHERE {where} ORDER BY {field} LIMIT 1"


def _cut(
    start: datetime, end: datetime, rows: int, cap: int, count: Callable[[datetime, datetime], int]
) -> list[tuple[datetime, datetime, int]]:
    """Equal times, and their parts again, until none has more than `cap` rows; small neighbours are joined."""
    seconds = int((end - start).total_seconds())
    if rows <= cap or seconds < FINEST_S:
        return [(start, end, rows)]
    pieces = max(2, min(MOST_PIECES, round(rows / cap), seconds))
    inner = [(start + (end - start) * index / pieces).replace(microsecond=0) for index in range(1, pieces)]
    bounds = [start, *inner, end]
    found: list[tuple[datetime, datetime, int]] = []
    left = rows
    for low, high in itertools.pairwise(bounds):
        inside = max(0, left) if high == end else count(low, high)
        left -= inside
        for piece in _cut(low, high, inside, cap, count):
            if found and found[-1][2] + piece[2] <= cap:
                before = found.pop()
                piece = (before[0], piece[1], before[2] + piece[2])
            found.append(piece)
    return found
