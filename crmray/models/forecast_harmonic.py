"""Harmonic regression: a smooth season, growth and the effects of events by regression, the level by smoothing.

Hyndman & Athanasopoulos, FPP3, 10.5. Sales that are always above 0 are regressed as logarithms, others as shares of the
series' mean, so that effects are relative. The trend may bend twice a year; growth is its newest slope. The effects are
those of all series of a level together, or each series' own: one series alone tells its growth poorly. When a series is
forecast, its sales are divided by the effects (FPP3, 3.4; shares: less them), smoothed without a trend, and multiplied
by those to come: a mean, where smoothed logarithms would give a smaller one.

Shapes: L weeks of history, H to forecast, E effects (sines and cosines, growth a year, then events).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa

from crmray.models.forecast_ets import flat, is_short, smoothed, within_reach, without_failures
from crmray.models.forecast_naive import needs_history
from crmray.models.forecast_panel import QUANTILES, SEASON_WEEKS, YEAR_WEEKS, Panel, finish, labelled, newest
from crmray.models.tabular import check_positive, file_of, to_json

BEND_WEEKS = 26
"""weeks between two bends of the trend"""
MIN_YEARS = 1.5
"""years of a series that tell its season and its growth"""
MIN_EVENTS = 3
"""weeks with and without an event that its effect is estimated from"""
BEND_PENALTY = 1.0
"""ridge penalty on the bends, in variances of the series"""


@dataclass(frozen=True, kw_only=True)
class Harmonic:
    """Fourier terms, growth and events beside simple smoothing."""

    NAME: ClassVar[str] = "harmonic_ets"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"num_harmonics": (1, 2), "shared": (True, False)}

    num_harmonics: int = 1
    """Pairs of sine and cosine in a year."""
    shared: bool = True
    """Whether all series of a level have the same effects, their mean by precision; else each has its own."""

    def __post_init__(self) -> None:
        check_positive(num_harmonics=self.num_harmonics)

    applies = staticmethod(needs_history)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> HarmonicModel:
        """The effects of each level from all that is known of its series; validation, seed, rounds change nothing."""
        panel, label_NH, _ = labelled(newest(train))
        model = HarmonicModel(
            num_harmonics=self.num_harmonics, horizon=label_NH.shape[1], kinds=list(panel.kinds), effects=None
        )
        if not self.shared:
            return model
        sums: dict[str, np.ndarray] = {}
        for level, series in zip(panel.level, model.series(panel, label_NH), strict=True):
            if not is_short(series.known):
                found_E, precision_E = series.estimate()
                total = sums.setdefault(level, np.zeros((2, len(found_E))))
                total += [found_E * precision_E, precision_E]
        effects = {level: (total / np.maximum(precision, 1e-12)).tolist() for level, (total, precision) in sums.items()}
        return replace(model, effects=effects)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> HarmonicModel:
        """The model that `save` wrote."""
        return HarmonicModel(**json.loads(file_of(files, "harmonic.json")))


@dataclass(frozen=True, kw_only=True)
class HarmonicModel:
    """The effects of each level; fits the rest of each series that it is asked about."""

    num_harmonics: int
    """As in Harmonic."""
    horizon: int
    """Weeks to forecast."""
    kinds: list[str]
    """Event columns."""
    effects: dict[str, list[float]] | None
    """Level -> (E,) shared effects; None: each series has its own"""

    @property
    def growth_place(self) -> int:
        """Place of growth among the effects."""
        return 2 * self.num_harmonics

    def series(self, panel: Panel, label_NH: np.ndarray | None = None) -> Iterator[Series]:
        """Each row's series from its first known week on; with labels, what came is known too."""
        came_NH = np.zeros((len(panel), 0)) if label_NH is None else label_NH
        for row, values in enumerate(np.concatenate([panel.values, came_NH], axis=1)):
            known = np.flatnonzero(np.isfinite(values))
            first = int(known[0]) if len(known) else panel.values.shape[1]
            week = int(panel.week[row]) + np.arange(first, panel.values.shape[1] + self.horizon) - panel.values.shape[1]
            angles = 2 * np.pi * np.arange(1, self.num_harmonics + 1) * week[:, None] / SEASON_WEEKS
            flags = panel.events[row, first:] if len(panel.kinds) else np.zeros((len(week), 0))
            years = (np.arange(len(week)) / SEASON_WEEKS)[:, None]
            columns = np.concatenate([np.sin(angles), np.cos(angles), years, flags], axis=1)
            yield Series(known=values[first:], columns=columns, growth=self.growth_place)

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Quantiles, each (N, H)."""
        panel = Panel.of(examples)
        panel.expect(self.kinds)
        panel.event_weeks(self.horizon)  # refuses another horizon
        found = np.zeros((len(panel), self.horizon, len(QUANTILES)))
        for row, series in enumerate(self.series(panel)):
            if is_short(series.known):
                found[row] = flat(series.known[np.isfinite(series.known)], self.horizon)
            elif self.effects is None:
                found[row] = series.forecast(series.estimate()[0], self.horizon)
            else:
                shared = self.effects.get(panel.level[row], [0.0] * series.columns.shape[1])
                found[row] = series.forecast(np.array(shared), self.horizon)
        return finish(panel, without_failures(panel, found))

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"harmonic.json": to_json(asdict(self))}


@dataclass(frozen=True, kw_only=True)
class Level:
    """A series without its effects."""

    values: np.ndarray
    """(L,) in units of `scale`"""
    scale: float
    """its mean, or that of the sales without their signs"""
    past: np.ndarray
    """(L,) effects of these weeks, relative to the newest week's"""
    ahead: np.ndarray
    """(H,) those of the weeks to come"""
    multiplied: bool
    """whether the level is to be multiplied by them; else they are added"""

    def sales(self, level: np.ndarray, effects: np.ndarray) -> np.ndarray:
        """A level with its effects, in units of `scale`."""
        return level * effects if self.multiplied else level + effects


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series from its first known week on."""

    known: np.ndarray
    """(L,) sales, NaN where not known"""
    columns: np.ndarray
    """(L + H, E) sines, cosines, years, events; more rows than `known` where weeks lie ahead"""
    growth: int
    """Place of the years among the columns"""

    def _values(self) -> tuple[np.ndarray, bool, float]:
        """(L,) logarithms or shares, whether they are logarithms, and of what they are shares."""
        some = np.isfinite(self.known)
        filled = np.interp(np.arange(len(self.known)), np.flatnonzero(some), self.known[some])
        scale = float(np.abs(filled).mean())
        return (np.log(filled), True, 1.0) if filled.min() > 0 else (filled / scale, False, scale)

    def estimate(self) -> tuple[np.ndarray, np.ndarray]:
        """(E,) effects by least squares beside a level and bends, and their precision; 0 for what cannot be told."""
        values, length = self._values()[0], len(self.known)
        wanted = self.columns[:length]
        count, place = wanted.sum(0), np.arange(wanted.shape[1])
        seen = (count >= MIN_EVENTS) & (count <= length - MIN_EVENTS)
        told = np.where(place > self.growth, seen, length >= MIN_YEARS * YEAR_WEEKS)
        found, precision = np.zeros(len(told)), np.zeros(len(told))
        if told.any():
            used = told | (place == self.growth)
            time = np.arange(length)
            # Bends are 0 after they ended: the slope of the newest weeks is that of the years alone.
            bends = [
                np.maximum(end - time, 0) / BEND_WEEKS for end in range(BEND_WEEKS, length - BEND_WEEKS, BEND_WEEKS)
            ]
            design = np.column_stack([wanted[:, used], np.ones(length), *bends])
            penalty = np.zeros(design.shape[1])
            penalty[design.shape[1] - len(bends) :] = np.sqrt(BEND_PENALTY)
            # As rows of a least-squares problem, the penalty needs no inverse.
            rows, target = np.concatenate([design, np.diag(penalty)]), np.concatenate([values, np.zeros(len(penalty))])
            solved = np.linalg.lstsq(rows, target, rcond=None)[0]
            found[used] = solved[: used.sum()]
            found[~told] = 0.0
            precision[told] = length / max(float(np.var(values - design @ solved)), 1e-6)
        return found, precision

    def forecast(self, effects_E: np.ndarray, horizon: int) -> np.ndarray:
        """(H, Q): the level times the effects to come, or for shares beside them."""
        level = self.level(effects_E)
        found = level.sales(smoothed(level.values, horizon, season=False, model="ANN"), level.ahead[:, None])
        return within_reach(found * level.scale, self.known[np.isfinite(self.known)])

    def level(self, effects_E: np.ndarray) -> Level:
        """What is left without these effects, as they are in the newest week."""
        values, logarithmic, scale = self._values()
        effects = self.columns @ effects_E
        effects -= effects[len(values) - 1]
        past, ahead = effects[: len(values)], effects[len(values) :]
        if not logarithmic:
            return Level(values=values - past, scale=scale, past=past, ahead=ahead, multiplied=False)
        level = np.exp(values - past)
        scale = float(level.mean())
        return Level(values=level / scale, scale=scale, past=np.exp(past), ahead=np.exp(ahead), multiplied=True)
