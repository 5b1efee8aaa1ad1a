"""What the candidates for a binary label do with their training rows: labels, classes of unequal size, memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import DataError, NotEnoughDataError, SchemaError
from crmray.models.preprocess import numbers_of

LABEL = "label"
GIB = 2**30
IMBALANCE = ("none", "weights", "smote")


def labels_of(table: pa.Table, name: str = LABEL, *, part: str = "") -> np.ndarray:
    """Labels as int64 (N,) of 0 and 1, both with two rows or more.

    DataError for a missing or other value, NotEnoughDataError for a class with fewer than two rows; both give counts.
    `part` names the rows in messages ("validation").
    """
    where = f"column {name!r} of the {part} rows" if part else f"column {name!r}"
    if name not in table.column_names:
        raise SchemaError(f"{where} is missing; expected it as the 0/1 label of training rows")
    values = numbers_of(table, name)
    missing = int(np.isnan(values).sum())
    if missing:
        raise DataError(f"{where}: got {missing} of {len(values)} rows without a value, expected 0 or 1 in each")
    wrong = ~np.isin(values, (0.0, 1.0))
    if wrong.any():
        raise DataError(f"{where}: got {values[wrong.argmax()]:g} in {int(wrong.sum())} rows, expected 0 or 1")
    num_positive = int(values.sum())
    if min(num_positive, len(values) - num_positive) < 2:
        raise NotEnoughDataError(
            f"{where}: got {num_positive} rows with 1 and {len(values) - num_positive} with 0, "
            "expected at least 2 of each; give more history or another definition of the label"
        )
    return values.astype(np.int64)


def within_budget(table: pa.Table, *, bytes_per_row: float, memory_gib: float, candidate: str, seed: int) -> pa.Table:
    """The table, or as many random rows of it (in their order) as the budget holds, with an event that says so."""
    max_rows = max(int(memory_gib * GIB / bytes_per_row), 1000)
    if table.num_rows <= max_rows:
        return table
    log.warn("train.sampled", candidate=candidate, rows=table.num_rows, kept=max_rows, memory_gib=memory_gib)
    rows = np.sort(np.random.default_rng(seed).choice(table.num_rows, max_rows, replace=False))
    return table.take(pa.array(rows))


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weight per row that gives both classes the same total, N / 2: float64 (N,)."""
    counts = np.bincount(labels, minlength=2)
    return (len(labels) / (2.0 * counts))[labels]


def smote(
    numbers: np.ndarray, codes: np.ndarray, labels: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the rarer class added by SMOTE until both are even; the given rows come first, unchanged.

    numbers float64 (N, F), finite; codes int64 (N, C); labels int64 (N,). SMOTE-NC where there are categories
    (Chawla et al. 2002). For training rows only.
    """
    from imblearn.over_sampling import SMOTE, SMOTEN, SMOTENC

    k = min(5, int(np.bincount(labels, minlength=2).min()) - 1)
    num_numbers, num_codes = numbers.shape[1], codes.shape[1]
    both = np.concatenate([numbers, codes.astype(np.float64)], axis=1)
    if not num_codes:
        sampler = SMOTE(k_neighbors=k, random_state=seed)
    elif not num_numbers:
        sampler = SMOTEN(k_neighbors=k, random_state=seed)
    else:
        places = list(range(num_numbers, num_numbers + num_codes))
        sampler = SMOTENC(categorical_features=places, k_neighbors=k, random_state=seed)
    rows, new_labels = sampler.fit_resample(both, labels)
    log.event("train.smote", rows=len(labels), rows_after=len(new_labels), positives=int(labels.sum()))
    rows = np.asarray(rows, dtype=np.float64)
    return rows[:, :num_numbers], np.rint(rows[:, num_numbers:]).astype(np.int64), np.asarray(new_labels, np.int64)


def rebalanced(
    numbers: np.ndarray, codes: np.ndarray, labels: np.ndarray, imbalance: str, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(numbers, codes, labels, weights) after the chosen treatment of unequal classes."""
    if imbalance == "smote":
        numbers, codes, labels = smote(numbers, codes, labels, seed=seed)
    weights = class_weights(labels) if imbalance == "weights" else np.ones(len(labels))
    return numbers, codes, labels, weights
