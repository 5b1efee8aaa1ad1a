"""Everything that a report says of predictions, as JSON: figures, their intervals, curves, groups of rows.

`metrics` and `amounts` give plain figures, cheap enough for every epoch; this adds what is looked at once, on the test
rows.
Intervals are 95 % percentile intervals of the bootstrap over rows. Curves are lists of at most MAX_POINTS points.
N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.evaluate import amounts, metrics
from crmray.evaluate.metrics import NUM_BINS
from crmray.models.columns import feature_columns

MAX_POINTS = 101
NUM_TENTHS = 10
NUM_RESAMPLES, MIN_RESAMPLES = 1_000, 100
RESAMPLED_CELLS = 20_000_000
"""rows × resamples that intervals may cost; of many rows fewer resamples are drawn, down to MIN_RESAMPLES"""
MIN_GROUP_ROWS = 50
"""smaller groups are not shown: their figures are noise, and few people could be told apart in them"""
MAX_GROUPS = 8
"""categories of a column that is shown by category"""


def binary(
    label: np.ndarray, probability: np.ndarray, threshold: float, *, groups: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """metrics.binary at the threshold, and intervals, confusion [[tn, fp], [fn, tp]], top_tenth, groups and curves.

    label (N,) of 0 and 1, probability (N,) in 0..1, groups name -> mask (N,) bool, left out without rows. Curves:
    roc {false_positive_rate, recall}, pr {recall, precision}, calibration [{from, to, rows, mean_probability, rate}],
    gains {share, found}, lift [{decile, rows, mean, lift}].
    """
    label, probability = metrics.checked(label, probability)
    said = (probability >= threshold).astype(np.int64)
    return {
        **metrics.binary(label, probability, threshold),
        "intervals": _intervals(_binary_figures(label, probability, threshold), len(label)),
        "confusion": metrics.confusion_of(label.astype(np.int64), said, 2).astype(int).tolist(),
        "top_tenth": metrics.top_share(label, probability, 0.1),
        "groups": {
            name: _group(label[mask], probability[mask], threshold)
            for name, mask in (groups or {}).items()
            if mask.any()
        },
        "curves": _binary_curves(label, probability),
    }


def _binary_figures(label: np.ndarray, probability: np.ndarray, threshold: float) -> dict[str, metrics.Figure]:
    said = ("accuracy", "precision", "recall", "f1")
    return {
        "auc": metrics.auc_figure(label, probability),
        "ap": metrics.average_precision_figure(label, probability),
        "logloss": metrics.mean_figure(metrics.logloss_rows(label, probability)),
        "brier": metrics.mean_figure(metrics.brier_rows(label, probability)),
        **{name: metrics.said_figure(label, probability, threshold, name) for name in said},
    }


def _intervals(figures: Mapping[str, metrics.Figure], num_rows: int) -> dict[str, list[float]]:
    resamples = min(NUM_RESAMPLES, max(MIN_RESAMPLES, RESAMPLED_CELLS // num_rows))
    found = metrics.bootstrap_cis(figures, num_rows, num_resamples=resamples)
    return {name: list(interval) for name, interval in found.items()}


def bands(label: np.ndarray, probability: np.ndarray, band: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Name -> rows of the band (N,), their rate of positives and mean probability; null for a band without rows."""
    return {name: _rates(label[band == name], probability[band == name]) for name in names}


def _rates(label: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    rate, given = (float(values.mean()) if len(label) else None for values in (label, probability))
    return {"rows": len(label), "rate": rate, "mean_probability": given}


def _group(label: np.ndarray, probability: np.ndarray, threshold: float) -> dict[str, Any]:
    """Rows, their rate of positives and mean probability, accuracy, precision, recall and f1; auc with both classes."""
    return {
        **_rates(label, probability),
        "auc": metrics.auc(label, probability) if 0 < label.sum() < len(label) else None,
        **metrics.at_threshold(label, probability, threshold),
    }


def segments(test: pa.Table, labels: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Groups of rows to look at apart: `column = value` -> mask (N,), for text features with few values.

    Only columns with 2 to MAX_GROUPS values of MIN_GROUP_ROWS rows or more each; rarer values are left out.
    """
    masks: dict[str, np.ndarray] = {}
    for column in feature_columns(test.schema, labels)[1]:
        counts = pc.value_counts(test[column].cast(pa.string()).drop_null())
        common = [item["values"] for item in counts.to_pylist() if item["counts"] >= MIN_GROUP_ROWS]
        if not 2 <= len(common) <= MAX_GROUPS:
            continue
        values = test[column].cast(pa.string()).to_numpy(zero_copy_only=False)
        masks |= {f"{column.replace('_', ' ')} = {value}": values == value for value in sorted(common)}
    return masks


def _binary_curves(label: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    false_alarms, recall, _ = roc_curve(label, probability)
    precision, found, _ = precision_recall_curve(label, probability)
    return {
        "roc": _thinned({"false_positive_rate": false_alarms, "recall": recall}),
        "pr": _thinned({"recall": found, "precision": precision}),
        "calibration": _calibration(label, probability),
        "gains": _gains(label, probability),
        "lift": deciles(label, probability),
    }


def _thinned(curve: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """The points of a curve, or MAX_POINTS of them evenly along its length, ends included."""
    points = np.stack(list(curve.values()))
    if points.shape[1] > MAX_POINTS:
        way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(points)).sum(0))])
        kept = np.unique(np.searchsorted(way, np.linspace(0.0, way[-1], MAX_POINTS)).clip(max=points.shape[1] - 1))
        points = points[:, kept]
    return {name: [round(float(value), 6) for value in row] for name, row in zip(curve, points, strict=True)}


def _calibration(label: np.ndarray, probability: np.ndarray) -> list[dict[str, Any]]:
    """Bins of equal width that hold rows: the bins of the expected calibration error."""
    place = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
    rows, hits, mass = (np.bincount(place, weights, NUM_BINS) for weights in (None, label, probability))
    return [
        {
            "from": k / NUM_BINS,
            "to": (k + 1) / NUM_BINS,
            "rows": int(rows[k]),
            "mean_probability": float(mass[k] / rows[k]),
            "rate": float(hits[k] / rows[k]),
        }
        for k in np.flatnonzero(rows).tolist()
    ]


def _gains(value: np.ndarray, score: np.ndarray) -> dict[str, list[float]]:
    """share of rows taken from the top of the score, and share of all `value` in them, 0 where there is none; ties
    count evenly."""
    _, place, rows = np.unique(-score, return_inverse=True, return_counts=True)
    total = amounts.positive_sum(value)
    taken = np.concatenate([[0.0], np.cumsum(rows) / len(score)])
    found = np.concatenate([[0.0], np.cumsum(np.bincount(place, value)) / total if total else np.cumsum(rows) * 0.0])
    share = np.linspace(0.0, 1.0, MAX_POINTS)
    return {"share": share.round(6).tolist(), "found": np.interp(share, taken, found).round(6).tolist()}


def deciles(value: np.ndarray, score: np.ndarray) -> list[dict[str, Any]]:
    """Tenths of the rows from the highest score down (ties in row order): rows, mean value, lift over the mean of all.

    value (N,) of labels or amounts. Empty tenths (fewer than ten rows) are left out.
    """
    order = np.argsort(-score, kind="stable")
    mean = amounts.positive_sum(value) / len(value)
    found = []
    for number, rows in enumerate(np.array_split(order, NUM_TENTHS), start=1):
        if len(rows):
            rate = float(value[rows].mean())
            lift = rate / mean if mean else None
            found.append({"decile": number, "rows": len(rows), "mean": rate, "lift": lift})
    return found


def classes(label: np.ndarray, probability: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """metrics.classes, and intervals, confusion K × K (rows true, columns said), classes {name: figures}, calibration.

    label (N,) int in 0..K-1, probability (N, K), names (K,). Figures of a class: rows, precision, recall, f1, and auc
    of it against the rest where it has rows on both sides.
    """
    label, probability = metrics.checked_classes(label, probability)
    num_classes, said = probability.shape[1], probability.argmax(1)
    if len(names) != num_classes:
        raise ValueError(f"got {len(names)} names, expected one for each of {num_classes} classes")
    confusion = metrics.confusion_of(label, said, num_classes)
    right = (said == label).astype(np.float64)
    figures = {
        "accuracy": metrics.mean_figure(right),
        "macro_f1": metrics.macro_f1_figure(label, said, num_classes),
    }
    each = metrics.by_class(confusion)
    per_class = {}
    for k, name in enumerate(names):
        own = label == k
        auc = metrics.auc(own, probability[:, k]) if 0 < own.sum() < len(own) else None
        per_class[str(name)] = {"rows": int(own.sum()), **{key: float(v[k]) for key, v in each.items()}, "auc": auc}
    return {
        **metrics.classes(label, probability),
        "intervals": _intervals(figures, len(label)),
        "names": [str(name) for name in names],
        "confusion": confusion.astype(int).tolist(),
        "classes": per_class,
        "curves": {"calibration": _calibration(right, probability.max(1))},
    }


def amount(truth: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    """amounts.amount, and intervals and curves: gains {share, found, ideal} and lift by decile of the prediction.

    truth (N,), prediction (N,), both finite. A decile of `lift` holds rows, mean (of the truth), mean_prediction, lift.
    """
    truth, prediction = amounts.checked(truth, prediction)
    told = amounts.amount(truth, prediction)
    figures = {name: make(truth, prediction) for name, make in amounts.FIGURES.items() if name in told}
    lift = [
        {**of_truth, "mean_prediction": of_prediction["mean"]}
        for of_truth, of_prediction in zip(deciles(truth, prediction), deciles(prediction, prediction), strict=True)
    ]
    return {
        **told,
        "intervals": _intervals(figures, len(truth)),
        "curves": {
            "gains": {**_gains(truth, prediction), "ideal": _gains(truth, truth)["found"]},
            "lift": lift,
        },
    }
