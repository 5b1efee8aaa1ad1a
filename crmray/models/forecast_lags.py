"""Gradient boosting on lags: one LightGBM over all series, origins and horizons, forecasting each week directly.

Every known week of every series is a training target, seen from every week before it at most a horizon away: a series'
newest row tells all that is known of it. The median is boosted first, the other quantiles by smaller models beside it.
Values are shares of the series' size in the year before the origin (Montero-Manso & Hyndman 2021, global models).

Shapes: S series, T weeks known of them, R training targets (series, origin, horizon), F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import NotEnoughDataError
from crmray.models.boosting import Boosting, reloaded
from crmray.models.forecast_features import MIN_WEEKS, Known, Targets, names_of
from crmray.models.forecast_naive import needs_history
from crmray.models.forecast_panel import MIDDLE, QUANTILES, Panel, finish
from crmray.models.tabular import check_choice, check_positive, file_of, to_json

if TYPE_CHECKING:
    import lightgbm

FURTHEST = 1e3
"""shares of a series' size beyond this are cut"""
BYTES_PER_VALUE = 24


@dataclass(frozen=True, kw_only=True)
class Lags(Boosting):
    """LightGBM on lags; the quantile 0.5 is stopped early on validation, `num_rounds` are its rounds."""

    NAME: ClassVar[str] = "lightgbm_lags"
    GRID: ClassVar[dict[str, tuple]] = {"num_leaves": (15, 63), "size_weight": (0.5, 1.0)}

    base: Literal["recent", "year"] = "recent"
    """What the trees add to: the mean of the last quarter, or the same week a year ago where it is known."""
    size_weight: float = 0.5
    """Power of a series' size by which its weeks count among those of its level: 1 as in sums of money, 0 all alike."""
    num_leaves: int = 31
    """Leaves per tree."""
    min_rows_leaf: int = 40
    """Training rows in each leaf."""
    feature_fraction: float = 0.5
    """Share of features tried per tree."""
    bagging_fraction: float = 0.7
    """Share of rows per round."""
    max_rounds: int = 600
    """Most rounds of the median with early stopping."""
    spread_rounds: int = 120
    """Rounds of each other quantile."""
    patience: int = 60
    """Rounds without a better validation figure before it stops."""
    max_targets: int = 500_000
    """Training targets of the median; beyond it they are sampled. The other quantiles see half as many at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(spread_rounds=self.spread_rounds, max_targets=self.max_targets)
        check_choice("base", self.base, ("recent", "year"))

    applies = staticmethod(needs_history)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> LagsModel:
        """Fit `rounds` rounds of the median if given; else stop early on validation; else `num_rounds`."""
        import lightgbm

        known = Known.of(train)
        num_features = len(names_of(known.kinds))
        held = int(self.memory_gib * 2**30 / (BYTES_PER_VALUE * num_features))
        targets = known.targets(min(self.max_targets, held), seed)
        if not len(targets[0]):
            raise NotEnoughDataError(
                f"got {len(known.values)} series without a week after their first {MIN_WEEKS}, expected some"
            )
        levels = sorted(set(known.level))
        data = self._dataset(known, targets, levels)
        stop_early = rounds is None and validation is not None
        how: dict[str, Any] = {}
        if stop_early:
            later, last = Known.of(validation), Panel.of(validation).values.shape[1]
            held_out = self._dataset(later, later.targets_from(last), levels, reference=data)
            stop = lightgbm.early_stopping(self.patience, verbose=False)
            how = {"valid_sets": [held_out], "callbacks": [stop]}
        most = self.max_rounds if stop_early else rounds or self.num_rounds
        middle = lightgbm.train(self._parameters(0.5, seed), data, num_boost_round=most, **how)
        best = middle.best_iteration if stop_early else middle.current_iteration()
        boosters = {0.5: reloaded(middle.model_to_string(num_iteration=best))}
        rows, origins, ahead = (part[:: 2 if len(part) > self.max_targets // 2 else 1] for part in targets)
        spread = self._dataset(known, (rows, origins, ahead), levels)
        for quantile in (q for q in QUANTILES if q != 0.5):
            trees = lightgbm.train(self._parameters(quantile, seed), spread, num_boost_round=self.spread_rounds)
            boosters[quantile] = reloaded(trees.model_to_string())
        log.event("train.boosted", rounds=best, targets=len(targets[0]), series=len(known.values))
        return LagsModel(
            boosters=tuple(boosters[q] for q in QUANTILES), base=self.base, levels=levels, kinds=list(known.kinds),
            horizon=known.horizon, rounds=best,
        )  # fmt: skip

    def _dataset(self, known: Known, targets: Targets, levels: list[str], reference: Any = None) -> lightgbm.Dataset:
        import lightgbm

        rows, origins, ahead = targets
        size, base = known.size(rows, origins), known.base(self.base, rows, origins, ahead)
        week = origins + ahead - 1
        share = np.clip((known.values[rows, week] - base) / size, -FURTHEST, FURTHEST)
        weights = known.weight(rows, week, size, self.size_weight)
        return lightgbm.Dataset(
            known.features(rows, origins, ahead, levels), share, weight=weights / weights.mean(), reference=reference,
            categorical_feature=[names_of(known.kinds).index("level")],
            params={"verbosity": -1, "min_data_in_leaf": self.min_rows_leaf, "num_threads": self.num_threads},
            free_raw_data=True,
        )  # fmt: skip

    def _parameters(self, quantile: float, seed: int) -> dict[str, Any]:
        return {"objective": "quantile", "alpha": quantile, "metric": "quantile", **self.shared_parameters(seed)}

    @staticmethod
    def load(files: Mapping[str, bytes]) -> LagsModel:
        """The model that `save` wrote."""
        about = json.loads(file_of(files, "lags.json"))
        boosters = tuple(reloaded(file_of(files, f"q{round(100 * q)}.txt").decode()) for q in QUANTILES)
        return LagsModel(boosters=boosters, **about)


@dataclass(frozen=True, kw_only=True)
class YearlyLags(Lags):
    """The same trees, beside the week a year ago: for sales whose year repeats itself."""

    NAME: ClassVar[str] = "lightgbm_yearly"

    base: Literal["recent", "year"] = "year"
    """As in Lags."""


@dataclass(frozen=True, kw_only=True)
class LagsModel:
    """Fitted trees, one set a quantile."""

    boosters: tuple[lightgbm.Booster, ...]
    """In the order of QUANTILES."""
    base: Literal["recent", "year"]
    """As in Lags."""
    levels: list[str]
    """Levels of the training series; their places are the codes."""
    kinds: list[str]
    """Event columns."""
    horizon: int
    """Weeks to forecast."""
    rounds: int | None
    """Rounds of the median."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Quantiles, each (N, H)."""
        panel = Panel.of(examples)
        panel.expect(self.kinds)
        known = Known.past(panel, self.horizon)
        rows = np.repeat(np.arange(len(panel)), self.horizon)
        ahead = np.tile(np.arange(1, self.horizon + 1), len(panel))
        origins = np.full(len(rows), panel.values.shape[1])
        features = known.features(rows, origins, ahead, self.levels)
        size, base = known.size(rows, origins), known.base(self.base, rows, origins, ahead)
        found = [base + size * np.asarray(one.predict(features, num_threads=1)) for one in self.boosters]
        quantiles = np.stack(found, axis=1).reshape(len(panel), self.horizon, len(QUANTILES))
        assert QUANTILES[MIDDLE] == 0.5
        return finish(panel, quantiles)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        names = ("base", "levels", "kinds", "horizon", "rounds")
        files = {"lags.json": to_json({name: getattr(self, name) for name in names})}
        for quantile, booster in zip(QUANTILES, self.boosters, strict=True):
            files[f"q{round(100 * quantile)}.txt"] = booster.model_to_string().encode()
        return files
