"""How strong the penalty of a linear model on texts is to be, and how sure it may be: by cross-validation on the
training rows.

Ratings that say little of their text want a strong penalty, labels given to the very text a weak one: a hundred times
apart. The choice is by macro-F1, which rare classes count in as much as others, and among equals by log-loss at the
temperature that suits each strength; that is also what makes margins logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from crmray import log
from crmray.evaluate.metrics import macro_f1_figure
from crmray.models import text_calibration
from crmray.models.tabular import softmax
from crmray.models.text_calibration import fit_temperature, tempered

NUM_FOLDS = 3
CALIBRATION_FOLDS = 5
"""of which four are nearly all rows: a model of fewer rows is less often right, which is not to be learned"""
NUM_DIGITS = 3
"""of a macro-F1 that count: what differs less is equal"""
MAX_ROWS = 6_000
"""training rows that the choice is made on"""


def best(
    solver: Callable[[float], Any], features: Any, code: np.ndarray, path: Sequence[float], *, scale: float, seed: int
) -> tuple[float, float]:
    """The C of the path with the highest macro-F1, and by how much its margins are to be multiplied to be logits.

    solver: C -> scikit-learn's classifier; features (N, F) CSR, code (N,) int64 of 0..K-1; scale: of the margins to
    begin with.
    """
    rows, fold = _folds(code, seed, NUM_FOLDS, MAX_ROWS)
    features, code = features[rows], code[rows]
    found = []
    for strength in path:
        margins = held_out(partial(solver, strength), features, code, fold)
        probability = softmax(scale * margins)
        temperature = fit_temperature(code, probability)
        given = tempered(probability, temperature)[np.arange(len(code)), code]
        figure = macro_f1_figure(code, margins.argmax(1), margins.shape[1])(np.ones(len(code)))
        loss = float(-np.log(np.maximum(given, 1e-12)).mean())
        found.append((-round(figure, NUM_DIGITS), loss, strength, temperature))
    figure, loss, strength, temperature = min(found)
    told: dict[str, Any] = {"macro_f1": -figure, "log_loss": round(loss, 4), "temperature": round(temperature, 3)}
    log.event("train.penalty", C=strength, **told)
    return strength, scale / temperature


def calibration_of(
    make: Callable[[], Any], features: Any, code: np.ndarray, *, scale: float, seed: int
) -> dict[str, Any]:
    """What calibrates the probabilities of the solver fitted on all these rows (see text_calibration): learned from
    rows that it was not fitted on, fold by fold, which are many more than the validation rows."""
    rows, fold = _folds(code, seed, CALIBRATION_FOLDS, len(code))
    margins = held_out(make, features[rows], code[rows], fold)
    return text_calibration.fit(code[rows], softmax(scale * margins))


def held_out(make: Callable[[], Any], features: Any, code: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Margins (N, K) of each row by a solver fitted on the other folds."""
    margins = np.empty((len(code), int(code.max()) + 1))
    for k in range(int(fold.max()) + 1):
        model = make().fit(features[fold != k], code[fold != k])
        margins[fold == k] = two_sided(model.decision_function(features[fold == k]))
    return margins


def two_sided(margins: np.ndarray) -> np.ndarray:
    """(N, K) margins; of two classes scikit-learn gives the second one's alone (N,)."""
    return np.stack([-margins / 2, margins / 2], axis=1) if margins.ndim == 1 else margins


def _folds(code: np.ndarray, seed: int, num_folds: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers, at most so many, and the fold of each: every class in all folds, as evenly as it goes."""
    order = np.random.default_rng(seed).permutation(len(code))
    by_class = order[np.argsort(code[order], kind="stable")]
    step = max(1.0, len(code) / most)
    rows = by_class[np.arange(0, len(code), step).astype(np.int64)]
    counts = np.bincount(code[rows], minlength=int(code.max()) + 1)
    rare = np.flatnonzero(counts < num_folds)  # thinned out too much: these classes whole
    rows = np.concatenate([rows[~np.isin(code[rows], rare)], by_class[np.isin(code[by_class], rare)]])
    return rows, np.arange(len(rows)) % num_folds
