"""The rule of thumb for any label: the mean outcome by group of the one column that tells most (1R, Holte 1993)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.columns import feature_columns, numbers_of, texts_of
from crmray.models.labels import Kind, Target, check_imbalance
from crmray.models.tabular import file_of, needs_features, to_json

NUM_GROUPS = 5
PRIOR_ROWS = 20.0
"""rows of the overall mean that are added to each group's"""


@dataclass(frozen=True, kw_only=True)
class OneRule:
    """Rows grouped by one column: its fifths for a number, its values for text, and those without a value."""

    NAME: ClassVar[str] = "one_rule"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    kind: Kind = "yes_no"
    """What the label is: yes or no, a number, or one of several classes."""

    def __post_init__(self):
        check_imbalance(self.kind, "none")

    applies = staticmethod(needs_features)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> OneRuleModel:
        """The column whose group means explain most of the training labels; validation, seed, rounds change nothing."""
        target = Target.fit(train, self.kind)
        train = target.known(train)
        values = target.values(train)
        truth_NK = np.eye(len(target.classes))[values] if self.kind == "class" else values[:, None].astype(np.float64)
        best, most = OneRuleModel(target=target, overall_K=truth_NK.mean(0).tolist()), 0.0
        numeric, categorical = feature_columns(train.schema)
        for name in (*numeric, *categorical):
            rule = _rule(name, train, truth_NK, target, numbers=name in numeric)
            explained = float(np.square(rule.means(train) - truth_NK.mean(0)).sum())
            if explained > most:
                best, most = rule, explained
        return best

    @staticmethod
    def load(files: Mapping[str, bytes]) -> OneRuleModel:
        """The model that `save` wrote."""
        state = json.loads(file_of(files, "one_rule.json"))
        return OneRuleModel(**{**state, "target": Target.from_state(state["target"])})


def _rule(name: str, train: pa.Table, truth_NK: np.ndarray, target: Target, *, numbers: bool) -> OneRuleModel:
    overall = truth_NK.mean(0)
    if numbers:
        known = numbers_of(train, name)
        known = known[~np.isnan(known)]
        cuts = np.unique(np.quantile(known, np.arange(1, NUM_GROUPS) / NUM_GROUPS)) if len(known) else np.zeros(0)
        rule = OneRuleModel(target=target, overall_K=overall.tolist(), column=name, cuts=cuts.tolist())
    else:
        names = sorted(pc.unique(texts_of(train, name).drop_null()).to_pylist())
        rule = OneRuleModel(target=target, overall_K=overall.tolist(), column=name, values=names)
    group = rule.groups(train)
    num_groups = rule.num_groups
    rows = np.bincount(group, minlength=num_groups)[:, None]
    sums_GK = np.stack([np.bincount(group, truth, num_groups) for truth in truth_NK.T], axis=1)
    means_GK = (sums_GK + PRIOR_ROWS * overall) / (rows + PRIOR_ROWS)
    return OneRuleModel(
        target=target, overall_K=rule.overall_K, column=name, cuts=rule.cuts, values=rule.values,
        means_GK=means_GK.tolist(),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OneRuleModel:
    """Means by group; without a column the overall mean for everyone."""

    target: Target
    """What it predicts."""
    overall_K: list[float]
    """Mean of the training labels (of each class)."""
    column: str | None = None
    """What rows are grouped by."""
    cuts: list[float] | None = None
    """Ascending bounds between the groups of a number."""
    values: list[str] | None = None
    """Values of a text column, one group each."""
    means_GK: list[list[float]] | None = None
    """Means of the groups; the last one is of rows without a value, or with a value that training did not have."""

    @property
    def num_groups(self) -> int:
        """Groups of rows, the last one included."""
        return len(self.cuts) + 2 if self.cuts is not None else len(self.values or ()) + 1

    def groups(self, examples: pa.Table) -> np.ndarray:
        """(N,) number of each row's group."""
        assert self.column is not None
        if self.cuts is not None:
            numbers = numbers_of(examples, self.column)
            place = np.searchsorted(self.cuts, numbers, side="left")
            return np.where(np.isnan(numbers), self.num_groups - 1, place)
        known = pc.index_in(texts_of(examples, self.column), value_set=pa.array(self.values, pa.string()))
        return known.fill_null(self.num_groups - 1).to_numpy(zero_copy_only=False)

    def means(self, examples: pa.Table) -> np.ndarray:
        """(N, K) mean of each row's group."""
        if self.column is None or self.means_GK is None:
            return np.tile(self.overall_K, (examples.num_rows, 1))
        return np.asarray(self.means_GK)[self.groups(examples)]

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, or of classes the probability of each; see Target.scores."""
        means_NK = self.means(examples)
        return self.target.scores(means_NK if self.target.kind == "class" else means_NK[:, 0])

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        fields = ("overall_K", "column", "cuts", "values", "means_GK")
        return {"one_rule.json": to_json({"target": self.target.state(), **{f: getattr(self, f) for f in fields}})}
