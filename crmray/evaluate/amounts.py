"""Figures for amounts and their quantiles: what a customer will spend, what will be sold.

N rows, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate.metrics import Figure

TOP_SHARE = 0.1


def checked(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (N,). DataError when lengths differ or a value is not finite."""
    truth, prediction = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if truth.shape != prediction.shape or truth.ndim != 1 or not len(truth):
        raise DataError(
            f"got amounts {truth.shape} and predictions {prediction.shape}, expected two arrays of one length above 0"
        )
    wrong = int((~np.isfinite(truth)).sum()), int((~np.isfinite(prediction)).sum())
    if any(wrong):
        raise DataError(f"got {wrong[0]} amounts and {wrong[1]} predictions that are not finite, expected none")
    return truth, prediction


def amount(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """spearman, ngini, decile_lift, rmse, mae, bias, mean_truth, rows.

    NotEnoughDataError when all amounts are equal: nothing can be ranked then.
    """
    truth, prediction = checked(truth, prediction)
    if np.ptp(truth) == 0:
        raise NotEnoughDataError(f"got one and the same amount in all {len(truth)} rows, expected amounts that differ")
    every = np.ones(len(truth))
    figures = {name: make(truth, prediction)(every) for name, make in FIGURES.items()}
    return {**figures, "mean_truth": float(truth.mean()), "rows": len(truth)}


def spearman_figure(truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """Spearman's rank correlation with mean ranks for ties; 0 for predictions that are all equal."""
    truth, prediction = checked(truth, prediction)
    places = [np.unique(values, return_inverse=True)[1] for values in (truth, prediction)]

    def figure(weights: np.ndarray) -> float:
        ranks = []
        for place in places:
            sizes = np.bincount(place, weights)
            rank = (np.cumsum(sizes) - sizes / 2)[place]
            ranks.append(rank - weights @ rank / weights.sum())
        spread = np.sqrt((weights @ ranks[0] ** 2) * (weights @ ranks[1] ** 2))
        return float(weights @ (ranks[0] * ranks[1]) / spread) if spread else 0.0

    return figure


def ngini_figure(truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """Normalised Gini: G(truth sorted by prediction) / G(truth sorted by itself), highest first, ties in row order.

    G(a) = (sum of the cumulative shares of a - (N + 1) / 2) / N. NaN where the weighted rows hold one amount only.
    """
    truth, prediction = checked(truth, prediction)
    orders = [np.argsort(-values, kind="stable") for values in (prediction, truth)]

    def figure(weights: np.ndarray) -> float:
        reached, ideal = (_gini(np.repeat(truth[order], weights[order].astype(np.int64))) for order in orders)
        return reached / ideal if ideal > 1e-12 else float("nan")

    return figure


def _gini(amounts: np.ndarray) -> float:
    total = amounts.sum()
    return float((np.cumsum(amounts).sum() / total - (len(amounts) + 1) / 2) / len(amounts)) if total else 0.0


def decile_lift_figure(truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """Mean truth of the ceil(N / 10) highest predictions / mean truth of all; ties in row order."""
    truth, prediction = checked(truth, prediction)
    order = np.argsort(-prediction, kind="stable")

    def figure(weights: np.ndarray) -> float:
        drawn = np.repeat(truth[order], weights[order].astype(np.int64))
        mean = drawn.mean()
        return float(drawn[: int(np.ceil(TOP_SHARE * len(drawn)))].mean() / mean) if mean else float("nan")

    return figure


def rmse_figure(truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """Root of the mean squared error."""
    squares = np.square(np.subtract(*checked(prediction, truth)))
    return lambda weights: float(np.sqrt(weights @ squares / weights.sum()))


def mae_figure(truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """Mean absolute error."""
    errors = np.abs(np.subtract(*checked(prediction, truth)))
    return lambda weights: float(weights @ errors / weights.sum())


def bias_figure(truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """sum(prediction) / sum(truth) - 1; NaN where the truth adds up to 0."""
    truth, prediction = checked(truth, prediction)

    def figure(weights: np.ndarray) -> float:
        total = weights @ truth
        return float(weights @ prediction / total - 1.0) if total else float("nan")

    return figure


FIGURES = {
    "spearman": spearman_figure,
    "ngini": ngini_figure,
    "decile_lift": decile_lift_figure,
    "rmse": rmse_figure,
    "mae": mae_figure,
    "bias": bias_figure,
}
"""name -> how the figure is prepared for resampling"""


def pinball(truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Pinball (quantile) loss of each row, step and level: float64 (..., Q), truth (...), quantiles (..., Q)."""
    error = np.asarray(truth)[..., None] - quantiles
    level = np.asarray(levels)
    return np.maximum(level * error, (level - 1.0) * error)


def quantiles(
    truth: np.ndarray, predicted: np.ndarray, levels: Sequence[float], *, weights: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """pinball (mean over levels), wape and bias of the median, mase with `scale`, coverage and width by interval.

    truth (N, H), NaN where nothing came; predicted (N, H, Q) at ascending levels (Q,), 0.5 among them; weights (N, H)
    of each cell; scale (N,) of each series, above 0 (mean absolute error of the naive forecast in training). Coverage
    {"0.8": share of cells within the interval from level 0.1 to 0.9}. Figures are weighted means over known cells;
    mase is the mean over rows. DataError for shapes that do not fit.
    """
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    level = [round(float(value), 6) for value in levels]
    if predicted.shape != (*truth.shape, len(level)) or truth.ndim != 2 or level != sorted(set(level)):
        raise DataError(
            f"got truth {truth.shape}, quantiles {predicted.shape} and levels {level}, expected (N, H), (N, H, Q) and "
            "Q ascending levels"
        )
    if 0.5 not in level or not np.isfinite(predicted).all():
        raise DataError(f"got levels {level}, expected 0.5 among them and quantiles that are all finite")
    known = np.isfinite(truth)
    weight = known * (np.ones_like(truth) if weights is None else np.asarray(weights, dtype=np.float64))
    if not weight.sum():
        raise NotEnoughDataError("got no cell with a value and a weight, expected at least one")
    truth = np.where(known, truth, 0.0)
    middle = predicted[..., level.index(0.5)]
    total = float((weight * np.abs(truth)).sum())
    errors = weight * np.abs(truth - middle)
    found: dict[str, Any] = {
        "pinball": float((weight[..., None] * pinball(truth, predicted, level)).sum() / weight.sum() / len(level)),
        "mae": float(errors.sum() / weight.sum()),
        "wape": float(errors.sum() / total) if total else None,
        "bias": float((weight * middle).sum() / (weight * truth).sum() - 1.0) if (weight * truth).sum() else None,
    }
    if scale is not None:
        seen = weight.sum(1) > 0
        found["mase"] = float((errors.sum(1)[seen] / weight.sum(1)[seen] / np.asarray(scale)[seen]).mean())
    return {**found, **_intervals(truth, predicted, level, weight), "rows": len(truth), "cells": int(known.sum())}


def _intervals(truth: np.ndarray, predicted: np.ndarray, level: list[float], weight: np.ndarray) -> dict[str, Any]:
    """Coverage and mean width of every pair of levels that lies evenly about 0.5."""
    coverage, width = {}, {}
    for low, left in enumerate(level):
        right = round(1.0 - left, 6)
        if left >= 0.5 or right not in level:
            continue
        lower, upper = predicted[..., low], predicted[..., level.index(right)]
        inside = (truth >= lower) & (truth <= upper)
        name = f"{right - left:g}"
        coverage[name] = float((weight * inside).sum() / weight.sum())
        width[name] = float((weight * (upper - lower)).sum() / weight.sum())
    return {"coverage": coverage, "width": width}
