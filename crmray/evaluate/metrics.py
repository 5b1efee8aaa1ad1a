"""Figures for predictions, and their bootstrap intervals.

Binary: labels y (N,) of 0 and 1, scores or probabilities p (N,). Ranking: N rows, K ranked items each, a set of true
items per row. A `Figure` is a metric prepared for resampling: a function of row weights (N,), so that a bootstrap sorts
the rows once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from crmray.errors import DataError, NotEnoughDataError

Figure = Callable[[np.ndarray], float]
"""Row weights (N,) -> figure; NaN where the weighted rows hold one class only."""

CLIP = 1e-6  # probabilities are kept this far from 0 and 1 in the log-loss
LEVEL = 0.95
"""of intervals"""
NUM_BINS = 10
"""bins of probability of the calibration error"""


def checked(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores as float64 (N,). DataError when lengths differ or a value is not finite, or a label not 0/1."""
    y, p = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 1 or not len(y):
        raise DataError(f"got labels {y.shape} and scores {p.shape}, expected two arrays of one length above 0")
    if not np.isin(y, (0.0, 1.0)).all():
        raise DataError("got a label other than 0 and 1, expected only these")
    if not np.isfinite(p).all():
        raise DataError(f"got {int((~np.isfinite(p)).sum())} scores that are not finite, expected finite numbers")
    return y, p


def auc_figure(y: np.ndarray, p: np.ndarray) -> Figure:
    """Area under the ROC curve; ties count half."""
    y, p = checked(y, p)
    order, group = _groups(p)
    positive = y[order]

    def figure(weights: np.ndarray) -> float:
        w = weights[order]
        up = np.bincount(group, w * positive)
        down = np.bincount(group, w * (1.0 - positive))
        below = np.cumsum(down) - down
        total = up.sum() * down.sum()
        return float((up * (below + down / 2)).sum() / total) if total else float("nan")

    return figure


def average_precision_figure(y: np.ndarray, p: np.ndarray) -> Figure:
    """Mean of precision over recall steps, no interpolation (as scikit-learn's average_precision_score)."""
    y, p = checked(y, p)
    order, group = _groups(p)
    positive = y[order]

    def figure(weights: np.ndarray) -> float:
        w = weights[order]
        up = np.bincount(group, w * positive)[::-1]
        seen = np.cumsum(np.bincount(group, w)[::-1])
        if not up.sum():
            return float("nan")
        precision = np.divide(np.cumsum(up), seen, out=np.zeros_like(seen), where=seen > 0)
        return float((up * precision).sum() / up.sum())

    return figure


def mean_figure(values: np.ndarray) -> Figure:
    """Weighted mean of a value per row (losses, hits, NDCG of each row)."""
    values = np.asarray(values, dtype=np.float64)

    def figure(weights: np.ndarray) -> float:
        return float(weights @ values / weights.sum())

    return figure


def _groups(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending order of the scores, and for each place in it the number of its group of equal scores."""
    order = np.argsort(p, kind="stable")
    ranked = p[order]
    return order, np.concatenate([[0], np.cumsum(ranked[1:] != ranked[:-1])])


def logloss_rows(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Log-loss of each row, natural logarithm, probabilities clipped to [1e-6, 1 - 1e-6]."""
    y, p = checked(y, p)
    p = np.clip(p, CLIP, 1.0 - CLIP)
    return -(y * np.log(p) + (1.0 - y) * np.log1p(-p))


def brier_rows(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Squared error of each row's probability."""
    y, p = checked(y, p)
    return (p - y) ** 2


def auc(y: np.ndarray, p: np.ndarray) -> float:
    """Area under the ROC curve. NotEnoughDataError when only one class is there."""
    return _defined(auc_figure(y, p), y)


def average_precision(y: np.ndarray, p: np.ndarray) -> float:
    """Average precision. NotEnoughDataError when only one class is there."""
    return _defined(average_precision_figure(y, p), y)


def logloss(y: np.ndarray, p: np.ndarray) -> float:
    """Mean log-loss."""
    return float(logloss_rows(y, p).mean())


def brier(y: np.ndarray, p: np.ndarray) -> float:
    """Mean squared error of probabilities."""
    return float(brier_rows(y, p).mean())


def _defined(figure: Figure, y: np.ndarray) -> float:
    num_positive = int(np.sum(y))
    if num_positive in (0, len(y)):
        raise NotEnoughDataError(f"got {num_positive} positives in {len(y)} rows, expected both classes in these rows")
    return figure(np.ones(len(y)))


def expected_calibration_error(y: np.ndarray, p: np.ndarray) -> float:
    """Mean |share of positives - mean probability| over NUM_BINS equal-width bins of probability, weighted by rows."""
    y, p = checked(y, p)
    bins = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = np.bincount(bins, y, NUM_BINS) - np.bincount(bins, p, NUM_BINS)
    return float(np.abs(gaps).sum() / len(y))


def at_threshold(y: np.ndarray, p: np.ndarray, threshold: float) -> dict[str, float]:
    """accuracy, precision, recall, f1 with positive = score >= threshold; 0 where a denominator is 0."""
    y, p = checked(y, p)
    said = p >= threshold
    hits = float(y[said].sum())
    precision = hits / said.sum() if said.any() else 0.0
    recall = hits / y.sum() if y.any() else 0.0
    f1 = 2 * hits / (said.sum() + y.sum()) if said.any() or y.any() else 0.0
    return {
        "accuracy": float((said == (y == 1)).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def f1_threshold(y: np.ndarray, p: np.ndarray) -> float:
    """The observed score with the highest F1, positive = score >= threshold; of equal ones the highest score."""
    y, p = checked(y, p)
    values, group = np.unique(-p, return_inverse=True)  # highest score first
    hits = np.cumsum(np.bincount(group, y))
    said = np.cumsum(np.bincount(group))
    return float(-values[np.argmax(2 * hits / (said + y.sum()))])


def binary(y: np.ndarray, p: np.ndarray, threshold: float | None = None) -> dict[str, float]:
    """auc, ap, logloss, brier, ece, base_rate, rows; with a threshold also that and `at_threshold`."""
    figures = {
        "auc": auc(y, p),
        "ap": average_precision(y, p),
        "logloss": logloss(y, p),
        "brier": brier(y, p),
        "ece": expected_calibration_error(y, p),
        "base_rate": float(np.mean(y)),
        "rows": len(y),
    }
    if threshold is not None:
        figures |= {**at_threshold(y, p, threshold), "threshold": float(threshold)}
    return figures


def top_share(y: np.ndarray, p: np.ndarray, share: float) -> dict[str, float]:
    """lift and recall of the ceil(share N) highest scores (of equal ones the first rows)."""
    y, p = checked(y, p)
    size = int(np.ceil(share * len(y)))
    top = np.argsort(-p, kind="stable")[:size]
    rate = float(y[top].mean())
    return {"lift": rate / float(y.mean()) if y.any() else 0.0, "recall": float(y[top].sum() / max(y.sum(), 1.0))}


def said_figure(y: np.ndarray, p: np.ndarray, threshold: float, name: str) -> Figure:
    """accuracy, precision, recall or f1 with positive = score >= threshold; NaN where it is not defined."""
    y, p = checked(y, p)
    said = (p >= threshold).astype(np.float64)
    over, under = {
        "accuracy": ((said == y).astype(np.float64), np.ones(len(y))),
        "precision": (y * said, said),
        "recall": (y * said, y),
        "f1": (2.0 * y * said, y + said),
    }[name]

    def figure(weights: np.ndarray) -> float:
        total = weights @ under
        return float(weights @ over / total) if total else float("nan")

    return figure


def checked_classes(label: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 (N,) in 0..K-1 and probabilities float64 (N, K); DataError for anything else."""
    label, probability = np.asarray(label), np.asarray(probability, dtype=np.float64)
    if probability.ndim != 2 or label.shape != probability.shape[:1] or not len(label):
        raise DataError(f"got labels {label.shape} and probabilities {probability.shape}, expected (N,) and (N, K)")
    if not np.isin(label, np.arange(probability.shape[1])).all():
        raise DataError(f"got a label outside 0..{probability.shape[1] - 1}, expected the number of a class")
    if not np.isfinite(probability).all():
        raise DataError("got probabilities that are not finite, expected finite numbers")
    return label.astype(np.int64), probability


def confusion_of(label: np.ndarray, said: np.ndarray, num_classes: int, weights: np.ndarray | None = None):
    """Confusion matrix float64 (K, K): rows are the true classes, columns what was said."""
    cells = np.bincount(label * num_classes + said, weights, num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.float64)


def by_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall, f1 of each class (K,), 0 where a denominator is 0, from a confusion matrix."""
    hits, true, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)

    def share(over: np.ndarray, under: np.ndarray) -> np.ndarray:
        return np.divide(over, under, out=np.zeros(len(over)), where=under > 0)

    return {"precision": share(hits, said), "recall": share(hits, true), "f1": share(2 * hits, true + said)}


def macro_f1_figure(label: np.ndarray, said: np.ndarray, num_classes: int) -> Figure:
    """Mean F1 of the classes that occur among the true or said ones (as scikit-learn's macro average)."""

    def figure(weights: np.ndarray) -> float:
        confusion = confusion_of(label, said, num_classes, weights)
        return float(by_class(confusion)["f1"][_occurring(confusion)].mean())

    return figure


def _occurring(confusion: np.ndarray) -> np.ndarray:
    return confusion.sum(0) + confusion.sum(1) > 0


def classes(label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """accuracy, macro_f1, macro_precision, macro_recall, logloss, ece, majority_share, rows.

    The class said is the most probable one. Macro means are over the classes that occur among the true or said ones.
    ece is that of the probability of the class said (Guo et al. 2017).
    """
    label, probability = checked_classes(label, probability)
    num_classes, said = probability.shape[1], probability.argmax(1)
    confusion = confusion_of(label, said, num_classes)
    means = {name: float(values[_occurring(confusion)].mean()) for name, values in by_class(confusion).items()}
    given = np.clip(probability[np.arange(len(label)), label], CLIP, 1.0)
    right = (said == label).astype(np.float64)
    return {
        "accuracy": float(right.mean()),
        **{f"macro_{name}": means[name] for name in ("f1", "precision", "recall")},
        "logloss": float(-np.log(given).mean()),
        "ece": expected_calibration_error(right, probability.max(1)),
        "majority_share": float(np.bincount(label).max() / len(label)),
        "rows": len(label),
    }


def ranking_rows(ranked: np.ndarray, truth: Sequence[Any], k: int = 10) -> dict[str, np.ndarray]:
    """hr, ndcg, recall, mrr at k of each row: float64 (N,).

    ranked (N, K') items, best first, object or integer; None or -1 fills a short list. truth: per row a collection of
    distinct true items, none empty. NDCG is binary with the ideal of min(k, |truth|); mrr is 1 / rank of the first hit.
    """
    ranked = np.asarray(ranked)[:, :k]
    sizes = np.array([len(t) for t in truth], dtype=np.int64)
    if len(sizes) != len(ranked) or not len(sizes) or sizes.min() == 0:
        raise DataError(f"got {len(ranked)} ranked rows and {len(sizes)} truths, expected one that is not empty each")
    hits = _hits(ranked, truth, sizes)
    discounts = 1.0 / np.log2(np.arange(ranked.shape[1]) + 2.0)
    ideal = np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))[np.minimum(sizes, k) - 1]
    found = hits.any(axis=1)
    return {
        "hr": found.astype(np.float64),
        "ndcg": hits @ discounts / ideal,
        "recall": hits.sum(axis=1) / sizes,
        "mrr": np.where(found, 1.0 / (hits.argmax(axis=1) + 1.0), 0.0),
    }


def _hits(ranked: np.ndarray, truth: Sequence[Any], sizes: np.ndarray) -> np.ndarray:
    """bool (N, K): whether the item is among the row's true ones."""
    true_items = [item for row in truth for item in row]
    codes = {item: code for code, item in enumerate(dict.fromkeys(true_items))}
    flat = np.fromiter((codes.get(item, -1) for item in ranked.ravel().tolist()), np.int64, ranked.size)
    rows = np.repeat(np.arange(len(ranked)), ranked.shape[1])
    wanted = np.repeat(np.arange(len(sizes)), sizes) * len(codes)
    wanted += np.fromiter((codes[item] for item in true_items), np.int64, len(true_items))
    return (np.isin(rows * len(codes) + flat, wanted) & (flat >= 0)).reshape(ranked.shape)


def coverage(ranked: np.ndarray, num_items: int, k: int = 10) -> float:
    """Distinct items in the first k of all rows / items in the catalogue; None and -1 do not count."""
    return len(set(np.asarray(ranked)[:, :k].ravel().tolist()) - {None, -1}) / num_items


def resampled_weights(num_rows: int, num_resamples: int) -> Iterator[np.ndarray]:
    """Row weights (N,) of bootstrap samples: how often each row was drawn. The same ones every time."""
    rng = np.random.default_rng(0)
    for _ in range(num_resamples):
        yield np.bincount(rng.integers(num_rows, size=num_rows), minlength=num_rows).astype(np.float64)


def interval_of(values: np.ndarray) -> tuple[float, float]:
    """The ends between which LEVEL of the values lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_ci(figure: Figure, num_rows: int, *, num_resamples: int = 1000) -> tuple[float, float]:
    """Percentile interval of a figure. Resamples with one class only are left out.

    NotEnoughDataError when all of them are.
    """
    found = bootstrap_cis({"": figure}, num_rows, num_resamples=num_resamples)
    if not found:
        raise NotEnoughDataError(f"got {num_rows} rows of one class, expected both for an interval")
    return found[""]


def bootstrap_cis(
    figures: Mapping[str, Figure], num_rows: int, *, num_resamples: int
) -> dict[str, tuple[float, float]]:
    """Name -> percentile interval (low, high) of each figure, all over the same resamples of the rows; a figure that is
    defined on none of them has no interval."""
    every = resampled_weights(num_rows, num_resamples)
    draws = np.array([[figure(weights) for figure in figures.values()] for weights in every])
    found = {}
    for name, values in zip(figures, draws.T, strict=True):
        known = values[np.isfinite(values)]
        if len(known):
            found[name] = interval_of(known)
    return found
