"""The rule of thumb for a binary label, recency, and what candidates share.

Every candidate is a frozen dataclass of its hyper-parameters; `fit` gives a fitted model whose `predict` returns
{"score": float64 (N,)}, the probability of label 1 (calibrated later by the task). Labels are 0 or 1 in column `label`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from crmray.errors import CorruptError, NotEnoughDataError
from crmray.models.columns import numbers_of
from crmray.models.labels import LABEL, labels_of
from crmray.models.preprocess import Tabular
from crmray.schema import KEYS


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """ValueError unless value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"got {name}={value!r}, expected one of {', '.join(map(str, allowed))}")


def check_positive(**values: float) -> None:
    """ValueError unless every value is above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"got {name}={value!r}, expected a number above 0")


def needs(*names: str) -> Callable[[Collection[str]], str | None]:
    """`applies` of a candidate that reads these columns: the reason why it cannot run on others, or None."""

    def applies(columns: Collection[str]) -> str | None:
        missing = [name for name in names if name not in columns]
        return f"the examples have no column {missing[0]!r}" if missing else None

    return applies


def needs_features(columns: Collection[str]) -> str | None:
    """The reason why a tabular candidate cannot run on these columns, or None."""
    rest = [c for c in columns if c not in KEYS and c != LABEL and not c.startswith("label_")]
    return None if rest else "the examples have no feature columns"


def check_some_feature(tabular: Tabular) -> None:
    """NotEnoughDataError when preprocessing kept no column."""
    if not tabular.numeric and not tabular.categorical:
        raise NotEnoughDataError(
            f"got only columns without information ({tabular.dropped}), expected one feature at least"
        )


def file_of(files: Mapping[str, bytes], name: str) -> bytes:
    """One file of a saved model; CorruptError when it is not there."""
    if name not in files:
        raise CorruptError(f"got model files {sorted(files)}, expected {name!r} among them; publish the bundle again")
    return files[name]


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON; floats keep their bits."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, e) / (1.0 + e)


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) from logits (N, K), without overflow."""
    e = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Recency:
    """The rule of thumb: the longer ago the last event, the likelier the label. Only its scale is learned."""

    NAME: ClassVar[str] = "recency"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    column: str = "recency_days"
    """Days since the last event; a row without any counts as the longest seen in training."""

    @classmethod
    def applies(cls, columns: Collection[str]) -> str | None:
        """Why it cannot run on examples with these columns, or None."""
        return None if cls.column in columns else f"the examples have no column {cls.column!r}"

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> RecencyModel:
        """Fit the two numbers of a logistic curve over log(1 + days); validation, seed and rounds change nothing."""
        from sklearn.linear_model import LogisticRegression

        labels = labels_of(train)
        days = numbers_of(train, self.column)
        if np.isnan(days).all():
            raise NotEnoughDataError(f"column {self.column!r}: got no value in {len(days)} rows, expected days")
        longest = float(np.nanmax(days))
        x = _log_days(days, longest)
        curve = LogisticRegression(C=np.inf).fit(x[:, None], labels)
        # Where long absence goes with label 0 the rule is wrong; it still ranks by its rule and validation shows it.
        slope = max(float(curve.coef_[0, 0]), 1e-3)
        intercept = float(curve.intercept_[0])
        return RecencyModel(column=self.column, longest_days=longest, slope=slope, intercept=intercept)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> RecencyModel:
        """The model that `save` wrote."""
        return RecencyModel(**json.loads(file_of(files, "recency.json")))


def _log_days(days: np.ndarray, longest: float) -> np.ndarray:
    return np.log1p(np.maximum(np.where(np.isnan(days), longest, days), 0.0))


@dataclass(frozen=True, kw_only=True)
class RecencyModel:
    """A fitted recency rule."""

    column: str
    """Days since the last event."""
    longest_days: float
    """Stands in for a missing value."""
    slope: float
    """Of the log odds over log(1 + days); above 0."""
    intercept: float
    """Log odds at 0 days."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}."""
        x = _log_days(numbers_of(examples, self.column), self.longest_days)
        return {"score": sigmoid(self.intercept + self.slope * x)}

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"recency.json": to_json(asdict(self))}
