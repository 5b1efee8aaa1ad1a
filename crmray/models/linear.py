"""A linear model for a label of any kind: logistic regression for yes or no and for classes, ridge for numbers.

Same contract as `crmray.models.tabular`; `kind` says what the label is (crmray.models.labels). How strong the penalty
has to be is for cross-validation on the training rows to say: many columns that tell nothing want a hundred times what
a few that tell all want. Shapes: N rows, D columns of Tabular.matrix, K outputs (1, or one for each class).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import TrainingError
from crmray.models.labels import Kind, Target, check_imbalance, rebalanced, sampled, within_budget
from crmray.models.preprocess import Tabular
from crmray.models.recent import SHARES, Recent, share_file
from crmray.models.selection import NUM_FOLDS, Preprocessing, folds_of, loss_of
from crmray.models.tabular import check_positive, check_some_feature, file_of, needs_features, sigmoid, softmax, to_json

PATH = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
"""values of C that are tried"""
NOT_CHOSEN = 1.0
"""C where there is too little to choose by"""
MAX_ROWS = 6_000
"""training rows that the choice is made on"""


@dataclass(frozen=True, kw_only=True)
class Linear(Preprocessing):
    """L2-regularised linear model on scaled numbers and one-hot categories."""

    NAME: ClassVar[str] = "linear"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"scale": ("standard", "quantile"), "C": (0.01, 0.1, 1.0, 10.0)}

    C: float = 0.0
    """Inverse strength of the L2 penalty; 0: chosen by cross-validation on the training rows."""
    imbalance: Literal["none", "weights", "smote"] = "none"
    """Treatment of unequal classes on training rows: none, class weights, or SMOTE."""
    kind: Kind = "yes_no"
    """What the label is: yes or no, a number, or one of several classes."""
    max_iterations: int = 2000
    """Of the solver (L-BFGS)."""
    memory_gib: float = 2.0
    """Training rows are sampled beyond this."""

    def __post_init__(self) -> None:
        if not self.C >= 0:
            raise ValueError(f"got C={self.C!r}, expected a number above 0, or 0 to have it chosen")
        check_positive(max_iterations=self.max_iterations, memory_gib=self.memory_gib)
        check_imbalance(self.kind, self.imbalance)
        super().__post_init__()

    applies = staticmethod(needs_features)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> LinearModel:
        """Fit on training rows; validation and rounds change nothing."""
        target = Target.fit(train, self.kind)
        train = target.known(train)
        tabular = self.fit_tabular(train, self.kind, seed=seed)
        check_some_feature(tabular)
        rows = within_budget(
            train, bytes_per_row=8 * 4 * len(tabular.names), memory_gib=self.memory_gib, candidate=self.NAME, seed=seed
        )
        numbers, codes, labels, weights = rebalanced(
            tabular.numbers(rows), tabular.codes(rows), target.values(rows), self.imbalance, seed
        )
        solver = self._solver(self.C or self._chosen(tabular, target, rows, seed))
        solver.fit(np.concatenate([numbers, tabular.one_hot(codes)], axis=1), labels, sample_weight=weights)
        coefficients = np.atleast_2d(solver.coef_)
        if not np.isfinite(coefficients).all():
            raise TrainingError(
                f"{self.NAME}: got a coefficient that is not finite; look for extreme values in the data"
            )
        if self.kind == "class" and len(target.classes) == 2:  # scikit-learn gives two classes one row of coefficients
            coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
            intercept = np.array([-0.5, 0.5]) * float(solver.intercept_[0])
        else:
            intercept = np.atleast_1d(solver.intercept_)
        return LinearModel(tabular=tabular, target=target, coefficients_KD=coefficients, intercept_K=intercept)

    def _solver(self, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        if self.kind == "number":
            return Ridge(alpha=1.0 / strength)
        return LogisticRegression(C=strength, max_iter=self.max_iterations)

    def _chosen(self, tabular: Tabular, target: Target, rows: pa.Table, seed: int) -> float:
        """The C of PATH with the least loss over folds (whole customers) of training rows; NOT_CHOSEN where a fold
        would leave a class with less than two rows to learn from."""
        rows = sampled(rows, MAX_ROWS, seed=seed)
        numbers, codes, labels = tabular.numbers(rows), tabular.codes(rows), target.values(rows)
        fold, losses = folds_of(rows, seed), np.zeros(len(PATH))
        for out in (fold == k for k in range(NUM_FOLDS)):
            if not out.any() or not len(labels[~out]):
                return NOT_CHOSEN
            if self.kind != "number" and min((labels[~out] == one).sum() for one in np.unique(labels)) < 2:
                return NOT_CHOSEN
            kept = rebalanced(numbers[~out], codes[~out], labels[~out], self.imbalance, seed)
            inside = np.concatenate([kept[0], tabular.one_hot(kept[1])], axis=1)
            outside = np.concatenate([numbers[out], tabular.one_hot(codes[out])], axis=1)
            for place, strength in enumerate(PATH):
                solver = self._solver(strength).fit(inside, kept[2], sample_weight=kept[3])
                losses[place] += out.sum() * loss_of(_predicted(solver, outside, self.kind), labels[out], self.kind)
        chosen = PATH[int(losses.argmin())]
        log.event("train.penalty", candidate=self.NAME, C=chosen, loss=float(losses.min() / len(labels)))
        return chosen

    @staticmethod
    def load(files: Mapping[str, bytes]) -> LinearModel:
        """The model that `save` wrote."""
        state = json.loads(file_of(files, "linear.json"))
        return LinearModel(
            tabular=Tabular.from_state(state["tabular"]),
            target=Target.from_state(state["target"]),
            coefficients_KD=np.asarray(state["coefficients"], dtype=np.float64),
            intercept_K=np.asarray(state["intercept"], dtype=np.float64),
        )


def _predicted(solver: Any, matrix: np.ndarray, kind: Kind) -> np.ndarray:
    """(N,) probabilities of yes or numbers, (N, K) probabilities of classes."""
    if kind == "number":
        return solver.predict(matrix)
    probability = solver.predict_proba(matrix)
    return probability if kind == "class" else probability[:, 1]


@dataclass(frozen=True, kw_only=True)
class Logistic(Linear):
    """Logistic regression: the linear model under the name that it has where every label is yes or no."""

    NAME: ClassVar[str] = "logistic"


@dataclass(frozen=True, kw_only=True)
class RecentLogistic(Recent, Logistic):
    """Logistic regression on the newest rows."""

    GRID: ClassVar[dict[str, tuple]] = {**Logistic.GRID, "newest_share": SHARES}


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """A fitted linear model: as JSON, so that serving needs no scikit-learn."""

    tabular: Tabular
    """Its preprocessing."""
    target: Target
    """What it predicts."""
    coefficients_KD: np.ndarray
    """float64, columns in the order of tabular.names."""
    intercept_K: np.ndarray
    """Outputs where all scaled features are 0."""
    newest_share: float = 1.0
    """Share of the training rows, of the newest dates, that it was fitted on; see `recent`."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, or of classes the probability of each; see Target.scores."""
        raw_NK = self.tabular.matrix(examples) @ self.coefficients_KD.T + self.intercept_K
        if self.target.kind == "yes_no":
            return self.target.scores(sigmoid(raw_NK[:, 0]))
        return self.target.scores(softmax(raw_NK) if self.target.kind == "class" else raw_NK[:, 0])

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        state = {"tabular": self.tabular.state(), "target": self.target.state()}
        state |= {"coefficients": self.coefficients_KD.tolist(), "intercept": self.intercept_K.tolist()}
        return {"linear.json": to_json(state), **share_file(self.newest_share)}
