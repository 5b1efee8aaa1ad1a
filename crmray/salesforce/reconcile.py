"""Proof that nothing is missing: COUNT() of the org against the rows that landed, slice by slice of CreatedDate.

CreatedDate never changes, so updates that go on meanwhile move no row from one slice to another. Where the org has
fewer rows than landed, records were deleted for good; where it has more, some were not read. Either way the ids of that
slice, and of no other, tell which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import ReconcileError
from crmray.salesforce.client import Client
from crmray.salesforce.merge import Whole, microseconds
from crmray.salesforce.slices import both, within
from crmray.salesforce.withheld import CREATED

SLICE_ROWS = 250_000
"""of one COUNT()"""
_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows created in a span of time, here and in the org."""

    start: datetime | None
    """None: from the beginning"""
    end: datetime | None
    """first moment after it; None for an object without CreatedDate: all rows"""
    landed: int
    """rows of it that were pulled, those included that are withheld from the lake"""
    there: int = -1
    """COUNT() of the org; -1 before it was asked"""

    def where(self, also: str) -> str:
        """SOQL condition of its rows."""
        return both(also, within(CREATED, self.start, self.end))

    def __str__(self) -> str:
        start = "the beginning" if self.start is None else f"{self.start:%Y-%m-%d}"
        return f"{CREATED} from {start} to {'now' if self.end is None else f'{self.end:%Y-%m-%dT%H:%M:%SZ}'}"


def slices(whole: Whole, until: datetime, *, by_time: bool, cap: int) -> list[Slice]:
    """Spans of whole days with at most `cap` landed rows each (one day may have more), together all before `until`."""
    if not by_time:
        return [Slice(start=None, end=None, landed=whole.rows + whole.withheld.num_rows)]
    per_day: dict[int, int] = {}
    last_us = int((until - _EPOCH) / timedelta(microseconds=1))
    for created in (*whole.created(), microseconds(whole.withheld["created"].to_numpy())):
        days = created[created < last_us] // _DAY_US
        first = int(days.min()) if len(days) else 0
        for index, count in enumerate(np.bincount(days - first).tolist()):
            if count:
                per_day[first + index] = per_day.get(first + index, 0) + count
    found: list[Slice] = []
    start, landed = None, 0
    for day in sorted(per_day):
        if landed and landed + per_day[day] > cap:
            end = _EPOCH + timedelta(days=day)
            found.append(Slice(start=start, end=end, landed=landed))
            start, landed = end, 0
        landed += per_day[day]
    return [*found, Slice(start=start, end=until, landed=landed)]


def count(client: Client, name: str, spans: list[Slice], where: str, *, all_rows: bool) -> Iterator[Slice]:
    """The slices with the org's counts; all_rows: archived ones too."""
    for span in spans:
        there = client.count(name, span.where(where), all_rows=all_rows)
        yield Slice(start=span.start, end=span.end, landed=span.landed, there=there)


def rows_of(whole: Whole, span: Slice, columns: Sequence[str]) -> pa.Table | None:
    """These columns of the landed rows of a slice; None when there are none."""
    by_time = span.start is not None or span.end is not None
    found = []
    for table in whole.columns([*columns, CREATED] if by_time else columns):
        found.append(table.filter(inside(span, table[CREATED])).select(list(columns)) if by_time else table)
    return pa.concat_tables(found) if found else None


def inside(span: Slice, times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Mask of the times within a slice."""
    mask = pc.is_valid(times)
    if span.start is not None:
        mask = pc.and_(mask, pc.greater_equal(times, pa.scalar(span.start, times.type)))
    if span.end is not None:
        mask = pc.and_(mask, pc.less(times, pa.scalar(span.end, times.type)))
    return mask


def refuse(name: str, counted: list[Slice]) -> None:
    """ReconcileError for the first slice whose counts differ."""
    odd = [span for span in counted if span.landed != span.there]
    if odd:
        more = f" (and {len(odd) - 1} more slices)" if len(odd) > 1 else ""
        raise ReconcileError(
            f"object {name}, {odd[0]}: got {odd[0].landed} rows, expected {odd[0].there} as the org counts them{more}; "
            "the last good run stays current; pull again"
        )
