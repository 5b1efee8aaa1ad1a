"""From a candidate's raw outputs to one coherent answer: calibrated on validation rows, moved to the season of each
row's date, and without contradictions.

    p_purchase   calibrated as any probability (crmray.evaluate.calibration), its log odds shifted so that the total
                 agrees, then 1 - (1 - p)^g: as if the time to the next purchase ran g times as fast, where g is the
                 season of the horizon over that of validation
    purchases    times one factor, so that the totals of validation agree, times g; never below p_purchase
    spend        likewise; never below p_purchase times the least that anybody who bought spent; 0 only where
                 p_purchase is 0

Each map is increasing in the raw output, so the order of the customers stays, but for ties at the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.evaluate import calibration
from crmray.models import value_season
from crmray.models.value_season import Season
from crmray.models.value_targets import OUTPUTS, targets_of

LEAST_QUANTILE = 0.001
"""of the spend of those who bought: what counts as the least, so that one penny does not"""
EDGE = 1e-12
"""probabilities are kept this far from 0 and 1 before their log odds are taken"""
NUM_PLACES = 201
"""quantiles of validation spend by which a customer's percentile is found"""


def fit(
    raw: Mapping[str, np.ndarray], train: pa.Table, validation: pa.Table, *, horizon_days: int, lookback_days: int
) -> dict[str, Any]:
    """The maps as JSON, from raw outputs on validation rows."""
    targets = targets_of(validation, part="validation")
    season = value_season.fit(train, validation, horizon_days=horizon_days, lookback_days=lookback_days)
    (date,) = value_season.dates_of(validation)
    bought, p = targets.bought.astype(float), np.clip(raw["p_purchase"], 0.0, 1.0)
    curve = calibration.fit(bought, p)
    state: dict[str, Any] = {
        "calibration": curve,
        "least_spend": float(np.quantile(targets.spend[targets.paid], LEAST_QUANTILE)),
        "season": {"factors": list(season.factors), "validation": season.mean(date, horizon_days)},
        "retention": value_season.retention(train, validation, season, horizon_days),
        "horizon_days": horizon_days,
    }
    return rescaled(state, raw, validation)


def rescaled(state: Mapping[str, Any], raw: Mapping[str, np.ndarray], validation: pa.Table) -> dict[str, Any]:
    """The maps for a model with these raw outputs on the validation rows: the shift and the factors by which the totals
    agree, and the places of the spend. For a model that was fitted again with these rows among others: the totals, one
    number each, are all that is taken from rows that it has seen."""
    targets = targets_of(validation, part="validation")
    p = calibration.apply(state["calibration"], np.clip(raw["p_purchase"], 0.0, 1.0))
    scale = {
        "purchases": _factor(targets.purchases, raw["purchases"]),
        "spend": _factor(targets.spend, raw["spend"]),
    }
    found = {**state, "shift": _shift(targets.bought.astype(float), p), "scale": scale}
    spend = apply(found, raw, validation)["spend"]
    return {**found, "places": np.quantile(spend, np.linspace(0.0, 1.0, NUM_PLACES)).tolist()}


def _factor(truth: np.ndarray, raw: np.ndarray) -> float:
    """What the raw outputs are multiplied by to add up to the truth; 1 where they add up to nothing."""
    total = float(np.maximum(raw, 0.0).sum())
    return float(truth.sum()) / total if total > 0 else 1.0


def _shift(bought: np.ndarray, p: np.ndarray) -> float:
    """What is added to the log odds so that the probabilities add up to the buyers; 0 where all or none bought."""
    from scipy.optimize import brentq

    if bought.min() == bought.max():
        return 0.0
    odds = calibration.log_odds(p, EDGE)
    return float(brentq(lambda shift: (1.0 / (1.0 + np.exp(-odds - shift))).mean() - bought.mean(), -50.0, 50.0))


def apply(state: Mapping[str, Any], raw: Mapping[str, np.ndarray], rows: pa.Table) -> dict[str, np.ndarray]:
    """OUTPUTS, float64 (N,), that do not contradict each other."""
    assert set(OUTPUTS) <= set(raw)
    speed = value_season.ratio_of(rows, state["season"], state["horizon_days"])
    some = raw["p_purchase"] > 0
    p = calibration.apply(state["calibration"], np.clip(raw["p_purchase"], 0.0, 1.0))
    p = 1.0 / (1.0 + np.exp(-calibration.log_odds(p, EDGE) - state["shift"]))
    p = np.where(some, -np.expm1(speed * np.log1p(-p)), 0.0)
    purchases, spend = (np.maximum(raw[name], 0.0) * state["scale"][name] * speed for name in OUTPUTS[1:])
    return {
        "p_purchase": p,
        "purchases": np.where(p > 0, np.maximum(purchases, p), 0.0),
        "spend": np.where(p > 0, np.maximum(spend, p * state["least_spend"]), 0.0),
    }


def lifetime_values(
    state: Mapping[str, Any], spend: np.ndarray, rows: pa.Table, *, lifetime_days: int, discount_rate: float
) -> np.ndarray:
    """(N,) spend times `lifetime_factor` of each row's date."""
    season = Season(factors=tuple(state["season"]["factors"]))

    def factor(date: datetime) -> float:
        return value_season.lifetime_factor(
            season, date, retention=state["retention"], horizon_days=state["horizon_days"],
            lifetime_days=lifetime_days, discount_rate=discount_rate,
        )  # fmt: skip

    return spend * value_season.per_date(rows, factor)


def places(state: Mapping[str, Any], spend: np.ndarray) -> np.ndarray:
    """(N,) share 0..1 of the validation customers that spend no more; of ties the middle."""
    knots, ranks = np.asarray(state["places"]), np.linspace(0.0, 1.0, NUM_PLACES)
    forward = np.interp(spend, *_distinct(knots, ranks, last=True))
    backward = np.interp(spend, *_distinct(knots, ranks, last=False))
    return (forward + backward) / 2


def _distinct(knots: np.ndarray, ranks: np.ndarray, *, last: bool) -> tuple[np.ndarray, np.ndarray]:
    """Distinct knots, each with its first or its last rank."""
    values, first, counts = np.unique(knots, return_index=True, return_counts=True)
    return values, ranks[first + counts - 1 if last else first]
