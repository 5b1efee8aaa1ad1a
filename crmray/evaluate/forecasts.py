"""Figures of quantile forecasts, and conformal intervals.

Shapes: N series at a date, H weeks ahead, Q quantiles. A truth that is NaN (a week that is not known) counts nowhere.
Sources: weighted quantile loss as in Salinas et al. 2020 (DeepAR); MASE: Hyndman & Koehler 2006; conformal intervals:
Romano, Patterson, Candès 2019 (conformalized quantile regression), a margin for each horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crmray.errors import NotEnoughDataError

MIN_SCORES = 100
"""scores that a margin needs; else those of more weeks are taken together"""


def pinball(truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """(N, H, Q) loss of truth (N, H) and quantiles (N, H, Q): level · (y - q) above, (1 - level) · (q - y) below."""
    miss = truth[:, :, None] - quantiles
    return np.maximum(np.asarray(levels) * miss, (np.asarray(levels) - 1) * miss)


def figures(
    truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float], *, weights: np.ndarray, scale: np.ndarray
) -> dict[str, float]:
    """Figures over all weeks that are known, each counted by its weight (N, H).

    wql: 2 · pinball loss, mean over the levels, over sum of |truth|; wape: sum of |error| over sum of |truth|; mae and
    pinball: their means, in the unit of the truth; coverage_80: share between the levels 0.1 and 0.9; mase: mean over
    the series of mean |error| over scale (N,), not weighted; left out where no series has a scale.
    NotEnoughDataError where nothing was sold in any of these weeks.
    """
    known = np.isfinite(truth)
    w = np.where(known, weights, 0.0)
    y = np.where(known, truth, 0.0)
    total = float((w * np.abs(y)).sum())
    if not total:
        raise NotEnoughDataError(
            f"got {int(known.sum())} weeks of {len(truth)} series in which nothing was sold, expected some sales;"
            " choose other levels or dates"
        )
    loss = (w * pinball(y, quantiles, levels).mean(2)).sum()
    low, middle, high = (quantiles[:, :, list(levels).index(level)] for level in (0.1, 0.5, 0.9))
    error = np.abs(y - middle)
    inside = known & (y >= low) & (y <= high)
    by_series = np.where(known, error, 0.0).sum(1) / np.maximum(known.sum(1), 1) / scale
    counted = known.any(1) & np.isfinite(by_series)
    return {
        "wql": float(2 * loss / total),
        "wape": float((w * error).sum() / total),
        **({"mase": float(by_series[counted].mean())} if counted.any() else {}),
        "mae": float((w * error).sum() / w.sum()),
        "pinball": float(loss / w.sum()),
        "coverage_80": float(inside.sum() / known.sum()),
    }


def margins(
    truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float], scale: np.ndarray
) -> dict[str, list[float]]:
    """Conformal margins of each pair of levels (a, 1 - a), by horizon: (H,) in units of scale (N,).

    The margin is the (1 - 2a)-quantile, with the finite-sample correction, of how far the truth lies outside of the
    interval (negative inside). Adjacent weeks are taken together while there are fewer than MIN_SCORES.
    """
    found = {}
    horizon = truth.shape[1]
    for low, high in pairs(levels):
        outside = np.maximum(quantiles[:, :, low] - truth, truth - quantiles[:, :, high]) / scale[:, None]
        margin = []
        for week in range(horizon):
            scores = np.empty(0)
            for reach in range(horizon + 1):
                part = outside[:, max(0, week - reach) : week + reach + 1]
                scores = part[np.isfinite(part)]
                if len(scores) >= MIN_SCORES:
                    break
            margin.append(_margin(scores, 1 - 2 * levels[low]))
        found[f"{levels[low]:g}"] = margin
    return found


def _margin(scores: np.ndarray, share: float) -> float:
    if not len(scores):
        return 0.0
    return float(np.quantile(scores, min(1.0, share * (len(scores) + 1) / len(scores)), method="higher"))


def pairs(levels: Sequence[float]) -> list[tuple[int, int]]:
    """Places of each level below 0.5 and of its counterpart."""
    return [(place, len(levels) - 1 - place) for place in range(len(levels)) if levels[place] < 0.5]


def widened(
    quantiles: np.ndarray, levels: Sequence[float], found: Mapping[str, Sequence[float]], scale: np.ndarray
) -> np.ndarray:
    """(N, H, Q) quantiles with the margins added, in order; a negative margin never crosses the middle."""
    out = quantiles.copy()
    middle = quantiles[:, :, len(levels) // 2]
    for low, high in pairs(levels):
        margin = np.asarray(found[f"{levels[low]:g}"])[None, :] * scale[:, None]
        out[:, :, low] = np.minimum(quantiles[:, :, low] - margin, middle)
        out[:, :, high] = np.maximum(quantiles[:, :, high] + margin, middle)
    return np.sort(out, axis=2)


def by_group(
    truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float], groups: Sequence[Any], **how: np.ndarray
) -> dict[str, dict[str, float]]:
    """`figures` of each group of rows in which something was sold, and the number of its series."""
    found = {}
    names = np.asarray(groups, dtype=object)
    for name in sorted(set(groups)):
        own = names == name
        if np.nansum(np.abs(truth[own])) > 0:
            parts = {key: values[own] for key, values in how.items()}
            found[str(name)] = {"series": int(own.sum()), **figures(truth[own], quantiles[own], levels, **parts)}  # type: ignore[arg-type]
    return found


def by_horizon(
    truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float], *, weights: np.ndarray
) -> list[dict[str, float]]:
    """wql, wape and coverage_80 of each week ahead in which something was sold, the only ones they can be told of."""
    found = []
    for week in range(truth.shape[1]):
        part = slice(week, week + 1)
        if np.nansum(np.abs(truth[:, part])) > 0:
            no_scale = np.full(len(truth), np.nan)
            got = figures(truth[:, part], quantiles[:, part], levels, weights=weights[:, part], scale=no_scale)
            found.append({"week": week + 1, **{name: got[name] for name in ("wql", "wape", "coverage_80")}})
    return found
