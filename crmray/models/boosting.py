"""Gradient-boosted trees for a binary label, by LightGBM.

Same contract as `crmray.models.tabular`. Numbers go in as they are, missing ones included, categories as codes. The
model is stored in LightGBM's own text format.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import CorruptError
from crmray.models.labels import class_weights, labels_of, within_budget
from crmray.models.preprocess import Preparation, Tabular
from crmray.models.tabular import check_choice, check_positive, check_some_feature, file_of, needs_features, to_json

if TYPE_CHECKING:
    import lightgbm

SINGLE_THREAD_ROWS = 2000  # below this, starting threads costs more than the prediction


@dataclass(frozen=True, kw_only=True)
class LightGBM:
    """Gradient-boosted trees (Ke et al. 2017), stopped early on validation."""

    NAME: ClassVar[str] = "lightgbm"
    KIND: ClassVar[str] = "memory"
    NEURAL: ClassVar[bool] = False
    GRID: ClassVar[dict[str, tuple]] = {
        "num_leaves": (8, 32),
        "feature_fraction": (0.3, 0.8),
        "min_rows_leaf": (10, 100),
    }

    learning_rate: float = 0.05
    """Shrinkage per round."""
    num_leaves: int = 16
    """Leaves per tree."""
    min_rows_leaf: int = 20
    """Training rows in each leaf."""
    feature_fraction: float = 0.8
    """Share of features tried per tree."""
    bagging_fraction: float = 0.8
    """Share of rows per round."""
    l2: float = 1.0
    """L2 penalty on leaf values."""
    max_rounds: int = 2000
    """Most rounds with early stopping."""
    num_rounds: int = 200
    """Rounds where there is neither validation nor a number from the caller."""
    patience: int = 100
    """Rounds without a better validation figure before it stops."""
    stop_on: Literal["logloss", "auc"] = "logloss"
    """Validation figure of early stopping; AUC alone can stop after a few rounds, with useless probabilities."""
    imbalance: Literal["none", "weights"] = "none"
    """Treatment of unequal classes: none or class weights."""
    min_frequency: int = 10
    """Rows that a category needs for a code of its own."""
    num_threads: int = 1
    """Threads of the fit; the result is the same for any number."""
    memory_gib: float = 2.0
    """Training rows are sampled beyond this."""

    def __post_init__(self):
        check_positive(
            learning_rate=self.learning_rate,
            min_rows_leaf=self.min_rows_leaf,
            max_rounds=self.max_rounds,
            num_rounds=self.num_rounds,
            patience=self.patience,
            num_threads=self.num_threads,
            memory_gib=self.memory_gib,
        )
        if self.num_leaves < 2 or not 0 < self.feature_fraction <= 1 or not 0 < self.bagging_fraction <= 1:
            raise ValueError(
                f"got num_leaves={self.num_leaves}, feature_fraction={self.feature_fraction}, "
                f"bagging_fraction={self.bagging_fraction}, expected at least 2 leaves and fractions in (0, 1]"
            )
        check_choice("stop_on", self.stop_on, ("logloss", "auc"))
        check_choice("imbalance", self.imbalance, ("none", "weights"))

    @classmethod
    def applies(cls, columns: Collection[str]) -> str | None:
        """Why it cannot run on examples with these columns, or None."""
        return needs_features(columns)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> LightGBMModel:
        """Fit `rounds` rounds if given; else stop early on validation; else `num_rounds`."""
        import lightgbm

        labels_of(train)
        tabular = Tabular.fit(train, Preparation(scale="none", min_frequency=self.min_frequency))
        check_some_feature(tabular)
        width = len(tabular.numeric) + len(tabular.categorical)
        rows = within_budget(
            train, bytes_per_row=8 * 3 * width, memory_gib=self.memory_gib, candidate=self.NAME, seed=seed
        )
        labels = labels_of(rows)
        categorical = list(range(len(tabular.numeric), width))
        data = lightgbm.Dataset(
            _lightgbm_matrix(tabular, rows),
            labels,
            weight=class_weights(labels) if self.imbalance == "weights" else None,
            categorical_feature=categorical,
            params={"verbosity": -1, "min_data_in_leaf": self.min_rows_leaf, "num_threads": self.num_threads},
        )
        stop_early = rounds is None and validation is not None
        if stop_early:
            held = [data.create_valid(_lightgbm_matrix(tabular, validation), labels_of(validation, part="validation"))]
            stop = lightgbm.early_stopping(self.patience, first_metric_only=True, verbose=False)
        booster = lightgbm.train(
            self._parameters(seed),
            data,
            num_boost_round=self.max_rounds if stop_early else rounds or self.num_rounds,
            valid_sets=held if stop_early else None,
            callbacks=[stop] if stop_early else None,
        )
        best = booster.best_iteration if stop_early else booster.current_iteration()
        log.event("train.boosted", rounds=best, features=width)
        return LightGBMModel(
            tabular=tabular, booster=_reloaded(booster.model_to_string(num_iteration=best)), rounds=best
        )

    def _parameters(self, seed: int) -> dict[str, Any]:
        return {
            "objective": "binary",
            "metric": "auc" if self.stop_on == "auc" else "binary_logloss",
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_rows_leaf,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": self.bagging_fraction,
            "bagging_freq": 1 if self.bagging_fraction < 1 else 0,
            "lambda_l2": self.l2,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.num_threads,
            "verbosity": -1,
        }

    @staticmethod
    def load(files: Mapping[str, bytes]) -> LightGBMModel:
        """The model that `save` wrote."""
        tabular = Tabular.from_state(json.loads(file_of(files, "tabular.json")))
        booster = _reloaded(file_of(files, "model.txt").decode())
        return LightGBMModel(tabular=tabular, booster=booster, rounds=booster.current_iteration())


def _reloaded(text: str) -> lightgbm.Booster:
    import lightgbm

    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise CorruptError(f"model.txt: got text that LightGBM refuses ({error}), expected a model") from None


def _lightgbm_matrix(tabular: Tabular, table: pa.Table) -> np.ndarray:
    """Numbers with NaN where missing, then codes: float64 (N, F + C)."""
    return np.concatenate([tabular.raw(table), tabular.codes(table)], axis=1)


@dataclass(frozen=True, kw_only=True)
class LightGBMModel:
    """Fitted boosted trees with their preprocessing."""

    tabular: Tabular
    """Its preprocessing."""
    booster: lightgbm.Booster
    """Trees up to the best round."""
    rounds: int | None
    """Their number."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}."""
        if not examples.num_rows:
            return {"score": np.zeros(0)}
        threads: dict[str, Any] = {"num_threads": 1} if examples.num_rows < SINGLE_THREAD_ROWS else {}
        return {"score": np.asarray(self.booster.predict(_lightgbm_matrix(self.tabular, examples), **threads))}

    def check(self, examples: pa.Table) -> None:
        """As `Tabular.check`."""
        self.tabular.check(examples)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"tabular.json": to_json(self.tabular.state()), "model.txt": self.booster.model_to_string().encode()}
