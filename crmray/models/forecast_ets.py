"""Exponential smoothing, a model a series: AutoETS, with the yearly season taken off.

Two years of a series tell its season by STL. Between one year and two, simple smoothing tells by how much the newest
weeks differ from those a year before, and that is added to the year ago (a seasonal difference), if these differences
vary less than the weeks of that year: else the most of them is noise. There is nothing to learn over all series: each
is fitted when it is forecast. Hyndman et al., "Forecasting with Exponential Smoothing" (2008), by statsforecast; STL:
Cleveland et al. (1990); seasonal differences: Hyndman & Athanasopoulos, FPP3, 9.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.models.forecast_naive import needs_history
from crmray.models.forecast_panel import MIDDLE, YEAR_WEEKS, Panel, finish, labelled
from crmray.models.tabular import file_of, to_json

INTERVALS = (50, 80)
MIN_WEEKS = 12
"""a shorter series repeats its mean: ETS wants more weeks than parameters"""
FURTHEST = 1.0
"""ranges of the past beyond its least and largest week that a forecast may reach"""
Z_75, Z_90 = 0.6744897501960817, 1.2815515655446004
"""standard normal quantiles"""
NORMAL = np.array([-Z_90, -Z_75, 0.0, Z_75, Z_90])
"""(Q,) those of QUANTILES"""


@dataclass(frozen=True, kw_only=True)
class ETS:
    """AutoETS; `season` says whether a yearly season is taken off."""

    NAME: ClassVar[str] = "ets"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"season": (True, False)}

    season: bool = True
    """Whether a season of 52 weeks is taken off, for series with a year of history and MIN_WEEKS more."""

    applies = staticmethod(needs_history)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> ETSModel:
        """Takes the horizon from the training rows; validation, seed and rounds change nothing."""
        return ETSModel(season=self.season, horizon=labelled(train)[1].shape[1])

    @staticmethod
    def load(files: Mapping[str, bytes]) -> ETSModel:
        """The model that `save` wrote."""
        return ETSModel(**json.loads(file_of(files, "ets.json")))


@dataclass(frozen=True, kw_only=True)
class ETSModel:
    """Fits each series that it is asked about."""

    season: bool
    """As in ETS."""
    horizon: int
    """Weeks to forecast."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Quantiles, each (N, H)."""
        panel = Panel.of(examples)
        found = [self._one(row[np.flatnonzero(np.isfinite(row))[0] :] if np.isfinite(row).any() else row[:0])
                 for row in panel.values]  # fmt: skip
        quantiles = np.stack(found) if found else np.zeros((0, self.horizon, 2 * len(INTERVALS) + 1))
        return finish(panel, without_failures(panel, quantiles))

    def _one(self, known: np.ndarray) -> np.ndarray:
        """(H, Q) of one series, from its first known week on; unknown weeks are filled along a line."""
        some = np.isfinite(known)
        if is_short(known):
            return flat(known[some], self.horizon)
        filled = np.interp(np.arange(len(known)), np.flatnonzero(some), known[some])
        scale = float(np.abs(filled).mean()) or 1.0
        found = smoothed(filled / scale, self.horizon, season=self.season) * scale
        return within_reach(found, known[some])

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"ets.json": to_json(asdict(self))}


def is_short(known: np.ndarray) -> bool:
    """Whether a series is too short, or too flat, for a model to be fitted to."""
    some = known[np.isfinite(known)]
    return len(some) < MIN_WEEKS or np.ptp(some) == 0


def smoothed(filled: np.ndarray, horizon: int, *, season: bool, model: str = "ZZZ") -> np.ndarray:
    """(H, Q) by ETS, `season` as there, of the form `model` (error, trend, season) without it; NaN where it fails."""
    from statsforecast.models import MSTL, AutoETS

    forecaster: Any = AutoETS(season_length=1, model=model)
    past, base = filled, np.zeros(horizon)
    if season and len(filled) >= 2 * YEAR_WEEKS:
        forecaster = MSTL(season_length=[YEAR_WEEKS], trend_forecaster=AutoETS(season_length=1, model="ZZN"))
    elif season and len(filled) >= YEAR_WEEKS + MIN_WEEKS:
        change = filled[YEAR_WEEKS:] - filled[:-YEAR_WEEKS]
        if change.std() < filled[:YEAR_WEEKS].std():
            forecaster, past = AutoETS(season_length=1, model="ANN"), change
            base = filled[-YEAR_WEEKS:][np.arange(horizon) % YEAR_WEEKS]
    told = forecaster.forecast(y=past, h=horizon, level=list(INTERVALS))
    names = ("lo-80", "lo-50", "mean", "hi-50", "hi-80")
    return base[:, None] + np.stack([np.asarray(told[name], np.float64) for name in names], axis=1)


def within_reach(found: np.ndarray, some: np.ndarray) -> np.ndarray:
    """The quantiles, not further from the known weeks than these reach; NaN stays."""
    reach = FURTHEST * np.ptp(some)
    return np.clip(found, some.min() - reach, some.max() + reach)


def without_failures(panel: Panel, quantiles_NHQ: np.ndarray) -> np.ndarray:
    """The mean and spread of what is known where a model failed (NaN), and an event that says of how many series."""
    failed = np.flatnonzero(~np.isfinite(quantiles_NHQ).all((1, 2)))
    if not len(failed):
        return quantiles_NHQ
    log.warn("forecast.not_fitted", series=len(failed), of=len(panel), instead="their mean")
    out = quantiles_NHQ.copy()
    for row in failed:
        out[row] = flat(panel.values[row][np.isfinite(panel.values[row])], quantiles_NHQ.shape[1])
    return out


def flat(known: np.ndarray, horizon: int) -> np.ndarray:
    """(H, Q) the mean and the normal quantiles of a series that no model can be fitted to."""
    middle, spread = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
    assert NORMAL[MIDDLE] == 0
    return np.tile(middle + spread * NORMAL, (horizon, 1))
