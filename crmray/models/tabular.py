"""Plain candidates for a binary label: a recency rule and logistic regression; what tree candidates share with them.

Every candidate is a frozen dataclass of its hyper-parameters; `fit` gives a fitted model whose `predict` returns
{"score": float64 (N,)}, the probability of label 1 (calibrated later by the task). Labels are 0 or 1 in column `label`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray.errors import CorruptError, NotEnoughDataError, TrainingError
from crmray.models.labels import IMBALANCE, LABEL, labels_of, rebalanced, within_budget
from crmray.models.preprocess import Preparation, Tabular, numbers_of
from crmray.models.selection import fit_tabular
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


@dataclass(frozen=True, kw_only=True)
class Recency:
    """The rule of thumb: the longer ago the last event, the likelier the label. Only its scale is learned."""

    NAME: ClassVar[str] = "recency"
    KIND: ClassVar[str] = "memory"
    NEURAL: ClassVar[bool] = False
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
    rounds: int | None = None
    """Has none."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}."""
        x = _log_days(numbers_of(examples, self.column), self.longest_days)
        return {"score": sigmoid(self.intercept + self.slope * x)}

    def check(self, examples: pa.Table) -> None:
        """SchemaError when the column is missing or not a number."""
        numbers_of(examples, self.column)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        fields = ("column", "longest_days", "slope", "intercept")
        return {"recency.json": to_json({field: getattr(self, field) for field in fields})}


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """L2-regularised logistic regression on scaled numbers and one-hot categories."""

    NAME: ClassVar[str] = "logistic"
    KIND: ClassVar[str] = "memory"
    NEURAL: ClassVar[bool] = False
    GRID: ClassVar[dict[str, tuple]] = {"scale": ("standard", "quantile"), "C": (0.01, 0.1, 1.0, 10.0)}

    C: float = 1.0
    """Inverse strength of the L2 penalty."""
    scale: Literal["minmax", "standard", "quantile"] = "standard"
    """Scaling of numbers; see `Preparation`."""
    imbalance: Literal["none", "weights", "smote"] = "none"
    """Treatment of unequal classes on training rows: none, class weights, or SMOTE."""
    missing: Literal["mean", "median", "mode"] = "median"
    """What a missing number becomes; see `Preparation`."""
    outliers: Literal["none", "clip"] = "none"
    """Bounds on numbers; see `Preparation`."""
    iqr_k: float = 3.0
    """Interquartile ranges allowed beyond the quartiles."""
    min_frequency: int = 10
    """Rows that a category needs for a column of its own."""
    max_correlation: float = 1.0
    """Of two numbers that correlate more the later one is left out; see `Preparation`."""
    eliminate: bool = False
    """Whether recursive elimination leaves features out; see `selection`."""
    max_iterations: int = 2000
    """Of the solver (L-BFGS)."""
    memory_gib: float = 2.0
    """Training rows are sampled beyond this."""

    def __post_init__(self):
        check_positive(C=self.C, max_iterations=self.max_iterations, memory_gib=self.memory_gib)
        check_choice("imbalance", self.imbalance, IMBALANCE)
        self._preparation()

    @classmethod
    def applies(cls, columns: Collection[str]) -> str | None:
        """Why it cannot run on examples with these columns, or None."""
        return needs_features(columns)

    def _preparation(self) -> Preparation:
        return Preparation(
            missing=self.missing,
            outliers=self.outliers,
            iqr_k=self.iqr_k,
            scale=self.scale,
            min_frequency=self.min_frequency,
            max_correlation=self.max_correlation,
        )

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> LogisticModel:
        """Fit on training rows; validation and rounds change nothing."""
        from sklearn.linear_model import LogisticRegression

        labels_of(train)
        tabular = fit_tabular(train, self._preparation(), eliminate=self.eliminate, kind="yes_no", seed=seed)
        width = len(tabular.names)
        check_some_feature(tabular)
        rows = within_budget(
            train, bytes_per_row=8 * 4 * width, memory_gib=self.memory_gib, candidate=self.NAME, seed=seed
        )
        numbers, codes, labels, weights = rebalanced(
            tabular.numbers(rows), tabular.codes(rows), labels_of(rows), self.imbalance, seed
        )
        x = np.concatenate([numbers, tabular.one_hot(codes)], axis=1)
        solver = LogisticRegression(C=self.C, max_iter=self.max_iterations).fit(x, labels, sample_weight=weights)
        if not np.isfinite(solver.coef_).all():
            raise TrainingError("logistic: got a coefficient that is not finite; look for extreme values in the data")
        return LogisticModel(tabular=tabular, coefficients=solver.coef_[0], intercept=float(solver.intercept_[0]))

    @staticmethod
    def load(files: Mapping[str, bytes]) -> LogisticModel:
        """The model that `save` wrote."""
        state = json.loads(file_of(files, "logistic.json"))
        coefficients = np.asarray(state["coefficients"], dtype=np.float64)
        tabular = Tabular.from_state(state["tabular"])
        return LogisticModel(tabular=tabular, coefficients=coefficients, intercept=state["intercept"])


@dataclass(frozen=True, kw_only=True)
class LogisticModel:
    """A fitted logistic regression: as JSON, so that serving needs no scikit-learn."""

    tabular: Tabular
    """Its preprocessing."""
    coefficients: np.ndarray
    """float64 (D,), in the order of tabular.names."""
    intercept: float
    """Log odds where all scaled features are 0."""
    rounds: int | None = None
    """Has none."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}."""
        return {"score": sigmoid(self.tabular.matrix(examples) @ self.coefficients + self.intercept)}

    def check(self, examples: pa.Table) -> None:
        """As `Tabular.check`."""
        self.tabular.check(examples)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        state = {"tabular": self.tabular.state(), "coefficients": self.coefficients.tolist()}
        return {"logistic.json": to_json({**state, "intercept": self.intercept})}
