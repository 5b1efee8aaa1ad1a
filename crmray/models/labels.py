"""What candidates do with their training rows: labels, classes of unequal size, memory.

A label is yes or no (0 and 1), a number, or one of several classes (text). N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.data.definitions import Kind
from crmray.errors import DataError, NotEnoughDataError, SchemaError
from crmray.models.columns import numbers_of, texts_of

LABEL = "label"
GIB = 2**30
IMBALANCE = ("none", "weights", "smote")
LEAST_CLASS_ROWS, MAX_CLASSES = 10, 100
CLASS_SCORE = "p:"
"""beginning of the names of the arrays of probabilities that a model of classes predicts, one for each class"""

KINDS: tuple[Kind, ...] = ("yes_no", "number", "class")
"""of a label: 0 and 1, a number, or one of several classes"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a model predicts, as learned from its training rows."""

    kind: Kind
    """Yes or no, a number, or one of several classes."""
    classes: tuple[str, ...] = ()
    """Names of the classes, sorted; empty for the other kinds."""

    @classmethod
    def fit(cls, train: pa.Table, kind: Kind) -> Target:
        """From training rows. Classes with fewer than LEAST_CLASS_ROWS rows are not learned, which an event says.

        NotEnoughDataError when fewer than two classes are left, or for numbers that are all the same; DataError for
        more than MAX_CLASSES classes.
        """
        if kind != "class":
            target = cls(kind=kind)
            values = target.values(train)
            if kind == "number" and np.ptp(values) == 0:
                raise NotEnoughDataError(
                    f"column {LABEL!r}: got {values[0]:g} in all {len(values)} rows, expected numbers that differ"
                )
            return target
        counts = pc.value_counts(_label_texts(train, f"column {LABEL!r}").drop_null()).to_pylist()
        common = sorted(pair["values"] for pair in counts if pair["counts"] >= LEAST_CLASS_ROWS)
        if len(common) < 2:
            raise NotEnoughDataError(
                f"column {LABEL!r}: got {len(common)} of {len(counts)} classes with {LEAST_CLASS_ROWS} rows or more, "
                "expected at least 2; give more history or another definition of the label"
            )
        if len(common) > MAX_CLASSES:
            raise DataError(
                f"column {LABEL!r}: got {len(common)} classes, expected at most {MAX_CLASSES}; predict a column with "
                "fewer values"
            )
        if len(common) < len(counts):
            log.warn("train.rare_classes", learned=len(common), left_out=len(counts) - len(common))
        return cls(kind=kind, classes=tuple(common))

    def known(self, train: pa.Table) -> pa.Table:
        """The training rows without those of classes that are not learned."""
        if self.kind != "class":
            return train
        kept = pc.is_in(_label_texts(train, f"column {LABEL!r}"), value_set=pa.array(self.classes, pa.string()))
        return train.filter(pc.or_(kept, train[LABEL].is_null()))

    def values(self, table: pa.Table, *, part: str = "") -> np.ndarray:
        """(N,): int64 of 0 and 1, float64, or int64 places in `classes` (-1 for a class that training did not have).

        DataError for a missing value, a number that is not finite, or another value than 0 and 1; labels_of's errors.
        """
        if self.kind == "yes_no":
            return labels_of(table, part=part)
        where = f"column {LABEL!r} of the {part} rows" if part else f"column {LABEL!r}"
        if self.kind == "number":
            if LABEL not in table.column_names:
                raise SchemaError(f"{where} is missing; expected it as the label of training rows")
            values = numbers_of(table, LABEL)
            missing = int(np.isnan(values).sum())
        else:
            texts = _label_texts(table, where)
            known = pc.index_in(texts, value_set=pa.array(self.classes, pa.string())).fill_null(-1)
            values, missing = known.to_numpy(zero_copy_only=False).astype(np.int64), texts.null_count
        if missing or not len(values):
            raise DataError(f"{where}: got {missing} of {len(values)} rows without a value, expected one in each")
        return values

    def scores(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        """What a model predicts: {"score": (N,)}; for classes, raw (N, K), as `by_class`."""
        return by_class(self.classes, raw) if self.kind == "class" else {"score": np.asarray(raw, dtype=np.float64)}

    def empty(self) -> dict[str, np.ndarray]:
        """What is predicted for no rows."""
        return self.scores(np.zeros((0, len(self.classes))) if self.kind == "class" else np.zeros(0))

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": self.kind, "classes": list(self.classes)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Target:
        """The inverse of `state`."""
        return cls(kind=state["kind"], classes=tuple(state["classes"]))


def _label_texts(table: pa.Table, where: str) -> pa.Array:
    if LABEL not in table.column_names:
        raise SchemaError(f"{where} is missing; expected it as the label of training rows")
    return texts_of(table, LABEL)


def by_class(classes: Sequence[str], probability_NK: np.ndarray) -> dict[str, np.ndarray]:
    """What a model of classes predicts: {"p:<class>": float64 (N,)}."""
    return {f"{CLASS_SCORE}{name}": np.asarray(probability_NK[:, k], np.float64) for k, name in enumerate(classes)}


def class_scores(predictions: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Names of the classes (K,) and probabilities float64 (N, K) of what a model of classes predicted."""
    names = [name for name in predictions if name.startswith(CLASS_SCORE)]
    columns = [np.asarray(predictions[name], np.float64) for name in names]
    return [name.removeprefix(CLASS_SCORE) for name in names], np.stack(columns, axis=1)


def check_imbalance(kind: Kind, imbalance: str, allowed: Sequence[str] = IMBALANCE) -> None:
    """ValueError for an unknown treatment of unequal classes, or one that a label of this kind cannot have."""
    if kind not in KINDS:
        raise ValueError(f"got kind={kind!r}, expected one of {', '.join(KINDS)}")
    fits = {"yes_no": allowed, "class": [name for name in allowed if name != "focal"], "number": ("none",)}[kind]
    if imbalance not in fits:
        raise ValueError(f"got imbalance={imbalance!r} for a label of kind {kind}, expected one of {', '.join(fits)}")


def labels_of(table: pa.Table, name: str = LABEL, *, part: str = "") -> np.ndarray:
    """Labels as int64 (N,) of 0 and 1, both with two rows or more.

    DataError for a missing or other value, NotEnoughDataError for a class with fewer than two rows, both with counts;
    SchemaError without the column. `part` names the rows in messages ("validation").
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
    """The table, or as many rows of it as the budget holds, as `sampled`, with an event that says so."""
    max_rows = max(int(memory_gib * GIB / bytes_per_row), 1000)
    if table.num_rows > max_rows:
        log.warn("train.sampled", candidate=candidate, rows=table.num_rows, kept=max_rows, memory_gib=memory_gib)
    return sampled(table, max_rows, seed=seed)


def sampled(table: pa.Table, max_rows: int, *, seed: int) -> pa.Table:
    """The table, or max_rows random rows of it, in their order. Stratified where `label` is 0/1 or a class: each class
    keeps its share of the rows, and LEAST_CLASS_ROWS where it has them, so that a rare one does not vanish."""
    if table.num_rows <= max_rows:
        return table
    order = np.random.default_rng(seed).permutation(table.num_rows)
    classes = np.zeros(table.num_rows, np.int64)
    if LABEL in table.column_names and not pa.types.is_floating(table[LABEL].type):
        codes = pc.dictionary_encode(table[LABEL].combine_chunks(), null_encoding="encode")
        classes = codes.indices.to_numpy().astype(np.int64)
    by_class = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes)
    place = np.arange(table.num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of a row within its class
    share = (place + 0.5) / np.repeat(sizes, sizes)
    share[place < min(LEAST_CLASS_ROWS, max_rows // len(sizes))] = 0.0
    kept = by_class[np.argsort(share, kind="stable")[:max_rows]]
    return table.take(pa.array(np.sort(kept)))


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weight per row that gives every class the same total, N / K: float64 (N,). Labels int64 (N,) from 0."""
    counts = np.bincount(labels, minlength=2)
    return (len(labels) / (len(counts) * np.maximum(counts, 1.0)))[labels]


def smote(
    numbers: np.ndarray, codes: np.ndarray, labels: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the rarer classes added by SMOTE until all are even; the given rows come first, unchanged.

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
