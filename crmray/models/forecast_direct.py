"""Harmonic regression with the growth measured at the horizon, not by the slope of the newest weeks.

A slope that few weeks tell errs by more the further it is carried. Here the sales without season and events go through
simple exponential smoothing (Hyndman & Athanasopoulos, FPP3, 8.1), and the growth is by how much, on average over the
past, the weeks of a horizon exceeded what was smoothed when it began: a direct multistep forecast (Marcellino, Stock &
Watson 2006). All series of a level together tell it, and the smoothing with it: one series tells little of either
(Montero-Manso & Hyndman 2021).

Sales are sums of what single customers buy: their variance grows as their mean does, as that of a compound Poisson
count. By how much is told by each series' own errors, and by those of its level where it has few: a product that was
launched last week has its season, growth and spread from the others.

Shapes: L weeks of history, T origins in them, H weeks to forecast, A smoothings, Q quantiles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa

from crmray.models.forecast_ets import NORMAL, is_short
from crmray.models.forecast_harmonic import Harmonic, HarmonicModel, Level
from crmray.models.forecast_naive import needs_history
from crmray.models.forecast_panel import QUANTILES, Panel, finish, labelled, newest, stacked
from crmray.models.tabular import check_positive, file_of, to_json

ALPHAS = np.array([0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4])
"""(A,) what the smoothing may give the newest week"""
FIRST_WEEKS = 26
"""weeks of a series that tell no errors yet, at most half of it"""
PRIOR_WEEKS = 4
"""weeks of its own errors that the variance of its level counts as"""
LEAST = 0.1
"""of a series' mean: sales below it vary no less"""


@dataclass(frozen=True, kw_only=True)
class Direct:
    """Fourier terms and events beside simple smoothing and a growth that were measured at the horizon."""

    NAME: ClassVar[str] = "harmonic_direct"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"num_harmonics": (1, 2)}

    num_harmonics: int = 1
    """Pairs of sine and cosine in a year."""

    def __post_init__(self) -> None:
        check_positive(num_harmonics=self.num_harmonics)

    applies = staticmethod(needs_history)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> DirectModel:
        """Effects, smoothing and growth of each level from all that is known; validation, rounds change nothing."""
        harmonic = Harmonic(num_harmonics=self.num_harmonics).fit(train, None, seed=seed)
        panel, label_NH, _ = labelled(newest(train))
        sums: dict[str, _Errors] = {}
        for name, series in zip(panel.level, harmonic.series(panel, label_NH), strict=True):
            if not is_short(series.known):
                errors = sums.setdefault(name, _Errors(horizon=label_NH.shape[1]))
                errors.add(series.level(_effects(harmonic, name)))
        measured = {name: found for name, errors in sums.items() if (found := errors.best()) is not None}
        return DirectModel(harmonic=harmonic, growth=measured)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> DirectModel:
        """The model that `save` wrote."""
        growth = {name: Growth(**one) for name, one in json.loads(file_of(files, "growth.json")).items()}
        return DirectModel(harmonic=Harmonic.load(files), growth=growth)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What was measured of a level."""

    alpha: float
    """what the smoothing gives the newest week"""
    by_week: list[float]
    """(H,) by how much sales exceed what is smoothed, on average, a week ahead, two, and so on: along a line"""
    variance: float
    """of a week's sales, in shares of their mean, in the unit of sales"""


@dataclass(frozen=True, kw_only=True)
class DirectModel:
    """Smooths each series that it is asked about."""

    harmonic: HarmonicModel
    """effects of each level; forecasts series that sold nothing, or of a level of which nothing could be measured"""
    growth: dict[str, Growth]
    """by level"""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Quantiles, each (N, H)."""
        panel = Panel.of(examples)
        panel.expect(self.harmonic.kinds)
        horizon = self.harmonic.horizon
        panel.event_weeks(horizon)  # refuses another horizon
        found, others = np.zeros((len(panel), horizon, len(QUANTILES))), []
        for row, (name, series) in enumerate(zip(panel.level, self.harmonic.series(panel), strict=True)):
            if name not in self.growth or not np.nansum(np.abs(series.known)):
                others.append(row)
            else:
                level = series.level(_effects(self.harmonic, name))
                found[row] = _quantiles(level, self.growth[name])
        if others:
            found[others] = stacked(self.harmonic.predict(examples.take(pa.array(others))))
        return finish(panel, found)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        growth = {name: asdict(one) for name, one in self.growth.items()}
        return self.harmonic.save() | {"growth.json": to_json(growth)}


@dataclass(kw_only=True)
class _Errors:
    """Sums over the series of a level, from which the errors of each smoothing follow."""

    horizon: int
    """H"""
    levels: list[Level] = field(default_factory=list)
    """added so far"""
    came: np.ndarray = field(init=False)
    """(H,) sales of the weeks after the origins"""
    told: np.ndarray = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    """(A,) what was smoothed at the origins"""
    crossed: np.ndarray = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    squared: np.ndarray = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    """(A,) sums of told · mean of what came, and of told², in shares of the sum of squares of what came"""

    def __post_init__(self) -> None:
        self.came = np.zeros(self.horizon)

    def add(self, level: Level) -> None:
        """A series; one with fewer than H origins tells too little."""
        first, end = _first_weeks(level.values), len(level.values) - self.horizon
        if end - first < self.horizon:
            return
        ahead_TH = np.lib.stride_tricks.sliding_window_view(level.values[first + 1 :], self.horizon)
        mean_T, told_AT = ahead_TH.mean(1), _smoothed(level.values, ALPHAS)[:, first:end]
        size = float(mean_T @ mean_T)
        if size > 0:
            self.levels.append(level)
            self.came += ahead_TH.sum(0)
            self.told += told_AT.sum(1)
            self.crossed += told_AT @ mean_T / size
            self.squared += (told_AT**2).sum(1) / size

    def best(self) -> Growth | None:
        """The smoothing with the least squared error of the horizon's mean, and its growth; None without sales."""
        if not self.levels or self.came.sum() <= 0 or self.told.min() <= 0:
            return None
        growth_A = self.came.mean() / self.told
        error_A = growth_A**2 * self.squared - 2 * growth_A * self.crossed
        best, weeks = int(error_A.argmin()), np.arange(self.horizon)
        line = np.polyfit(weeks, self.came / self.told[best], min(1, self.horizon - 1))
        by_week = np.polyval(line, weeks).tolist()
        errors, means = 0.0, 0.0
        for level in self.levels:
            smoothed_L = _smoothed(level.values, ALPHAS[[best]])[0]
            squares, size = _week_errors(level, smoothed_L, by_week[0])
            errors, means = errors + squares * level.scale**2, means + size * level.scale
        return Growth(alpha=float(ALPHAS[best]), by_week=by_week, variance=errors / means)


def _effects(harmonic: HarmonicModel, level: str) -> np.ndarray:
    """(E,) shared effects of a level without its growth."""
    assert harmonic.effects is not None  # those of a level are shared
    effects = np.array(harmonic.effects[level])
    effects[harmonic.growth_place] = 0.0
    return effects


def _first_weeks(values_L: np.ndarray) -> int:
    return min(FIRST_WEEKS, len(values_L) // 2)


def _smoothed(values_L: np.ndarray, alpha_A: np.ndarray) -> np.ndarray:
    """(A, L) the level after each week: the mean of all so far, until that gives the newest week less than alpha."""
    out, level_A = np.empty((len(alpha_A), len(values_L))), np.zeros(len(alpha_A))
    for week, value in enumerate(values_L):
        level_A = level_A + np.maximum(alpha_A, 1 / (week + 1)) * (value - level_A)
        out[:, week] = level_A
    return out


def _week_errors(level: Level, smoothed_L: np.ndarray, growth: float) -> tuple[float, float]:
    """Sums over the weeks but the first ones: of the squared errors a week ahead, and of the means there."""
    first = _first_weeks(level.values) + 1
    mean = level.sales(growth * smoothed_L[first - 1 : -1], level.past[first:])
    errors = level.sales(level.values[first:], level.past[first:]) - mean
    return float(errors @ errors), float(np.maximum(mean, LEAST).sum())


def _quantiles(level: Level, growth: Growth) -> np.ndarray:
    """(H, Q) sales: what is smoothed, grown, with its effects, and the spread of ETS(A,N,N) (FPP3, 8.7) by past errors.

    The variance, in shares of the mean, is that of the series' own weeks and of PRIOR_WEEKS of its level's.
    """
    smoothed_L = _smoothed(level.values, np.array([growth.alpha]))[0]
    errors, means = _week_errors(level, smoothed_L, growth.by_week[0])
    prior = PRIOR_WEEKS * max(smoothed_L[-1], LEAST)
    variance = (errors + prior * growth.variance / level.scale) / (means + prior)
    mean_H = level.sales(smoothed_L[-1] * np.array(growth.by_week), level.ahead)
    spread_H = np.sqrt(variance * np.maximum(mean_H, LEAST) * (1 + growth.alpha**2 * np.arange(len(mean_H))))
    return (mean_H[:, None] + spread_H[:, None] * NORMAL) * level.scale
