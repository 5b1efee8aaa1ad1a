"""Probabilities of classes that are true: a temperature, and a curve for each class where it is said.

The class said is always the most probable one before and after: only how sure it is changes. N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crmray.evaluate import calibration
from crmray.evaluate.metrics import logloss_rows
from crmray.models.tabular import softmax

LEAST_Z = 1.64
"""standard errors of log-loss that a calibration has to gain"""
LEAST_EACH = 10
"""rows of which a class is said rightly, and as many wrongly, without which it has no curve of its own"""
NUM_FOLDS = 5
"""in which it is tried whether the curves gain"""
ABOVE_TIE = 1e-9
"""by which the class said stays above the next"""


def fit_temperature(label: np.ndarray, probability: np.ndarray) -> float:
    """The T for which softmax(log p / T) has the least log-loss on these rows (Guo et al. 2017): golden section.

    label (N,) int64; rows whose class the model does not know (probability 0) say nothing of T and are left out.
    """
    given = probability[np.arange(len(label)), label] > 0
    label, logits = label[given], np.log(np.maximum(probability[given], 1e-12))
    if not len(label):
        return 1.0

    def loss(log_t: float) -> float:
        p = softmax(logits / np.exp(log_t))
        return float(-np.log(np.maximum(p[np.arange(len(label)), label], 1e-12)).mean())

    low, high = np.log(0.05), np.log(20.0)
    ratio = (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))


def fit(label: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """What makes the probability of the class said the share of rows that are of it, as JSON: a temperature, and then
    for each class, where it is said, a curve for its probability (calibration.fit): classes differ in their noise.

    label (N,), probability (N, K) of rows that the model did not learn from. What gains no more log-loss than chance
    would (one-sided, LEAST_Z; the curves on rows held out) is not taken: it would be the noise of these rows.
    """
    temperature = fit_temperature(label, probability)
    if not _gains(_log_loss(label, probability), _log_loss(label, tempered(probability, temperature))):
        temperature = 1.0
    warm = tempered(probability, temperature)
    said, sure = warm.argmax(1), warm.max(1)
    right = (said == label).astype(np.float64)
    if min(right.sum(), len(right) - right.sum()) < NUM_FOLDS * LEAST_EACH:
        return {"temperature": temperature, "curves": []}
    held_out, fold = np.empty(len(sure)), np.random.default_rng(0).permutation(len(sure)) % NUM_FOLDS
    for out in (fold == k for k in range(NUM_FOLDS)):
        held_out[out] = _on_curves(_curves(right[~out], said[~out], sure[~out]), said[out], sure[out])
    taken = _gains(logloss_rows(right, sure), logloss_rows(right, held_out))
    return {"temperature": temperature, "curves": _curves(right, said, sure) if taken else []}


def _gains(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether losses (N,) fell by more than chance."""
    gain = before - after
    return bool(gain.mean() > LEAST_Z * gain.std() / np.sqrt(len(gain)))


def _curves(right: np.ndarray, said: np.ndarray, sure: np.ndarray) -> list[dict[str, Any]]:
    """The curve of each class up to the last one said; that of all rows where a class is rarely said."""
    made, every = [], calibration.fit(right, sure)
    for own in (said == k for k in range(int(said.max()) + 1)):
        num_right = right[own].sum()
        enough = min(num_right, own.sum() - num_right) >= LEAST_EACH
        made.append(calibration.fit(right[own], sure[own]) if enough else every)
    return made


def _on_curves(curves: Sequence[Mapping[str, Any]], said: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Probabilities (N,) of the classes said, each on the curve of its class."""
    made = sure.copy()
    for k, curve in enumerate(curves):
        made[said == k] = calibration.apply(curve, sure[said == k])
    return made


def _log_loss(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(N,); a class that the model does not know costs the same at every temperature."""
    return -np.log(np.maximum(probability[np.arange(len(label)), label], 1e-12))


def calibrated(probability: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """Probabilities (N, K): of the class said, which stays the same, by its curve; of the others in proportion.

    probability (N, K) of the model; fitted: what `fit` gave.
    """
    warm = tempered(probability, fitted["temperature"])
    said, rows = warm.argmax(1), np.arange(len(warm))
    rest = warm.copy()
    rest[rows, said] = 0.0
    left = np.maximum(rest.sum(1), 1e-12)
    second = rest.max(1) / left  # of what is left; the class said may not fall to it: a tie is broken by the order
    least = np.minimum(second / (1.0 + second) + ABOVE_TIE, 1.0)
    sure = np.maximum(_on_curves(fitted["curves"], said, warm[rows, said]), least)
    sure = np.where(rest.any(1), sure, 1.0)
    made = rest * ((1.0 - sure) / left)[:, None]
    made[rows, said] = sure
    return made


def tempered(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, K) at a temperature: the order of the classes stays. A probability of 0 stays 0."""
    scaled = softmax(np.log(np.maximum(probability, 1e-12)) / temperature)
    scaled = np.where(probability > 0, scaled, 0.0)
    return scaled / scaled.sum(axis=1, keepdims=True)
