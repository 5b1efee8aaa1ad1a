"""Scores into probabilities, and probabilities into bands; fitted on validation rows, kept as JSON.

Every map is strictly increasing in the score, so the order of customers, and with it the AUC, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.optimize import brentq

from crmray.evaluate.metrics import checked, f1_threshold, logloss

BANDS = ("low", "medium", "high")
BAND_MEANING = (
    "high: a probability of at least the threshold that was chosen on validation (one of the request changes nothing); "
    "low: one below which, on validation, at most a tenth of the positives lay; medium: between"
)
"""description of the field in which a Response gives the band"""
NUM_FOLDS = 5
TILT = 1e-3  # share of the raw score in an isotonic probability: keeps apart what isotonic regression ties together
LEAST_SLOPE = 1e-3  # of Platt's curve
MAX_NEWTON_STEPS = 100
MOST_SHIFT = 2 * 21.0  # of the log odds: from EDGE to 1 - EDGE
EDGE = 1e-9  # scores are kept this far from 0 and 1 before their log odds are taken


def fit(y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """The state of the best of: none, Platt, isotonic, by log-loss cross-fitted over validation rows.

    y (N,) labels 0/1; p (N,) scores in 0..1. With fewer than 10 rows of a class there is too little to choose by, and
    the scores stay as they are; `state["method"]` says which it is and `state["logloss"]` what each one reached.
    """
    y, p = checked(y, p)
    rows = np.bincount(y.astype(int), minlength=2)
    if rows.min() < 2 * NUM_FOLDS:
        return {"method": "none", "logloss": {"none": logloss(y, p)}, "why": f"only {int(rows.min())} rows of a class"}
    folds = _folds(y)
    reached = {}
    for method, fitter in FITTERS.items():
        held = np.empty(len(p))
        for fold in range(NUM_FOLDS):
            out = folds == fold
            held[out] = apply(fitter(y[~out], p[~out]), p[out])
        reached[method] = logloss(y, held)
    best = min(reached, key=lambda method: reached[method])
    return {**FITTERS[best](y, p), "logloss": reached}


def refitted(state: Mapping[str, Any], held: np.ndarray, level: float) -> dict[str, Any]:
    """The map for the same model fitted again with the validation rows: its shape kept, its log odds shifted so that it
    no longer adds what their level was above that of the model's own rows. The refit learns that level itself, as one
    of all its dates; added again, the next date would be taken for as high as the last.

    held (M,) scores of the validation rows, by which the map was fitted; level: their mean as `own_level` has it.
    """
    return {**state, "shift": _shift(log_odds(apply(state, held)), level)}


def own_level(y: np.ndarray, p: np.ndarray, held: np.ndarray) -> float:
    """Mean probability of rows with the scores held (M,) by a model whose level is made right on the rows that it was
    fitted on: their labels y (N,) of both classes, its scores p (N,) of them. So one whose level is wrong there, such
    as one with class weights, stays corrected for that."""
    y, p = checked(y, p)
    assert 0 < y.mean() < 1, "one class alone has no level to be made right"
    return float(_curve(log_odds(held) + _shift(log_odds(p), float(y.mean()))).mean())


def _shift(odds: np.ndarray, mean: float) -> float:
    """What is added to log odds so that the probabilities have this mean."""
    return float(brentq(lambda size: float(_curve(odds + size).mean() - mean), -MOST_SHIFT, MOST_SHIFT))


def apply(state: Mapping[str, Any], p: np.ndarray) -> np.ndarray:
    """Calibrated probabilities float64 (N,), in 0..1."""
    if "shift" in state:
        whole = {name: value for name, value in state.items() if name != "shift"}
        return _curve(log_odds(apply(whole, p)) + state["shift"])
    p = np.asarray(p, dtype=np.float64)
    if state["method"] == "none":
        return p
    if state["method"] == "platt":
        return _curve(state["slope"] * log_odds(p) + state["intercept"])
    mapped = np.interp(p, state["scores"], state["probabilities"])
    return (1.0 - TILT) * mapped + TILT * p


def _none(y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    return {"method": "none"}


def _platt(y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """Logistic curve over the score's log odds, with Platt's (1999) targets, by Newton's method."""
    num_positive = y.sum()
    target = np.where(y == 1, (num_positive + 1) / (num_positive + 2), 1 / (len(y) - num_positive + 2))
    x = np.stack([log_odds(p), np.ones(len(p))], axis=1)
    beta = np.array([0.0, float(log_odds(target.mean()))])
    loss = _curve_loss(x, target, beta)
    for _ in range(MAX_NEWTON_STEPS):
        q = _curve(x @ beta)
        hessian = (x * (q * (1 - q))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (q - target))
        size = 1.0
        while (moved := _curve_loss(x, target, beta - size * step)) > loss and size > 1e-6:
            size /= 2  # a full step from far away overshoots
        if loss - moved < 1e-12:
            break
        beta, loss = beta - size * step, moved
    if beta[0] < LEAST_SLOPE:  # would turn the order round: the score says nothing here, so nearly the base rate
        beta = np.array([LEAST_SLOPE, float(log_odds(target.mean()))])
    return {"method": "platt", "slope": float(beta[0]), "intercept": float(beta[1])}


def _curve(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _curve_loss(x: np.ndarray, target: np.ndarray, beta: np.ndarray) -> float:
    return float((np.logaddexp(0.0, x @ beta) - target * (x @ beta)).mean())


def _isotonic(y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """Pool adjacent violators; knots at each block's mean score, straight lines between them."""
    values, group = np.unique(p, return_inverse=True)
    sizes, sums = np.bincount(group).astype(float), np.bincount(group, y)
    blocks: list[list[float]] = []  # rows, positives, sum of scores
    for size, positives, value in zip(sizes, sums, values, strict=True):
        blocks.append([size, positives, size * value])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    # One more row of the base rate in each block: no probability of exactly 0 or 1 from a handful of rows.
    base = float(y.mean())
    probabilities = np.maximum.accumulate([(positives + base) / (size + 1) for size, positives, _ in blocks])
    scores = [total / size for size, _, total in blocks]
    return {"method": "isotonic", "scores": scores, "probabilities": probabilities.tolist()}


FITTERS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Any]]] = {
    "none": _none,
    "platt": _platt,
    "isotonic": _isotonic,
}


def log_odds(p: np.ndarray, edge: float = EDGE) -> np.ndarray:
    """(N,) of probabilities, kept `edge` away from 0 and 1."""
    p = np.clip(p, edge, 1.0 - edge)
    return np.log(p) - np.log1p(-p)


def _folds(y: np.ndarray) -> np.ndarray:
    """Fold of each row (N,), classes spread evenly, in row order shuffled with a fixed seed."""
    folds = np.empty(len(y), dtype=np.int64)
    rng = np.random.default_rng(0)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(y == label))
        folds[rows] = np.arange(len(rows)) % NUM_FOLDS
    return folds


def fit_bands(y: np.ndarray, p: np.ndarray, missed_share: float = 0.1, high: float | None = None) -> dict[str, float]:
    """Thresholds of the bands on calibrated probabilities of validation rows.

    high: probability >= `high`, by default the threshold with the best F1. low: probability < `low`, the highest
    observed score (not above `high`) below which at most `missed_share` of the positives lie. medium: between.
    """
    y, p = checked(y, p)
    high = f1_threshold(y, p) if high is None else high
    values, group = np.unique(p, return_inverse=True)
    below = np.concatenate([[0.0], np.cumsum(np.bincount(group, y))[:-1]])
    allowed = values[below <= missed_share * y.sum()]
    return {"low": float(min(allowed.max(), high)), "high": float(high)}


def bands(p: np.ndarray, thresholds: Mapping[str, float]) -> np.ndarray:
    """One of BANDS for each probability: object (N,)."""
    names = np.array(BANDS, dtype=object)
    return names[(p >= thresholds["low"]).astype(int) + (p >= thresholds["high"]).astype(int)]
