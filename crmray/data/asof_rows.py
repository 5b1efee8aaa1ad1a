"""Rows of a table strictly before a date, as sorted arrays, and the sums that features are made of.

Shapes: N customers, R rows, W windows. Rows are sorted by customer, then oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DAY_US = 86_400_000_000
WINDOWS_DAYS = (30, 60, 90, 180, 365)


def windows(lookback_days: int) -> np.ndarray:
    """Feature windows in days, ascending: the usual ones within the lookback, and the lookback itself."""
    return np.array(sorted({*(days for days in WINDOWS_DAYS if days < lookback_days), lookback_days}), np.float64)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one table before the date."""

    code: np.ndarray
    """(R,) int64 index of the row's customer, ascending"""
    days: np.ndarray
    """(R,) float64 days before as_of, > 0, descending within a customer"""
    table: pa.Table
    """the other columns, R rows"""
    n: int
    """number of customers N"""

    def has(self, column: str) -> bool:
        """Whether the org has this column."""
        return column in self.table.column_names

    def number(self, column: str) -> np.ndarray:
        """(R,) float64, NaN where missing."""
        return self.table[column].cast(pa.float64()).to_numpy()

    def codes(self, column: str) -> tuple[np.ndarray, pa.Array]:
        """(R,) int64 index into the sorted distinct values (-1 = missing), and these values."""
        encoded = self.table[column].combine_chunks().dictionary_encode()
        order = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(order) + 1, np.int64)
        rank[order], rank[-1] = np.arange(len(order)), -1
        index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return rank[index], encoded.dictionary.take(pa.array(order))

    def where(self, mask: np.ndarray) -> Rows:
        """The rows of the mask, without the other columns."""
        empty = pa.table({})
        return Rows(code=self.code[mask], days=self.days[mask], table=empty, n=self.n)

    def sums(self, limits_days: Sequence[float] | np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """(N, W) counts, or sums of weights, of the rows at most that many days before as_of; limits ascend."""
        width = len(limits_days)
        bucket = np.searchsorted(np.asarray(limits_days, np.float64), self.days, side="left")
        counts = np.bincount(self.code * (width + 1) + bucket, weights, minlength=self.n * (width + 1))
        return counts.reshape(self.n, width + 1)[:, :width].cumsum(1)

    def totals(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(N,) counts, or sums of weights, of all rows."""
        return np.bincount(self.code, weights, minlength=self.n).astype(np.float64)

    def means(self, values: np.ndarray) -> np.ndarray:
        """(N,) mean of the values that are not NaN; NaN where there is none."""
        known = ~np.isnan(values)
        total = np.bincount(self.code[known], values[known], minlength=self.n)
        return ratio(total, np.bincount(self.code[known], minlength=self.n))

    def last(self, values: np.ndarray) -> np.ndarray:
        """(N,) value of each customer's newest row; NaN where there is none."""
        ends = np.searchsorted(self.code, np.arange(self.n), side="right")
        result = np.full(self.n, np.nan)
        some = ends > np.searchsorted(self.code, np.arange(self.n), side="left")
        result[some] = values[ends[some] - 1]
        return result

    def first(self, values: np.ndarray) -> np.ndarray:
        """(N,) value of each customer's oldest row; NaN where there is none."""
        starts = np.searchsorted(self.code, np.arange(self.n), side="left")
        some = np.searchsorted(self.code, np.arange(self.n), side="right") > starts
        result = np.full(self.n, np.nan)
        result[some] = values[starts[some]]
        return result


@dataclass(frozen=True, kw_only=True)
class View:
    """The customers and the date of one snapshot."""

    entities: pa.Array
    """(N,) string, sorted, distinct"""
    as_of_us: int
    """microseconds since 1970 UTC"""
    lookback_days: int
    """longest feature window"""
    horizon_days: int
    """length of the label window; the seasonal features look at the same window a year before"""

    @property
    def n(self) -> int:
        """Number of customers."""
        return len(self.entities)

    def rows(self, table: pa.Table, time: str, columns: Sequence[str] = ()) -> Rows:
        """The customers' rows strictly before as_of, with those of `columns` that the table has."""
        code, times_us, keep = self._before(table, time)
        chosen = table.select([name for name in columns if name in table.column_names])
        if not keep.all():
            chosen = chosen.filter(pa.array(keep))
            code, times_us = code[keep], times_us[keep]
        days = (self.as_of_us - times_us) / DAY_US
        if len(code) and not np.all((np.diff(code) > 0) | ((np.diff(code) == 0) & (np.diff(times_us) >= 0))):
            order = np.lexsort((times_us, code))
            code, days, chosen = code[order], days[order], chosen.take(pa.array(order))
        return Rows(code=code, days=days, table=chosen, n=self.n)

    def _before(self, table: pa.Table, time: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Customer index, time in µs, and the mask of the customers' rows before as_of."""
        code = pc.index_in(table["entity_id"], value_set=self.entities).fill_null(-1).to_numpy().astype(np.int64)
        times_us = micros_of(table[time])
        return code, times_us, (code >= 0) & (times_us < self.as_of_us)

    def days_before(self, times: pa.ChunkedArray) -> np.ndarray:
        """float64 days from each time to as_of; NaN where missing or not before as_of."""
        days = (self.as_of_us - pc.cast(times, pa.int64()).cast(pa.float64(), safe=False).to_numpy()) / DAY_US
        return np.where(days > 0, days, np.nan)


def micros_of(times: pa.ChunkedArray) -> np.ndarray:
    """int64 microseconds since 1970 UTC; the largest int64 where missing, so that it is before nothing."""
    return pc.cast(times, pa.int64()).fill_null(np.iinfo(np.int64).max).to_numpy()


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    below = np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)


def trend(recent: np.ndarray, before: np.ndarray) -> np.ndarray:
    """log2 of recent over before, both counted with one more: 0 = steady, 1 = doubled, -1 = halved."""
    return np.log2((np.maximum(recent, 0) + 1) / (np.maximum(before, 0) + 1))
