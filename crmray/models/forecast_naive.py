"""Seasonal naive: next week is what the same week was a year ago (Hyndman & Athanasopoulos, FPP3, 5.2).

A series without a year of history repeats its last week. The quantiles come from the errors that the rule made on
training rows, as shares of a series' size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from crmray.models.forecast_panel import MIDDLE, QUANTILES, YEAR_WEEKS, Panel, finish, labelled
from crmray.models.tabular import file_of, needs, to_json

needs_history = needs("history")
"""`applies` of all forecasters"""


def year_ago(panel: Panel, horizon: int) -> np.ndarray:
    """(N, H) sales of the same weeks of the newest year that is known; NaN where there is none."""
    back_H = YEAR_WEEKS * (1 + np.arange(horizon) // YEAR_WEEKS)  # week h of the horizon, so many weeks before it
    place_H = panel.values.shape[1] + np.arange(horizon) - back_H
    found_NH = np.full((len(panel), horizon), np.nan)
    inside_H = place_H >= 0
    found_NH[:, inside_H] = panel.values[:, place_H[inside_H]]
    return found_NH


@dataclass(frozen=True, kw_only=True)
class SeasonalNaive:
    """The rule of thumb."""

    NAME: ClassVar[str] = "seasonal_naive"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    applies = staticmethod(needs_history)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> SeasonalNaiveModel:
        """Quantiles of its own errors on the training rows; validation, seed and rounds change nothing."""
        panel, label_NH, _ = labelled(train)
        error_NH = (label_NH - _points(panel, label_NH.shape[1])) / panel.scale()[:, None]
        spread_HQ = np.nan_to_num(np.nanquantile(_with_zero(error_NH), QUANTILES, axis=0).T)
        spread_HQ -= spread_HQ[:, [MIDDLE]]  # the rule stays the rule: its point is the week a year ago
        return SeasonalNaiveModel(spread=spread_HQ.tolist())

    @staticmethod
    def load(files: Mapping[str, bytes]) -> SeasonalNaiveModel:
        """The model that `save` wrote."""
        return SeasonalNaiveModel(**json.loads(file_of(files, "seasonal_naive.json")))


def _with_zero(error_NH: np.ndarray) -> np.ndarray:
    """A row of zeros more, so that a week which no row knows has a quantile."""
    return np.concatenate([error_NH, np.zeros((1, error_NH.shape[1]))])


def _points(panel: Panel, horizon: int) -> np.ndarray:
    """(N, H) the week a year ago, else the last week that is known."""
    last_N = np.zeros(len(panel))
    for column in panel.values.T:
        last_N = np.where(np.isfinite(column), column, last_N)
    found_NH = year_ago(panel, horizon)
    return np.where(np.isfinite(found_NH), found_NH, last_N[:, None])


@dataclass(frozen=True, kw_only=True)
class SeasonalNaiveModel:
    """The rule with the quantiles of its errors."""

    spread: list[list[float]]
    """(H, Q) to be added to the point, as shares of the series' size"""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Quantiles, each (N, H)."""
        panel, spread_HQ = Panel.of(examples), np.array(self.spread)
        points_NH = _points(panel, len(spread_HQ))
        return finish(panel, points_NH[:, :, None] + panel.scale()[:, None, None] * spread_HQ)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        about: dict[str, Any] = asdict(self)
        return {"seasonal_naive.json": to_json(about)}
