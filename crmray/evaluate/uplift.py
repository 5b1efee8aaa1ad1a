"""Figures for who is moved by an offer: Qini curve and area, uplift by decile, balance of a randomised campaign.

Rows of an experiment: treated (N,) and outcome y (N,) of 0 and 1, score (N,) by which one would choose whom to treat.

Rows are sorted by score, highest first, ties in row order. n1, n0 count the treated and control rows so far, y1, y0
their outcomes, N1 all treated rows. The Qini curve (Radcliffe 2007) is q = y1 - y0 · n1 / n0, and its area per treated
row, over that of a random order, is mean(q / N1) - (q_last / N1) / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate.metrics import Figure, auc, auc_figure, bootstrap_ci
from crmray.models.columns import feature_columns, numbers_of

CURVE_POINTS = 100
MOST_TOLD = 10


def checked(treated: np.ndarray, y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays as float64. DataError for lengths that differ or values that are not 0/1 or finite;
    NotEnoughDataError when an arm has no row."""
    arrays = [np.asarray(values, np.float64) for values in (treated, y, score)]
    if len({len(values) for values in arrays}) != 1 or not all(np.isin(values, (0, 1)).all() for values in arrays[:2]):
        raise DataError("got arms, outcomes and scores of different lengths or other than 0 and 1, expected 0/1 rows")
    if not np.isfinite(arrays[2]).all():
        raise DataError(f"got {int((~np.isfinite(arrays[2])).sum())} scores that are not finite, expected numbers")
    num_treated = int(arrays[0].sum())
    if num_treated in (0, len(arrays[0])):
        raise NotEnoughDataError(
            f"got {num_treated} treated of {len(arrays[0])} rows, expected both arms; map the arm of control rows too"
        )
    return arrays[0], arrays[1], arrays[2]


def _curve(treated: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,) q / N1 after each row of a ranking."""
    n1, n0 = np.cumsum(weights * treated), np.cumsum(weights * (1 - treated))
    y1, y0 = np.cumsum(weights * treated * y), np.cumsum(weights * (1 - treated) * y)
    return (y1 - y0 * np.divide(n1, n0, out=np.zeros_like(n1), where=n0 > 0)) / n1[-1]


def qini_figure(treated: np.ndarray, y: np.ndarray, score: np.ndarray) -> Figure:
    """Qini area as a function of row weights; NaN where the weighted rows lack an arm. A score that is the same for all
    ranks nobody: its area is 0, whatever the order of the rows."""
    treated, y, score = checked(treated, y, score)
    order = np.argsort(-score, kind="stable")
    arm, outcome, ranks_nobody = treated[order], y[order], np.ptp(score) == 0

    def figure(weights: np.ndarray) -> float:
        w = weights[order]
        if not (w * arm).sum() or not (w * (1 - arm)).sum():
            return float("nan")
        if ranks_nobody:
            return 0.0
        q = _curve(arm, outcome, w)
        return float((w * q).sum() / w.sum() - q[-1] / 2)

    return figure


def qini_area(treated: np.ndarray, y: np.ndarray, score: np.ndarray) -> float:
    """Area between the Qini curve and that of a random order, per treated row."""
    return qini_figure(treated, y, score)(np.ones(len(score)))


def qini_curve(treated: np.ndarray, y: np.ndarray, score: np.ndarray) -> dict[str, list[float]]:
    """{"share": of the rows that are treated, "gain": q / N1 there, "random"}; at most CURVE_POINTS points, from 0."""
    treated, y, score = checked(treated, y, score)
    order = np.argsort(-score, kind="stable")
    q = np.concatenate([[0.0], _curve(treated[order], y[order], np.ones(len(y)))])
    at = np.unique(np.linspace(0, len(y), CURVE_POINTS).astype(int))
    share = at / len(y)
    return {"share": share.tolist(), "gain": q[at].tolist(), "random": (share * q[-1]).tolist()}


def average_effect(treated: np.ndarray, y: np.ndarray) -> float:
    """Mean outcome of the treated rows less that of the control rows."""
    return float(y[treated == 1].mean() - y[treated == 0].mean())


def by_decile(
    treated: np.ndarray, y: np.ndarray, score: np.ndarray, num_groups: int = 10
) -> list[dict[str, float | int | None]]:
    """Ten groups of rows from the highest score to the lowest: rows, mean score, rates of both arms, observed uplift.

    A rate is null where a group has no row of the arm.
    """
    treated, y, score = checked(treated, y, score)
    found: list[dict[str, float | int | None]] = []
    for rows in np.array_split(np.argsort(-score, kind="stable"), min(num_groups, len(y))):
        rates = [
            float(y[rows][treated[rows] == arm].mean()) if (treated[rows] == arm).any() else None for arm in (1, 0)
        ]
        observed = rates[0] - rates[1] if rates[0] is not None and rates[1] is not None else None
        mean = float(score[rows].mean())
        found.append(
            {"rows": len(rows), "mean_score": mean, "treated": rates[0], "control": rates[1], "uplift": observed}
        )
    return found


def intervals(treated: np.ndarray, y: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the Qini area."""
    return bootstrap_ci(qini_figure(treated, y, score), len(y), num_resamples=500)


def effect_line(treated: np.ndarray, y: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Intercept and slope of the best linear predictor of the true effect by the score (Chernozhukov et al. 2018).

    Least squares of y · (w - p) / (p (1 - p)), whose mean is the effect in a randomised campaign with share p treated.
    The slope is within 0..1: nothing is made of a score that turned out to say nothing, and none is stretched.
    """
    treated, y, score = checked(treated, y, score)
    share, centred = treated.mean(), score - score.mean()
    effect = y * (treated - share) / (share * (1 - share))
    slope = float(np.clip((centred * effect).mean() / score.var(), 0.0, 1.0)) if np.ptp(score) > 0 else 0.0
    return {"slope": slope, "intercept": average_effect(treated, y) - slope * float(score.mean())}


def balance(table: pa.Table, treated: np.ndarray, labels: Sequence[str] = ()) -> dict[str, float]:
    """Standardised mean difference of each number between the arms, the MOST_TOLD largest first (above 0.1 is
    unbalanced)."""
    found = {}
    for name in feature_columns(table.schema, labels)[0]:
        values = numbers_of(table, name)
        one, other = (values[(treated == arm) & ~np.isnan(values)] for arm in (1, 0))
        if len(one) > 1 and len(other) > 1 and (spread := float(np.sqrt((one.var() + other.var()) / 2))) > 0:
            found[name] = round(float(one.mean() - other.mean()) / spread, 4)
    return dict(sorted(found.items(), key=lambda pair: (-abs(pair[1]), pair[0]))[:MOST_TOLD])


def assignment(treated: np.ndarray, propensity: np.ndarray) -> Mapping[str, Any]:
    """Whether the arm can be told from the features: AUC of a propensity score on rows it has not seen, near 0.5 in a
    randomised campaign, and its 95 % interval."""
    low, high = bootstrap_ci(auc_figure(treated, propensity), len(treated), num_resamples=200)
    return {"auc": auc(treated, propensity), "low": low, "high": high, "share_treated": float(np.mean(treated))}
