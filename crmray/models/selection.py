"""Which features a model keeps, and which are too good to be true.

Two ways to leave features out, both learned on training rows and told with their reasons in Tabular.dropped: of two
numbers that say the same the later one (Preparation.max_correlation), and recursive elimination (Guyon et al. 2002),
where gradient boosting over folds of the training rows says when leaving out more would cost.

Shapes: N rows, F columns of the matrix that is searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.models.columns import feature_columns, numbers_of, texts_of
from crmray.models.labels import Kind, Target, sampled
from crmray.models.preprocess import Preparation, Tabular

NUM_FOLDS = 5
STEP = 0.2
"""share of the features that a round of the elimination leaves out"""
NUM_ROUNDS = 60
"""of boosting in each fold: enough to rank features, few enough to be quick"""
MAX_ROWS = 20_000
"""rows that are looked at; more would change the ranking little and the time much"""
SUSPECT_AUC = 0.99
"""a feature that tells a label this well alone is rarely known before the outcome"""
LEAST_CLASS_ROWS = 10
"""rows of each class that a suspicion rests on"""
_OBJECTIVES: dict[Kind, str] = {"yes_no": "binary", "number": "regression", "class": "multiclass"}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Hyper-parameters of a candidate that takes scaled numbers: what becomes of its features before it sees them."""

    scale: Literal["minmax", "standard", "quantile"] = "standard"
    """Scaling of numbers; see `Preparation`."""
    missing: Literal["mean", "median", "mode"] = "median"
    """What a missing number becomes; see `Preparation`."""
    outliers: Literal["none", "clip"] = "none"
    """Bounds on numbers; see `Preparation`."""
    iqr_k: float = 3.0
    """Interquartile ranges allowed beyond the quartiles."""
    min_frequency: int = 10
    """Rows that a category needs for a column or a code of its own."""
    max_correlation: float = 1.0
    """Of two numbers that correlate more the later one is left out; see `Preparation`."""
    eliminate: bool = False
    """Whether recursive elimination leaves features out; see `eliminated`."""

    def __post_init__(self) -> None:
        self.preparation()

    def preparation(self) -> Preparation:
        """What `fit_tabular` takes. ValueError for a value that is none of those allowed."""
        return Preparation(
            missing=self.missing, outliers=self.outliers, iqr_k=self.iqr_k, scale=self.scale,
            min_frequency=self.min_frequency, max_correlation=self.max_correlation,
        )  # fmt: skip

    def fit_tabular(self, train: pa.Table, kind: Kind, *, seed: int) -> Tabular:
        """Preprocessing learned on training rows."""
        return fit_tabular(train, self.preparation(), eliminate=self.eliminate, kind=kind, seed=seed)


def fit_tabular(train: pa.Table, preparation: Preparation, *, eliminate: bool, kind: Kind, seed: int) -> Tabular:
    """Preprocessing of the features that are kept; what was left out, and why, stands in its `dropped`."""
    removed = eliminated(train, kind, seed=seed) if eliminate else {}
    tabular = Tabular.fit(train.drop_columns(list(removed)), preparation)
    return replace(tabular, dropped={**removed, **tabular.dropped}) if removed else tabular


def removed_of(model: Any) -> dict[str, dict[str, str]]:
    """Family -> column -> why it was left out, of a fitted model or of the members of a blend; {} where none was."""
    members = getattr(model, "members", None) or {"": model}
    found: dict[str, dict[str, str]] = {}
    for name, member in members.items():
        tabular, state = getattr(member, "tabular", None), getattr(member, "state", None)
        if isinstance(tabular, Tabular):
            found[name] = dict(tabular.dropped)
        elif isinstance(state, Mapping) and isinstance(state.get("tabular"), Mapping):
            found[name] = dict(state["tabular"]["dropped"])
    return {name: dropped for name, dropped in found.items() if dropped}


# -- recursive elimination ---------------------------------------------------------------------------------------------


def eliminated(train: pa.Table, kind: Kind, *, seed: int) -> dict[str, str]:
    """Columns that recursive elimination leaves out of training rows -> why.

    Every round leaves out the STEP with the least gain. Of all rounds the one with the fewest columns is taken whose
    mean loss over NUM_FOLDS folds (whole customers) is within one standard error of the best. Empty for one column.
    """
    train = sampled(train, MAX_ROWS, seed=seed)
    target = Target.fit(train, kind)
    train = target.known(train)
    tabular = Tabular.fit(train, Preparation(scale="none"))
    matrix = np.concatenate([tabular.raw(train), tabular.codes(train)], axis=1)
    names = [*(column.name for column in tabular.numeric), *tabular.code_names]
    values, folds = target.values(train), folds_of(train, seed)
    left, rounds = list(range(len(names))), []
    while left:
        losses, gains = _losses(matrix[:, left], values, folds, target, len(tabular.numeric), left, seed)
        rounds.append((list(left), float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(NUM_FOLDS))))
        order = np.argsort(gains, kind="stable")[max(1, int(STEP * len(left))) :]
        left = [left[k] for k in sorted(order.tolist())]
    if len(rounds) < 2:
        return {}
    best = min(rounds, key=lambda one: one[1])
    kept, loss, _ = [one for one in rounds if one[1] <= best[1] + best[2]][-1]
    log.event("train.eliminated", features=len(names), kept=len(kept), loss=loss, loss_of_all=rounds[0][1])
    told = f"loss over {NUM_FOLDS} folds {loss:.4g} with the {len(kept)} columns kept, {rounds[0][1]:.4g} with all"
    last = {names[k]: len(columns) for columns, _, _ in rounds for k in columns}
    gone = [names[k] for k in range(len(names)) if k not in kept]
    return {name: f"recursive elimination: least gain among {last[name]} columns; {told}" for name in gone}


def folds_of(train: pa.Table, seed: int) -> np.ndarray:
    """(N,) fold of each row, 0 to NUM_FOLDS - 1; all rows of a customer are in one."""
    if "entity_id" not in train.column_names:
        return np.random.default_rng(seed).permutation(train.num_rows) % NUM_FOLDS
    codes = train["entity_id"].combine_chunks().dictionary_encode()
    fold_of = np.random.default_rng(seed).permutation(len(codes.dictionary)) % NUM_FOLDS
    return fold_of[codes.indices.to_numpy()]


def _losses(
    matrix: np.ndarray, values: np.ndarray, folds: np.ndarray, target: Target, num_numbers: int, left: Sequence[int],
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Loss of each fold (log-loss, for numbers the mean squared error), and the gain of each column over all folds."""
    import lightgbm

    options: dict[str, Any] = {
        "objective": _OBJECTIVES[target.kind], "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 20,
        "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
    }  # fmt: skip
    if target.kind == "class":
        options["num_class"] = len(target.classes)
    categorical = [place for place, column in enumerate(left) if column >= num_numbers]
    losses, gains = np.zeros(NUM_FOLDS), np.zeros(len(left))
    for fold in range(NUM_FOLDS):
        inside = folds != fold
        data = lightgbm.Dataset(matrix[inside], values[inside], categorical_feature=categorical, params=options)
        booster = lightgbm.train(options, data, NUM_ROUNDS)
        gains += booster.feature_importance("gain")
        if not inside.all():
            losses[fold] = loss_of(np.asarray(booster.predict(matrix[~inside])), values[~inside], target.kind)
    return losses, gains


def loss_of(predicted: np.ndarray, values: np.ndarray, kind: Kind) -> float:
    """Mean log-loss of probabilities (N,) or (N, K); of numbers (N,) the mean squared error."""
    if kind == "number":
        return float(np.square(predicted - values).mean())
    given = predicted[np.arange(len(values)), values] if kind == "class" else np.abs(1 - values - predicted)
    return float(-np.log(np.clip(given, 1e-15, None)).mean())


# -- too good to be true -----------------------------------------------------------------------------------------------


def suspects(train: pa.Table, validation: pa.Table, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Features that alone tell a 0/1 label of the validation rows with an AUC above SUSPECT_AUC: column -> evidence.

    {label, by, auc, rows_with, rows_without}; by is `value` (categories by their rate in the training rows) or
    `missing` (whether there is a value). Such a feature is most often written at or after the outcome. Nothing is left
    out for it: some labels are easy.
    """
    found: dict[str, dict[str, Any]] = {}
    train, validation = _sample(train), _sample(validation)
    for label in labels:
        if any(label not in rows.column_names for rows in (train, validation)):
            continue
        truth, learned = (_truth(rows, label) for rows in (validation, train))
        if truth is None or learned is None:
            continue
        numeric, categorical = feature_columns(validation.schema, labels)
        for name in (*numeric, *categorical):
            if name not in train.column_names:
                continue
            values = numbers_of(validation, name) if name in numeric else _rates(train, validation, name, learned)
            missing = np.isnan(values)
            for by, score, rows in (("value", values, ~missing), ("missing", missing, np.ones(len(truth), bool))):
                auc = _auc(truth[rows], score[rows])
                if auc > SUSPECT_AUC and (name not in found or auc > found[name]["auc"]):
                    with_, without = int(truth[rows].sum()), int((~truth[rows]).sum())
                    found[name] = {"label": label, "by": by, "auc": round(auc, 4), "rows_with": with_,
                                   "rows_without": without}  # fmt: skip
    return found


def _sample(rows: pa.Table) -> pa.Table:
    if rows.num_rows <= MAX_ROWS:
        return rows
    return rows.take(pa.array(np.linspace(0, rows.num_rows - 1, MAX_ROWS).astype(np.int64)))


def _truth(rows: pa.Table, label: str) -> np.ndarray | None:
    """(N,) bool; None for a label that is not 0 and 1."""
    column = rows[label]
    if not pa.types.is_integer(column.type) or column.null_count or not rows.num_rows:
        return None
    values = column.to_numpy()
    return values == 1 if set(np.unique(values)) <= {0, 1} else None


def _rates(train: pa.Table, validation: pa.Table, name: str, learned: np.ndarray) -> np.ndarray:
    """(N,) rate of the label in training rows with the category of each validation row; NaN where it has none."""
    seen, asked = texts_of(train, name), texts_of(validation, name)
    known = pc.unique(seen.drop_null())
    code = pc.index_in(seen, value_set=known).fill_null(len(known)).to_numpy()
    rows, hits = (np.bincount(code, weights, len(known) + 1) for weights in (None, learned.astype(np.float64)))
    base = float(learned.mean())
    rates = np.append((hits[:-1] + base) / (rows[:-1] + 1.0), base)
    at = pc.index_in(asked, value_set=known).fill_null(len(known)).to_numpy()
    return np.where(asked.is_null().to_numpy(zero_copy_only=False), np.nan, rates[at])


def _auc(truth: np.ndarray, score: np.ndarray) -> float:
    """The larger of AUC and 1 - AUC; 0.5 where a class has too few rows. Ties count half."""
    with_ = int(truth.sum())
    if min(with_, len(truth) - with_) < LEAST_CLASS_ROWS:
        return 0.5
    _, place, sizes = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(sizes) - (sizes - 1) / 2)[place]
    auc = float((rank[truth].sum() - with_ * (with_ + 1) / 2) / (with_ * (len(truth) - with_)))
    return max(auc, 1.0 - auc)
