"""What gradient boosting reads of weekly series: lags, means, the same week a year ago, the calendar, events.

Shapes: S series, T weeks, K kinds of events, R targets (series, origin, weeks ahead), F features.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crmray.models.forecast_panel import YEAR_WEEKS, Panel, by_size, labelled, mean, newest, week_of_year

LAGS = tuple(range(1, 9))
WINDOWS = (2, 4, 8, 13, 26, 52)
AROUND = (-2, -1, 0, 1, 2)
"""weeks around the same week a year ago"""
MIN_WEEKS = 2
"""weeks that a series has to have before an origin"""

Targets = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(R,) series, origin (first column that is not seen), weeks ahead (1 … H)"""


@dataclass(frozen=True, kw_only=True)
class Known:
    """All that is known of some series, and what may be said of a week from an origin before it."""

    values: np.ndarray
    """(S, T) sales, NaN where not known"""
    sums: np.ndarray
    """(S, T + 1, 4) running sums before each week: of sales, their sizes, their squares, and of zeros"""
    counts: np.ndarray
    """(S, T + 1) weeks known before each week"""
    since: np.ndarray
    """(S, T + 1) weeks since the last sale before each week"""
    events: np.ndarray
    """(S, T, K)"""
    kinds: tuple[str, ...]
    weights: np.ndarray
    """(S, T) of the weeks in the figures"""
    first_week: np.ndarray
    """(S,) number of the week of the first column"""
    level: list[str]
    horizon: int

    @staticmethod
    def of(rows: pa.Table) -> Known:
        """From labelled rows: history and label of each series' newest one."""
        panel, label, _ = labelled(newest(rows))
        horizon = label.shape[1]
        values = np.concatenate([panel.values, label], axis=1)
        first_week = panel.week - panel.values.shape[1]
        weights = _week_weights(rows, first_week, values.shape[1])
        return Known._summed(panel, values, weights, horizon)

    @staticmethod
    def past(panel: Panel, horizon: int) -> Known:
        """From rows to be forecast."""
        unknown = np.full((len(panel), horizon), np.nan)
        values = np.concatenate([panel.values, unknown], axis=1)
        return Known._summed(panel, values, np.ones_like(values), horizon)

    @staticmethod
    def _summed(panel: Panel, values: np.ndarray, weights: np.ndarray, horizon: int) -> Known:
        known, filled = np.isfinite(values), np.nan_to_num(values)
        parts = np.stack([filled, np.abs(filled), filled**2, known & (filled == 0)], axis=2)
        num_series, width = values.shape
        sums, counts = np.zeros((num_series, width + 1, 4)), np.zeros((num_series, width + 1))
        np.cumsum(parts, axis=1, out=sums[:, 1:])
        np.cumsum(known, axis=1, out=counts[:, 1:])
        sold = np.where(filled != 0, np.arange(width), -1)
        last = np.concatenate([np.full((num_series, 1), -1), np.maximum.accumulate(sold, axis=1)], axis=1)
        panel.event_weeks(horizon)  # refuses another horizon
        events = panel.events if len(panel.kinds) else np.zeros((num_series, width, 0))
        return Known(
            values=values, sums=sums, counts=counts, since=np.arange(width + 1) - last, events=events,
            kinds=panel.kinds, weights=weights, first_week=panel.week - panel.values.shape[1], level=panel.level,
            horizon=horizon,
        )  # fmt: skip

    def targets(self, most: int, seed: int) -> Targets:
        """Every known week from every origin at most a horizon before it, or a random `most` of them."""
        known = np.isfinite(self.values)
        ready = self.counts >= MIN_WEEKS
        possible = [
            known[:, ahead - 1 :] & ready[:, : known.shape[1] - ahead + 1] for ahead in range(1, self.horizon + 1)
        ]
        share = most / max(1, sum(int(mask.sum()) for mask in possible))
        rng = np.random.default_rng(seed)
        found = []
        for ahead, mask in enumerate(possible, start=1):
            rows, origins = np.nonzero(mask if share >= 1 else mask & (rng.random(mask.shape) < share))
            found.append((rows, origins, np.full(len(rows), ahead)))
        rows, origins, aheads = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, origins, aheads

    def targets_from(self, origin: int) -> Targets:
        """The known weeks from one origin on."""
        rows, ahead = np.nonzero(np.isfinite(self.values[:, origin:]))
        return rows, np.full(len(rows), origin), ahead + 1

    def _mean(self, rows: np.ndarray, start: np.ndarray, end: np.ndarray, part: int) -> np.ndarray:
        """(R,) mean over the known weeks in [start, end); NaN where there is none."""
        start, end = np.maximum(start, 0), np.maximum(end, 0)
        count = self.counts[rows, end] - self.counts[rows, start]
        total = self.sums[rows, end, part] - self.sums[rows, start, part]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def size(self, rows: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """(R,) mean |sales| of the year before the origin, at least a thousandth of that of all weeks before it."""
        recent = self._mean(rows, origins - YEAR_WEEKS, origins, 1)
        found = np.fmax(recent, self._mean(rows, np.zeros_like(origins), origins, 1) * 1e-3)
        return np.where(found > 0, found, 1.0)

    def base(self, kind: str, rows: np.ndarray, origins: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """(R,) what the trees add to."""
        recent = self._mean(rows, origins - (YEAR_WEEKS if kind == "year" else 13), origins, 0)
        recent = np.nan_to_num(
            np.where(np.isfinite(recent), recent, self._mean(rows, np.zeros_like(origins), origins, 0))
        )
        if kind == "recent":
            return recent
        before = self._at(rows, _a_year_before(origins, ahead), origins)
        return np.where(np.isfinite(before), before, recent)

    def weight(self, rows: np.ndarray, week: np.ndarray, size: np.ndarray, power: float) -> np.ndarray:
        """(R,) weights of targets: that of the week, times a power of the size among the rows of the level."""
        return self.weights[rows, week] * by_size(size, np.array(self.level, dtype=object)[rows], power)

    def _at(self, rows: np.ndarray, week: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """(R,) sales of a week; NaN where it lies before the first or at or after the origin."""
        inside = (week >= 0) & (week < origins)
        return np.where(inside, self.values[rows, np.where(inside, week, 0)], np.nan)

    def features(self, rows: np.ndarray, origins: np.ndarray, ahead: np.ndarray, levels: list[str]) -> np.ndarray:
        """(R, F) float32 in the order of `_names`; NaN where not known."""
        size, week, before = self.size(rows, origins), origins + ahead - 1, _a_year_before(origins, ahead)
        code = {level: number for number, level in enumerate(levels)}
        level = np.array([code.get(name, -1) for name in self.level], np.float64)
        quarter, year_ago = self._mean(rows, origins - 13, origins, 0), self._mean(rows, origins - 65, origins - 52, 0)
        columns = [
            level[rows],
            ahead,
            week_of_year(self.first_week[rows] + week),
            np.log(size),
            self.counts[rows, origins],
        ]
        columns += [
            self.since[rows, origins],
            self._mean(rows, origins - 13, origins, 3),
            self._mean(rows, origins - 52, origins, 3),
        ]
        columns += [self._at(rows, origins - lag, origins) / size for lag in LAGS]
        columns += [self._mean(rows, origins - width, origins, 0) / size for width in WINDOWS]
        spread = self._mean(rows, origins - 26, origins, 2) - self._mean(rows, origins - 26, origins, 0) ** 2
        columns += [np.sqrt(np.maximum(spread, 0.0)) / size, year_ago / size, (quarter - year_ago) / size]
        around = [self._at(rows, before + step, origins) / size for step in AROUND]
        columns += [*around, mean(np.stack(around, axis=1)), self._at(rows, before - YEAR_WEEKS, origins) / size]
        for kind in range(len(self.kinds)):
            flags = self.events[:, :, kind]
            columns += [_flag(flags, rows, week + step) for step in (-1, 0, 1)] + [_flag(flags, rows, before)]
        return np.stack([np.asarray(column, np.float32) for column in columns], axis=1)


def names_of(kinds: Collection[str]) -> list[str]:
    """The features in their order."""
    events = [f"{kind}_{when}" for kind in kinds for when in ("before", "then", "after", "year_ago")]
    return [
        "level", "ahead", "week_of_year", "log_size", "known_weeks", "weeks_since_sale", "zeros_13", "zeros_52",
        *(f"lag_{lag}" for lag in LAGS), *(f"mean_{width}" for width in WINDOWS), "spread_26", "year_ago_13",
        "growth_13", *(f"year_ago_{step:+d}" for step in AROUND), "year_ago_mean", "two_years_ago", *events,
    ]  # fmt: skip


def _a_year_before(origins: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """(R,) the same week of the newest year that is known at the origin."""
    return origins + ahead - 1 - YEAR_WEEKS * -(-ahead // YEAR_WEEKS)


def _flag(flags: np.ndarray, rows: np.ndarray, week: np.ndarray) -> np.ndarray:
    """(R,) an event's flag in a week; NaN outside of the weeks that are told."""
    inside = (week >= 0) & (week < flags.shape[1])
    return np.where(inside, flags[rows, np.where(inside, week, 0)], np.nan)


def _week_weights(rows: pa.Table, first_week: np.ndarray, width: int) -> np.ndarray:
    """(S, T) weights of the weeks, which all series share; 1 for a week that is in no label window."""
    panel, _, weight = labelled(rows)
    weeks = panel.week[:, None] + np.arange(weight.shape[1])
    start = int(first_week.min())
    by_week = np.ones(int(max(weeks.max(), (first_week + width).max())) - start + 1)
    by_week[weeks - start] = weight
    return by_week[first_week[:, None] + np.arange(width) - start]
