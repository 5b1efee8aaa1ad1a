"""Figures for amounts: what a customer will spend. N rows. Those of forecasts with quantiles: forecasts.py."""

from __future__ import annotations

import numpy as np

from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate.metrics import Figure

TOP_SHARE = 0.1
ROUNDING = 1e-9
"""share of all amounts, signs aside, below which their sum is taken as 0"""


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

    Amounts that add up to nothing, such as sales and returns, or to less, have no ngini, decile_lift and bias: these
    are left out then. NotEnoughDataError when all amounts are equal: nothing can be ranked then.
    """
    truth, prediction = checked(truth, prediction)
    if np.ptp(truth) == 0:
        raise NotEnoughDataError(f"got one and the same amount in all {len(truth)} rows, expected amounts that differ")
    every = np.ones(len(truth))
    figures = {name: make(truth, prediction)(every) for name, make in FIGURES.items()}
    defined = {name: figure for name, figure in figures.items() if np.isfinite(figure)}
    return {**defined, "mean_truth": float(truth.mean()), "rows": len(truth)}


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

    G(a) = (sum of the cumulative shares of a - (N + 1) / 2) / N. NaN where the weighted rows hold one amount only, or
    add up to nothing or less.
    """
    truth, prediction = checked(truth, prediction)
    orders = [np.argsort(-values, kind="stable") for values in (prediction, truth)]

    def figure(weights: np.ndarray) -> float:
        reached, ideal = (_gini(np.repeat(truth[order], weights[order].astype(np.int64))) for order in orders)
        return reached / ideal if ideal > 1e-12 else float("nan")

    return figure


def _gini(amounts: np.ndarray) -> float:
    total = positive_sum(amounts)
    return float((np.cumsum(amounts).sum() / total - (len(amounts) + 1) / 2) / len(amounts)) if total else 0.0


def positive_sum(amounts: np.ndarray) -> float:
    """What amounts add up to; 0 for less than that, and where gains and losses cancel but for the last digits."""
    total = float(amounts.sum())
    return total if total > ROUNDING * float(np.abs(amounts).sum()) else 0.0


def decile_lift_figure(truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """Mean truth of the ceil(N / 10) highest predictions / mean truth of all; ties in row order. NaN where the truth
    adds up to nothing or less."""
    truth, prediction = checked(truth, prediction)
    order = np.argsort(-prediction, kind="stable")

    def figure(weights: np.ndarray) -> float:
        drawn = np.repeat(truth[order], weights[order].astype(np.int64))
        mean = positive_sum(drawn) / len(drawn)
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
    """sum(prediction) / sum(truth) - 1; NaN where the truth adds up to nothing or less."""
    truth, prediction = checked(truth, prediction)

    def figure(weights: np.ndarray) -> float:
        total = positive_sum(weights * truth)
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
