"""What all forecasters share: rows as a panel of weekly series, and forecasts as quantiles for each week.

A forecaster's `predict` gives one array (N, H) for each of QUANTILES, under the names of COLUMNS; "q50" is the point
forecast. Shapes: N rows, L weeks of history, H weeks to forecast, K kinds of events, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.asof_series import weeks
from crmray.errors import NotEnoughDataError, SchemaError
from crmray.schema import TIME

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
COLUMNS = ("q10", "q25", "q50", "q75", "q90")
MIDDLE = QUANTILES.index(0.5)
YEAR_WEEKS = 52
SEASON_WEEKS = 365.25 / 7
EVENT = "event_"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Rows decoded. Histories are aligned at their end: column -1 is the week before as_of."""

    values: np.ndarray
    """(N, L) float64 sales; NaN before a series begins and where a week is not known"""
    events: np.ndarray
    """(N, L + H, K) float64, 1 in a week with such an event, NaN before a series begins; the last H are those to
    forecast; K = 0 without any"""
    kinds: tuple[str, ...]
    """(K,) names of the event columns"""
    week: np.ndarray
    """(N,) int64 number of the first week to forecast"""
    level: list[str]
    """(N,) level of each series"""
    label: np.ndarray | None
    """(N, H) what came; NaN where it is not known; None in rows without labels"""
    weight: np.ndarray | None
    """(N, H) weight of each week in the figures"""

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def of(rows: pa.Table) -> Panel:
        """SchemaError when a column is missing, NotEnoughDataError without rows with a history."""
        for name in ("history", "as_of", "level"):
            if name not in rows.column_names:
                raise SchemaError(f"column {name!r} is missing; expected the columns of the forecast examples")
        values, length = _aligned(rows["history"])
        kinds = tuple(sorted(name for name in rows.column_names if name.startswith(EVENT)))
        events = [_aligned(rows[kind])[0] for kind in kinds]
        label, weight = (_labels(rows, name) for name in ("label", "label_weight"))
        return Panel(
            values=values,
            events=np.stack(events, axis=2) if events else np.zeros((len(values), length, 0)),
            kinds=kinds,
            week=weeks(rows["as_of"].cast(TIME)),
            level=rows["level"].to_pylist(),
            label=label,
            weight=weight,
        )

    def scale(self) -> np.ndarray:
        """(N,) mean |sales| of the newest year, at least a thousandth of that of the whole history; 1 if all is 0."""
        size_NL = np.abs(self.values)
        recent_N, whole_N = mean(size_NL[:, -YEAR_WEEKS:]), mean(size_NL)
        found_N = np.fmax(recent_N, whole_N * 1e-3)
        return np.where(found_N > 0, found_N, 1.0)

    def expect(self, kinds: Collection[str]) -> None:
        """SchemaError unless these event columns, those of training, are there."""
        for name in kinds:
            if name not in self.kinds:
                raise SchemaError(f"column {name!r} is missing; expected it as in training")

    def event_weeks(self, horizon: int) -> np.ndarray:
        """(N, horizon, K) events of the weeks to forecast."""
        known = self.events.shape[1] - self.values.shape[1]
        if len(self.kinds) and known != horizon:
            raise SchemaError(f"column {self.kinds[0]!r}: got {known} weeks ahead, expected {horizon} as in training")
        return self.events[:, -horizon:] if len(self.kinds) else np.zeros((len(self), horizon, 0))


def _aligned(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """(N, longest) float64 with each list at the end of its row, NaN before it and for null; and the longest length."""
    lists = column.combine_chunks()
    length_N = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    width = max(1, int(length_N.max(initial=0)))
    out = np.full((len(length_N), width), np.nan)
    flat = pc.cast(lists.flatten(), pa.float64()).to_numpy(zero_copy_only=False)
    out[np.arange(width) >= width - length_N[:, None]] = flat
    return out, width


def _labels(rows: pa.Table, name: str) -> np.ndarray | None:
    if name not in rows.column_names or rows[name].null_count:
        return None
    return _aligned(rows[name])[0]


def labelled(rows: pa.Table) -> tuple[Panel, np.ndarray, np.ndarray]:
    """The panel, what came (N, H) and the weights (N, H). NotEnoughDataError without a label."""
    panel = Panel.of(rows)
    if panel.label is None or panel.weight is None or not len(panel):
        raise NotEnoughDataError(f"got {rows.num_rows} rows without what came after them, expected labels in each")
    return panel, panel.label, panel.weight


def newest(rows: pa.Table) -> pa.Table:
    """Each series' newest row: its history and label are all that is known of it."""
    latest = rows.group_by("entity_id", use_threads=False).aggregate([("as_of", "max")])
    date = latest["as_of_max"].take(pc.index_in(rows["entity_id"], value_set=latest["entity_id"].combine_chunks()))
    return rows.filter(pc.equal(rows["as_of"], date))


def by_size(size_R: np.ndarray, level_R: np.ndarray, power: float) -> np.ndarray:
    """(R,) weights of rows: a power of the size, with mean 1 within each level."""
    weight_R = size_R**power
    for level in set(level_R):
        own = level_R == level
        weight_R[own] /= weight_R[own].mean()
    return weight_R


def mean(values_NL: np.ndarray) -> np.ndarray:
    """(N,) mean of what is known; NaN where nothing is."""
    known_N = np.isfinite(values_NL).sum(1)
    return np.where(known_N > 0, np.nansum(values_NL, axis=1) / np.maximum(known_N, 1), np.nan)


def finish(panel: Panel, quantiles_NHQ: np.ndarray) -> dict[str, np.ndarray]:
    """Forecasts as `predict` gives them: in order, not below 0 for a series that never was, 0 for one that has ended.

    A series has ended when nothing was sold for a year.
    """
    out = np.sort(quantiles_NHQ, axis=2)
    with_returns_N = np.nanmin(panel.values, axis=1, initial=0.0) < 0
    out = np.where(with_returns_N[:, None, None], out, np.maximum(out, 0.0))
    ended_N = ~np.any(np.nan_to_num(panel.values[:, -YEAR_WEEKS:]) != 0, axis=1)
    out[ended_N] = 0.0
    return {name: np.ascontiguousarray(out[:, :, q]) for q, name in enumerate(COLUMNS)}


def stacked(predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N, H, Q) of a forecaster's answer."""
    return np.stack([predictions[name] for name in COLUMNS], axis=2)


def season(week: np.ndarray) -> np.ndarray:
    """(..., 4) sine and cosine of the place in the year, and of twice it."""
    angle = 2 * np.pi * week / SEASON_WEEKS
    return np.stack([np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle)], axis=-1)


def week_of_year(week: np.ndarray) -> np.ndarray:
    """1 … 53: the week of the calendar year in which the week's Thursday lies (ISO 8601)."""
    thursday = (np.asarray(week) * 7).astype("datetime64[D]")  # week 0 has its Thursday on 1 January 1970
    year = thursday.astype("datetime64[Y]").astype("datetime64[D]")
    return (thursday - year).astype(np.int64) // 7 + 1
