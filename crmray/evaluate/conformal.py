"""Conformal intervals of forecasts: margins for each horizon, measured on rolling origins in the validation window.

No model is fitted to that window, but boosting and the network stop where it is forecast best, and candidates and a
blend's members are chosen there: the intervals' cover is slightly optimistic of later weeks. Source: Romano, Patterson,
Candès 2019 (conformalized quantile regression). Shapes: N series at a date, H weeks ahead, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.forecast_panel import MIDDLE, QUANTILES, labelled

ORIGINS = 4
"""within the validation window"""
ORIGIN_SERIES = 1_000
"""series of each level at each origin; of more than that a sample"""
OWN_MARGINS = 10
"""series that a level needs for margins of its own"""
MARGIN_SHARE = 0.5
"""of the margins that is added: the origins share one quarter and its luck, the model's own intervals know years"""
MIN_SCORES = 100
"""scores that a margin needs; else those of more weeks are taken together"""
PAIRS = [(place, len(QUANTILES) - 1 - place) for place in range(MIDDLE)]
"""places of each quantile below the middle and of its counterpart"""

Margins = Mapping[str, Mapping[str, Sequence[float]]]
"""level, "" for levels with few series -> lower quantile of a pair -> (H,) in units of `_width`"""


# -- origins -----------------------------------------------------------------------------------------------------------


def origins(validation: pa.Table) -> list[pa.Table]:
    """The rows as they stand at each origin; of a level with more than ORIGIN_SERIES, a sample."""
    level, parts = np.array(validation["level"].to_pylist(), dtype=object), []
    for weeks in origin_weeks(len(validation["label"][0])):
        order = np.random.default_rng(weeks).permutation(len(level))
        kept = [order[level[order] == name][:ORIGIN_SERIES] for name in sorted(set(level))]
        parts.append(rolled(validation.take(pa.array(np.sort(np.concatenate(kept)))), weeks))
    return parts


def origin_weeks(horizon_weeks: int) -> range:
    """Weeks after the validation date at which the origins lie."""
    return range(0, horizon_weeks, max(1, horizon_weeks // ORIGINS))


def rolled(rows: pa.Table, weeks: int) -> pa.Table:
    """The rows as they would stand so many weeks later; what came after their labels is not known."""
    if not weeks:
        return rows
    label, unknown = rows["label"].to_pylist(), [None] * weeks
    moved: dict[str, Any] = {
        "as_of": pc.add(rows["as_of"], pa.scalar(timedelta(days=7 * weeks), pa.duration("us"))),
        "history": [past + came[:weeks] for past, came in zip(rows["history"].to_pylist(), label, strict=True)],
        "label": [came[weeks:] + unknown for came in label],
        "label_weight": [one[weeks:] + [1.0] * weeks for one in rows["label_weight"].to_pylist()],
    }
    for name in rows.column_names:
        if name.startswith("event_"):
            moved[name] = [one + [0.0] * weeks for one in rows[name].to_pylist()]
    for name, values in moved.items():
        place = rows.schema.get_field_index(name)
        column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, rows.schema.field(name).type)
        rows = rows.set_column(place, rows.schema.field(name), column)
    return rows


# -- margins -----------------------------------------------------------------------------------------------------------


def by_level(told: Sequence[tuple[pa.Table, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
    """Margins of each level from the rows of each origin and what a model told of them (N, H, Q)."""
    level = np.concatenate([np.array(rows["level"].to_pylist(), dtype=object) for rows, _ in told])
    truth = np.concatenate([labelled(rows)[1] for rows, _ in told])
    quantiles = np.concatenate([one for _, one in told])
    width, found = _width(quantiles), {}
    for name in ["", *sorted(set(level))]:
        own = (level == name) | (name == "")
        if name == "" or own.sum() >= OWN_MARGINS * len(told):
            found[name] = margins(truth[own], quantiles[own], width[own])
    return found


def margins(truth: np.ndarray, quantiles: np.ndarray, scale: np.ndarray) -> dict[str, list[float]]:
    """Conformal margins of each pair of quantiles (a, 1 - a), by horizon: (H,) in units of scale (N,).

    The margin is the (1 - 2a)-quantile, with the finite-sample correction, of how far the truth lies outside of the
    interval (negative inside). Adjacent weeks are taken together while there are fewer than MIN_SCORES.
    """
    found = {}
    horizon = truth.shape[1]
    for low, high in PAIRS:
        outside = np.maximum(quantiles[:, :, low] - truth, truth - quantiles[:, :, high]) / scale[:, None]
        margin = []
        for week in range(horizon):
            scores = np.empty(0)
            for reach in range(horizon + 1):
                part = outside[:, max(0, week - reach) : week + reach + 1]
                scores = part[np.isfinite(part)]
                if len(scores) >= MIN_SCORES:
                    break
            margin.append(_margin(scores, 1 - 2 * QUANTILES[low]))
        found[f"{QUANTILES[low]:g}"] = margin
    return found


def _margin(scores: np.ndarray, share: float) -> float:
    if not len(scores):
        return 0.0
    return float(np.quantile(scores, min(1.0, share * (len(scores) + 1) / len(scores)), method="higher"))


def _width(quantiles: np.ndarray) -> np.ndarray:
    """(N,) unit of a series' margins: the mean width of its outer interval, or a hundredth of its size."""
    wide = (quantiles[:, :, -1] - quantiles[:, :, 0]).mean(1)
    return np.maximum(np.maximum(wide, np.abs(quantiles).mean((1, 2)) / 100), 1e-9)


# -- intervals ---------------------------------------------------------------------------------------------------------


def calibrated(found: Margins, level: Sequence[str], quantiles: np.ndarray) -> np.ndarray:
    """(N, H, Q) with half the margins of each row's level. A series that never went below 0 stays above it."""
    width, out = _width(quantiles), quantiles.copy()
    names = np.array([name if name in found else "" for name in level], dtype=object)
    for name in set(names):
        own = names == name
        out[own] = widened(quantiles[own], found[name], MARGIN_SHARE * width[own])
    out[~quantiles.any((1, 2))] = 0.0  # series that have ended
    return not_below(quantiles, out)


def widened(quantiles: np.ndarray, found: Mapping[str, Sequence[float]], scale: np.ndarray) -> np.ndarray:
    """(N, H, Q) quantiles with the margins added, in order; a negative margin never crosses the middle."""
    out = quantiles.copy()
    middle = quantiles[:, :, MIDDLE]
    for low, high in PAIRS:
        margin = np.asarray(found[f"{QUANTILES[low]:g}"])[None, :] * scale[:, None]
        out[:, :, low] = np.minimum(quantiles[:, :, low] - margin, middle)
        out[:, :, high] = np.maximum(quantiles[:, :, high] + margin, middle)
    return np.sort(out, axis=2)


def moved(quantiles: np.ndarray, added: np.ndarray) -> np.ndarray:
    """(N, H, Q) quantiles moved by (N, H); those of a series that never went below 0 stay above it."""
    return not_below(quantiles, quantiles + added[:, :, None])


def not_below(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(N, H, Q) the quantiles after a change, those not below 0 of series that were not below it before."""
    never_below = np.asarray((before >= 0).all((1, 2)))
    return np.where(never_below[:, None, None], np.maximum(after, 0.0), after)
