"""The season of an org's orders, by calendar month, and how long its customers last: what a level learned on one date
needs before it holds for another.

`orders_by_month` (N, 12) of the rows of one date, each customer's orders in the 365 days before by calendar month, adds
up to the org's orders of that year where the lookback is a year or more: everybody who ordered is in the rows. So each
date has an index: orders in the months of its horizon, a year before, over the mean of the year. How far to believe the
index is learned: by how far it told, date by date, how much the customers then bought. And the customers of an earlier
date, looked up on the validation date, show what is left of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.columns import numbers_of
from crmray.models.value_targets import PURCHASES, SPEND

BY_MONTH = "orders_by_month"
YEAR_DAYS, MONTHS = 365, 12
PSEUDO_ORDERS = 100.0
"""orders spread evenly over the year that the season is shrunk with: few orders tell of no season"""
RETENTION_LIMITS = (0.05, 1.0)
"""of the spend of one horizon that comes again in the next: those who are customers today do not grow for ever"""
PRIOR_STRENGTH, PRIOR_VARIANCE = 0.5, 0.25
"""of the exponent of the index, before it is seen how well the index told"""
DISPERSION = 2.0
"""variance over mean of the orders of many customers: they do not buy independently of each other"""
_MONTH_DAYS = np.array([31, 28.25, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


@dataclass(frozen=True, kw_only=True)
class Season:
    """Orders per day in each calendar month over the mean of the year."""

    factors: tuple[float, ...]
    """January first; 1 = as in the mean of the year"""

    @staticmethod
    def of_months(orders: np.ndarray) -> Season:
        """From orders by calendar month (12,)."""
        shares = _MONTH_DAYS / _MONTH_DAYS.sum()
        factors = (orders + PSEUDO_ORDERS * shares) / ((orders.sum() + PSEUDO_ORDERS) * shares)
        return Season(factors=tuple(factors.tolist()))

    def mean(self, start: datetime, days: float) -> float:
        """Mean factor of the days [start, start + days)."""
        first = np.datetime64(start.astimezone(timezone.utc).replace(tzinfo=None), "D")
        dates = first + np.arange(max(1, round(days)))
        return float(np.array(self.factors)[dates.astype("datetime64[M]").astype(int) % MONTHS].mean())


def fit(train: pa.Table, validation: pa.Table, *, horizon_days: int, lookback_days: int) -> Season:
    """The season to apply from the validation date on; flat where the history before it, or the lookback, is shorter
    than a year: then who bought in the far months alone is not in the rows, and these months would look empty.

    The months of the year before it, without the growth of the org from year to year (a year's orders at the first date
    against those at the last), to the power by which the indexes of the dates explain the orders that came: a ridge
    regression of log(orders that came / orders of the year before) on log(index).
    """
    flat = Season(factors=(1.0,) * MONTHS)
    if lookback_days < YEAR_DAYS:
        return flat
    (end,) = dates_of(validation)
    rows = {
        date: train.filter(pc.equal(train["as_of"], pa.scalar(date, train["as_of"].type))) for date in dates_of(train)
    }
    years = {date: _months(one) for date, one in (rows | {end: validation}).items()}
    known = {date: orders for date, orders in years.items() if orders is not None and orders.sum() > 0}
    if end not in known:
        return flat
    first = min(known)
    grown = np.log(known[end].sum() / known[first].sum()) / max(1, (end - first).days)
    came = {date: float(numbers_of((rows | {end: validation})[date], PURCHASES).sum()) for date in known}
    told = [date for date in known if came[date] > 0]
    index = np.array([np.log(Season.of_months(known[date]).mean(date, horizon_days)) for date in told])
    rate = np.array([np.log(came[date] / known[date].sum()) for date in told])
    strength = _slope(index, rate, DISPERSION / max(1.0, min(came[date] for date in told)) if told else 1.0)
    start = end.timetuple().tm_yday
    middle = np.cumsum(_MONTH_DAYS) - _MONTH_DAYS / 2
    steady = Season.of_months(known[end] * np.exp(-grown * ((middle - start) % YEAR_DAYS)))
    factors = np.array(steady.factors) ** strength
    return Season(factors=tuple((factors / np.average(factors, weights=_MONTH_DAYS)).tolist()))


def _months(rows: pa.Table) -> np.ndarray | None:
    """(12,) orders of the year before the date of the rows; None where the history is shorter."""
    ages = numbers_of(rows, "tenure_purchase_days")
    if np.isnan(ages).all() or np.nanmax(ages) < YEAR_DAYS:
        return None
    counts = rows[BY_MONTH].combine_chunks()
    return counts.flatten().to_numpy(zero_copy_only=False).reshape(-1, MONTHS).sum(0).astype(np.float64)


def _slope(x: np.ndarray, y: np.ndarray, noise: float) -> float:
    """Of y on x, with the prior above and this variance of y; 0..1."""
    penalty = noise / PRIOR_VARIANCE
    x, y = x - x.mean() if len(x) else x, y - y.mean() if len(y) else y
    return float(np.clip((x @ y + penalty * PRIOR_STRENGTH) / (x @ x + penalty), 0.0, 1.0))


def dates_of(rows: pa.Table) -> list[datetime]:
    """Distinct as_of dates, ascending."""
    return sorted(pc.unique(rows["as_of"]).drop_null().to_pylist())


def retention(train: pa.Table, validation: pa.Table, season: Season, horizon_days: int) -> float:
    """Share of a horizon's spend that the same customers spend in the next one, the season taken out.

    Customers of each training date, on the validation date: who is not in its rows any more spends nothing there. The
    geometric mean over the dates. A date less than a horizon before, or without spend, does not count; without any date
    it is the upper limit.

    Whoever comes back after more than the lookback without a purchase is missed, so a short lookback tells too low a
    retention. In simulated histories (BG/NBD-like, orders every 20 to 120 days, a horizon of 90): by 0.00 to 0.02 with
    a lookback of 365 days, 0.01 to 0.06 with 180, and 0.02 to 0.15 with 90.
    """
    (end,) = dates_of(validation)
    spend = numbers_of(validation, SPEND)
    logs, weights = [], []
    for start in dates_of(train):
        gap_days = (end - start).days
        then = train.filter(pc.equal(train["as_of"], pa.scalar(start, train["as_of"].type)))
        at = pc.index_in(validation["entity_id"], value_set=then["entity_id"].combine_chunks())
        still = ~np.asarray(pc.is_null(at))
        before = float(np.nansum(numbers_of(then, SPEND))) / season.mean(start, horizon_days)
        after = float(spend[still].sum()) / season.mean(end, horizon_days)
        if gap_days >= horizon_days and before > 0 and after > 0:
            logs.append(np.log(after / before) * horizon_days / gap_days)
            weights.append(before)
    if not logs:
        return RETENTION_LIMITS[1]
    return float(np.clip(np.exp(np.average(logs, weights=weights)), *RETENTION_LIMITS))


def lifetime_factor(
    season: Season, start: datetime, *, retention: float, horizon_days: int, lifetime_days: int, discount_rate: float
) -> float:
    """Lifetime value / expected spend of the horizon from `start` on.

    The sum over horizons k = 0, 1, … of (season of k / season of 0) retention^k / (1 + discount_rate)^(years from
    start), the last one cut at lifetime_days: customer lifetime value with a constant retention rate (Gupta and
    Lehmann, "Managing customers as investments", 2005; Berger and Nasr 1998, case 1), on spend, not on margin.
    """
    own, total = season.mean(start, horizon_days), 0.0
    for number, begun in enumerate(range(0, lifetime_days, horizon_days)):
        days = min(horizon_days, lifetime_days - begun)
        level = season.mean(start + timedelta(days=begun), days) / own * days / horizon_days
        total += level * retention**number / (1.0 + discount_rate) ** (begun / YEAR_DAYS)
    return total


def ratio_of(rows: pa.Table, season: Mapping[str, Any], horizon_days: int) -> np.ndarray:
    """(N,) season of each row's horizon / season of the validation horizon."""
    found = Season(factors=tuple(season["factors"]))
    return per_date(rows, lambda date: found.mean(date, horizon_days) / season["validation"])


def per_date(rows: pa.Table, value: Any) -> np.ndarray:
    """(N,) value(as_of) of each row, computed once per date."""
    codes = rows["as_of"].combine_chunks().dictionary_encode()
    values: Sequence[float] = [value(date) for date in codes.dictionary.to_pylist()]
    return np.array(values, np.float64)[codes.indices.to_numpy(zero_copy_only=False)] if len(values) else np.zeros(0)
