"""Figures of quantile forecasts.

Shapes: N series at a date, H weeks ahead, Q quantiles: those of forecast_panel.QUANTILES. A truth that is NaN (a week
that is not known) counts nowhere. Sources: weighted quantile loss as in Salinas et al. 2020 (DeepAR); MASE: Hyndman &
Koehler 2006.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import NotEnoughDataError
from crmray.models.forecast_panel import MIDDLE, QUANTILES

BY_LEVEL = ("wql", "wape", "mase")
"""figures that are told of each level"""
LOW, HIGH = QUANTILES.index(0.1), QUANTILES.index(0.9)


def of_rows(examples: pa.Table, quantiles: np.ndarray) -> dict[str, float]:
    """`figures` over all series, `wql` as the mean over the levels: all count alike.

    Where there are several levels, also the wql, wape and mase of each, as `wql_product` and so on.
    """
    truth, how = truth_of(examples)
    found = figures(truth, quantiles, **how)
    levels = by_group(truth, quantiles, examples["level"].to_pylist(), **how)
    found["wql"] = float(np.mean([one["wql"] for one in levels.values()]))
    if len(levels) > 1:
        found |= {f"{name}_{level}": one[name] for level, one in levels.items() for name in BY_LEVEL if name in one}
    return found


def truth_of(examples: pa.Table) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(N, H) what came, and the weights and scales of the figures."""
    truth, weights = (_matrix(examples, name) for name in ("label", "label_weight"))
    scale = pc.cast(examples["scale"], pa.float64()).to_numpy(zero_copy_only=False)
    return truth, {"weights": weights, "scale": scale}


def _matrix(examples: pa.Table, name: str) -> np.ndarray:
    """(N, H) of a column of lists of one length; NaN for null."""
    flat = pc.list_flatten(examples[name]).to_numpy(zero_copy_only=False)
    return flat.astype(np.float64).reshape(examples.num_rows, -1)


def pinball(truth: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """(N, H, Q) loss of truth (N, H) and quantiles (N, H, Q): level · (y - q) above, (1 - level) · (q - y) below."""
    miss, levels = truth[:, :, None] - quantiles, np.asarray(QUANTILES)
    return np.maximum(levels * miss, (levels - 1) * miss)


def figures(truth: np.ndarray, quantiles: np.ndarray, *, weights: np.ndarray, scale: np.ndarray) -> dict[str, float]:
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
    loss = (w * pinball(y, quantiles).mean(2)).sum()
    error = np.abs(y - quantiles[:, :, MIDDLE])
    inside = known & (y >= quantiles[:, :, LOW]) & (y <= quantiles[:, :, HIGH])
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


def by_group(
    truth: np.ndarray, quantiles: np.ndarray, groups: Sequence[Any], **how: np.ndarray
) -> dict[str, dict[str, float]]:
    """`figures` of each group of rows in which something was sold, and the number of its series."""
    found = {}
    names = np.asarray(groups, dtype=object)
    for name in sorted(set(groups)):
        own = names == name
        if np.nansum(np.abs(truth[own])) > 0:
            parts = {key: values[own] for key, values in how.items()}
            found[str(name)] = {"series": int(own.sum()), **figures(truth[own], quantiles[own], **parts)}  # type: ignore[arg-type]
    return found


def by_horizon(truth: np.ndarray, quantiles: np.ndarray, *, weights: np.ndarray) -> list[dict[str, float]]:
    """wql, wape and coverage_80 of each week ahead in which something was sold, the only ones they can be told of."""
    found = []
    for week in range(truth.shape[1]):
        part = slice(week, week + 1)
        if np.nansum(np.abs(truth[:, part])) > 0:
            no_scale = np.full(len(truth), np.nan)
            got = figures(truth[:, part], quantiles[:, part], weights=weights[:, part], scale=no_scale)
            found.append({"week": week + 1, **{name: got[name] for name in ("wql", "wape", "coverage_80")}})
    return found
