"""Gradient-boosted trees by LightGBM, for a label of any kind.

Same contract as `crmray.models.tabular`; `kind` says what the label is (crmray.models.labels). Numbers go in as they
are, missing ones included, categories as codes. The model is stored in LightGBM's own text format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import CorruptError
from crmray.models.focal import Focal, recovered
from crmray.models.labels import Kind, Target, check_imbalance, class_weights, within_budget
from crmray.models.preprocess import Preparation, Tabular
from crmray.models.recent import SHARES, Recent, share_file
from crmray.models.selection import fit_tabular
from crmray.models.tabular import (
    check_choice,
    check_positive,
    check_some_feature,
    file_of,
    needs_features,
    sigmoid,
    to_json,
)

if TYPE_CHECKING:
    import lightgbm

SINGLE_THREAD_ROWS = 2000  # below this, starting threads costs more than the prediction
OBJECTIVES: dict[Kind, tuple[str, str]] = {
    "yes_no": ("binary", "binary_logloss"),
    "number": ("regression", "l2"),
    "class": ("multiclass", "multi_logloss"),
}
"""kind of label -> LightGBM's objective, and the validation figure of early stopping"""


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """Hyper-parameters of gradient-boosted trees (Ke et al. 2017) that are stopped early on validation."""

    NAME: ClassVar[str] = "lightgbm"
    KIND: ClassVar[str] = "memory"

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
    num_threads: int = 1
    """Threads of the fit; the result is the same for any number."""
    memory_gib: float = 2.0
    """Training rows are sampled beyond this."""

    def __post_init__(self) -> None:
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

    def shared_parameters(self, seed: int) -> dict[str, Any]:
        """What LightGBM is told of these hyper-parameters, so that a fit repeats."""
        return {
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


@dataclass(frozen=True, kw_only=True)
class LightGBM(Boosting):
    """Boosted trees for a label of any kind."""

    GRID: ClassVar[dict[str, tuple]] = {
        "num_leaves": (8, 32),
        "feature_fraction": (0.3, 0.8),
        "min_rows_leaf": (10, 100),
    }

    min_frequency: int = 10
    """Rows that a category needs for a code of its own."""
    stop_on: Literal["logloss", "auc"] = "logloss"
    """Validation figure of early stopping; AUC alone can stop after a few rounds, with useless probabilities."""
    imbalance: Literal["none", "weights", "focal"] = "none"
    """Treatment of unequal classes: none, class weights, or focal loss with the probabilities corrected for it."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss: how little easy rows weigh."""
    max_correlation: float = 1.0
    """Of two numbers that correlate more the later one is left out; see `Preparation`."""
    eliminate: bool = False
    """Whether recursive elimination leaves features out; see `selection`."""
    kind: Kind = "yes_no"
    """What the label is: yes or no, a number, or one of several classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(focal_gamma=self.focal_gamma)
        check_choice("stop_on", self.stop_on, ("logloss", "auc"))
        if self.stop_on == "auc" and (self.kind != "yes_no" or self.imbalance == "focal"):
            raise ValueError(f"got stop_on='auc' with kind={self.kind}, imbalance={self.imbalance}, expected 'logloss'")
        check_imbalance(self.kind, self.imbalance, ("none", "weights", "focal"))

    applies = staticmethod(needs_features)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> LightGBMModel:
        """Fit `rounds` rounds if given; else stop early on validation; else `num_rounds`."""
        import lightgbm

        target = Target.fit(train, self.kind)
        train = target.known(train)
        preparation = Preparation(
            scale="none", min_frequency=self.min_frequency, max_correlation=self.max_correlation
        )  # fmt: skip
        tabular = fit_tabular(train, preparation, eliminate=self.eliminate, kind=self.kind, seed=seed)
        check_some_feature(tabular)
        width = len(tabular.numeric) + len(tabular.categorical)
        rows = within_budget(
            train, bytes_per_row=8 * 3 * width, memory_gib=self.memory_gib, candidate=self.NAME, seed=seed
        )
        labels = target.values(rows)
        focused = Focal.start_of(labels, self.focal_gamma) if self.imbalance == "focal" else None
        data = lightgbm.Dataset(
            lightgbm_matrix(tabular, rows),
            labels,
            weight=class_weights(labels) if self.imbalance == "weights" else None,
            init_score=np.full(len(labels), focused.start) if focused else None,
            categorical_feature=list(range(len(tabular.numeric), width)),
            params={"verbosity": -1, "min_data_in_leaf": self.min_rows_leaf, "num_threads": self.num_threads},
        )
        stop_early = rounds is None and validation is not None
        if stop_early:
            held = [_held(data, tabular, target, validation, focused)]
            stop = lightgbm.early_stopping(self.patience, first_metric_only=True, verbose=False)
        recorded: dict[str, dict[str, list[float]]] = {}
        booster = lightgbm.train(
            self._parameters(seed, target, focused),
            data,
            num_boost_round=self.max_rounds if stop_early else rounds or self.num_rounds,
            valid_sets=[data, *held] if stop_early else None,
            valid_names=["train", "validation"] if stop_early else None,
            feval=focused.logloss if focused and stop_early else None,
            callbacks=[stop, lightgbm.record_evaluation(recorded)] if stop_early else None,
        )
        best = booster.best_iteration if stop_early else booster.current_iteration()
        log.event("train.boosted", rounds=best, features=width)
        return LightGBMModel(
            tabular=tabular,
            target=target,
            booster=reloaded(booster.model_to_string(num_iteration=best)),
            focal=focused,
            rounds=best,
            history=learning_of(recorded),
        )

    def _parameters(self, seed: int, target: Target, focused: Focal | None) -> dict[str, Any]:
        objective, loss = OBJECTIVES[self.kind]
        return {
            "objective": focused.objective if focused else objective,
            "metric": "None" if focused else "auc" if self.stop_on == "auc" else loss,
            **({"num_class": len(target.classes)} if self.kind == "class" else {}),
            **self.shared_parameters(seed),
        }

    @staticmethod
    def load(files: Mapping[str, bytes]) -> LightGBMModel:
        """The model that `save` wrote."""
        state = json.loads(file_of(files, "tabular.json"))
        booster = reloaded(file_of(files, "model.txt").decode())
        return LightGBMModel(
            tabular=Tabular.from_state(state),
            target=Target.from_state(state["target"]),
            booster=booster,
            focal=Focal(**state["focal"]) if state["focal"] else None,
            rounds=booster.current_iteration(),
        )


@dataclass(frozen=True, kw_only=True)
class RecentLightGBM(Recent, LightGBM):
    """Gradient-boosted trees on the newest rows."""

    GRID: ClassVar[dict[str, tuple]] = {**LightGBM.GRID, "newest_share": SHARES}


def _held(
    data: lightgbm.Dataset, tabular: Tabular, target: Target, validation: pa.Table, focused: Focal | None
) -> lightgbm.Dataset:
    """The validation rows for early stopping; rows of a class that training did not have say nothing of a round."""
    labels = target.values(validation, part="validation")
    known = labels >= 0 if target.kind == "class" else np.ones(len(labels), bool)
    start = np.full(int(known.sum()), focused.start) if focused else None
    return data.create_valid(lightgbm_matrix(tabular, validation)[known], labels[known], init_score=start)


def learning_of(recorded: Mapping[str, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """What LightGBM's record_evaluation kept as figures per round: train_loss and validation_loss, or those of AUC."""
    return {
        f"{rows}_{'auc' if metric == 'auc' else 'loss'}": values
        for rows, figures in recorded.items()
        for metric, values in figures.items()
    }


def reloaded(text: str) -> lightgbm.Booster:
    """The booster of LightGBM's own text format. CorruptError for a text that it refuses."""
    import lightgbm

    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise CorruptError(f"model.txt: got text that LightGBM refuses ({error}), expected a model") from None


def lightgbm_matrix(tabular: Tabular, table: pa.Table) -> np.ndarray:
    """Numbers with NaN where missing, then codes: float64 (N, F + C)."""
    return np.concatenate([tabular.raw(table), tabular.codes(table)], axis=1)


@dataclass(frozen=True, kw_only=True)
class LightGBMModel:
    """Fitted boosted trees with their preprocessing."""

    tabular: Tabular
    """Its preprocessing."""
    target: Target
    """What it predicts."""
    booster: lightgbm.Booster
    """Trees up to the best round."""
    focal: Focal | None = None
    """The focal loss that it was fitted with."""
    rounds: int | None = None
    """Their number."""
    history: Mapping[str, list[float]] = field(default_factory=dict)
    """Figures of every round of a fit with early stopping; not saved."""
    newest_share: float = 1.0
    """Share of the training rows, of the newest dates, that it was fitted on; see `recent`."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, or of classes the probability of each; see Target.scores."""
        if not examples.num_rows:
            return self.target.empty()
        threads: dict[str, Any] = {"num_threads": 1} if examples.num_rows < SINGLE_THREAD_ROWS else {}
        raw = np.asarray(self.booster.predict(lightgbm_matrix(self.tabular, examples), **threads))
        if self.focal is not None:
            raw = recovered(sigmoid(raw + self.focal.start), self.focal.gamma)
        return self.target.scores(raw)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        state = {**self.tabular.state(), "target": self.target.state()}
        state["focal"] = None if self.focal is None else asdict(self.focal)
        text = self.booster.model_to_string().encode()
        return {"tabular.json": to_json(state), "model.txt": text, **share_file(self.newest_share)}
