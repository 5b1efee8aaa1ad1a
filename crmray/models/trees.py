"""Tree candidates from scikit-learn: decision tree and random forest, for a label of any kind.

Same contract as `crmray.models.tabular`; `kind` says what the label is (crmray.models.labels). Trees take unscaled
numbers, and categories as codes; the fitted estimator is stored through skops, never as a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import CorruptError
from crmray.models.labels import Kind, Target, check_imbalance, rebalanced, within_budget
from crmray.models.preprocess import Preparation, Tabular
from crmray.models.selection import fit_tabular
from crmray.models.tabular import check_positive, check_some_feature, file_of, needs_features, to_json

# What a skops file may hold beside numpy and scikit-learn's estimators; never taken from the file itself.
TRUSTED = ("sklearn.tree._tree.Tree",)


@dataclass(frozen=True, kw_only=True)
class Trees:
    """What a tree and a forest are both set by, and how they are fitted."""

    KIND: ClassVar[str] = "memory"
    NAME: ClassVar[str]

    imbalance: Literal["none", "weights", "smote"] = "none"
    """Treatment of unequal classes on training rows: none, class weights, or SMOTE."""
    missing: Literal["mean", "median", "mode"] = "median"
    """What a missing number becomes; see `Preparation`."""
    outliers: Literal["none", "clip"] = "none"
    """Bounds on numbers; see `Preparation`."""
    min_frequency: int = 10
    """Rows that a category needs for a code of its own."""
    max_correlation: float = 1.0
    """Of two numbers that correlate more the later one is left out; see `Preparation`."""
    eliminate: bool = False
    """Whether recursive elimination leaves features out; see `selection`."""
    kind: Kind = "yes_no"
    """What the label is: yes or no, a number, or one of several classes."""
    memory_gib: float = 2.0
    """Training rows are sampled beyond this."""

    def __post_init__(self) -> None:
        check_positive(memory_gib=self.memory_gib)
        check_imbalance(self.kind, self.imbalance)

    applies = staticmethod(needs_features)

    def fitted(self, estimator: Any, train: pa.Table, seed: int, max_rows_tree: int | None = None) -> SklearnModel:
        """The estimator fitted on training rows, at most max_rows_tree of them for one tree."""
        target = Target.fit(train, self.kind)
        train = target.known(train)
        preparation = Preparation(
            missing=self.missing, outliers=self.outliers, scale="none", min_frequency=self.min_frequency,
            max_correlation=self.max_correlation,
        )  # fmt: skip
        tabular = fit_tabular(train, preparation, eliminate=self.eliminate, kind=self.kind, seed=seed)
        check_some_feature(tabular)
        width = len(tabular.number_names) + len(tabular.code_names)
        rows = within_budget(
            train, bytes_per_row=8 * 4 * width, memory_gib=self.memory_gib, candidate=self.NAME, seed=seed
        )
        numbers, codes, labels, weights = rebalanced(
            tabular.numbers(rows), tabular.codes(rows), target.values(rows), self.imbalance, seed
        )
        if max_rows_tree is not None and len(labels) > max_rows_tree:
            log.event("train.rows_per_tree", candidate=self.NAME, rows=len(labels), per_tree=max_rows_tree)
            estimator.set_params(max_samples=max_rows_tree)
        estimator.fit(_within_float32(np.concatenate([numbers, codes], axis=1)), labels, sample_weight=weights)
        return SklearnModel(tabular=tabular, target=target, estimator=estimator)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> SklearnModel:
        """The model that `save` wrote."""
        estimator = estimator_of(files, "model.skops")
        state = json.loads(file_of(files, "tabular.json"))
        target = Target.from_state(state["target"])
        return SklearnModel(tabular=Tabular.from_state(state), target=target, estimator=estimator)


@dataclass(frozen=True, kw_only=True)
class DecisionTree(Trees):
    """One tree that people can read."""

    NAME: ClassVar[str] = "decision_tree"
    GRID: ClassVar[dict[str, tuple]] = {"max_depth": (3, 5, 8), "min_rows_leaf": (10, 50)}

    max_depth: int = 5
    """Questions from the root to a leaf."""
    min_rows_leaf: int = 20
    """Training rows in each leaf."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(max_depth=self.max_depth, min_rows_leaf=self.min_rows_leaf)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> SklearnModel:
        """Fit on training rows; validation and rounds change nothing."""
        from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

        family = DecisionTreeRegressor if self.kind == "number" else DecisionTreeClassifier
        estimator = family(max_depth=self.max_depth, min_samples_leaf=self.min_rows_leaf, random_state=seed)
        return self.fitted(estimator, train, seed)


@dataclass(frozen=True, kw_only=True)
class RandomForest(Trees):
    """Averaged probabilities of trees on bootstrap samples (Breiman 2001)."""

    NAME: ClassVar[str] = "random_forest"
    GRID: ClassVar[dict[str, tuple]] = {"min_rows_leaf": (1, 5, 20)}

    num_trees: int = 150
    """Trees in the forest."""
    min_rows_leaf: int = 5
    """Training rows in each leaf."""
    max_features: Literal["sqrt"] | float = "sqrt"
    """Features tried per split: the square root of their number, or this share of it (above 0, at most 1)."""
    max_rows_tree: int = 20_000
    """Most rows drawn for one tree: beyond some ten thousand a forest gains little and its fit takes minutes."""
    max_depth: int | None = None
    """Questions from the root to a leaf; None for no limit."""
    num_threads: int = 1
    """Threads of the fit; the result is the same for any number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            num_trees=self.num_trees,
            min_rows_leaf=self.min_rows_leaf,
            max_rows_tree=self.max_rows_tree,
            num_threads=self.num_threads,
            max_depth=self.max_depth or 1,
        )
        if self.max_features != "sqrt" and not 0 < float(self.max_features) <= 1:
            raise ValueError(f"got max_features={self.max_features!r}, expected 'sqrt' or a share above 0, at most 1")

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> SklearnModel:
        """Fit on training rows; validation and rounds change nothing."""
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        family = RandomForestRegressor if self.kind == "number" else RandomForestClassifier
        estimator = family(
            n_estimators=self.num_trees,
            min_samples_leaf=self.min_rows_leaf,
            max_features=self.max_features,
            max_depth=self.max_depth,
            n_jobs=self.num_threads,
            random_state=seed,
        )
        return self.fitted(estimator, train, seed, self.max_rows_tree)


def _within_float32(matrix: np.ndarray) -> np.ndarray:
    """scikit-learn's trees compare in float32 and refuse what lies beyond it."""
    most = float(np.finfo(np.float32).max)
    return np.clip(matrix, -most, most)


@dataclass(frozen=True, kw_only=True)
class SklearnModel:
    """A fitted scikit-learn tree or forest with its preprocessing."""

    tabular: Tabular
    """Its preprocessing."""
    target: Target
    """What it predicts."""
    estimator: Any
    """scikit-learn classifier of classes 0, 1, …, or regressor."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, or of classes the probability of each; see Target.scores."""
        if not examples.num_rows:
            return self.target.empty()
        x = _within_float32(np.concatenate([self.tabular.numbers(examples), self.tabular.codes(examples)], axis=1))
        if self.target.kind == "number":
            return self.target.scores(self.estimator.predict(x))
        probability = self.estimator.predict_proba(x)
        return self.target.scores(probability if self.target.kind == "class" else probability[:, 1])

    def pictures(self) -> dict[str, bytes]:
        """A single tree drawn as SVG; nothing for a forest."""
        from crmray.evaluate import plots

        if not hasattr(self.estimator, "tree_"):
            return {}
        names = [*self.tabular.number_names, *self.tabular.code_names]
        classes = {"yes_no": ["no", "yes"], "number": None, "class": list(self.target.classes)}[self.target.kind]
        categories = {c.name: ("(other)", "(missing)", *c.values) for c in self.tabular.categorical}
        return {"tree.svg": plots.tree(self.estimator, names, classes, categories=categories)}

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        from skops import io

        state = {**self.tabular.state(), "target": self.target.state()}
        return {"tabular.json": to_json(state), "model.skops": io.dumps(self.estimator)}


def estimator_of(files: Mapping[str, bytes], name: str) -> Any:
    """The scikit-learn estimator in a skops file. CorruptError for a missing file, and for one that holds anything
    that is not trusted."""
    from skops import io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return io.loads(file_of(files, name), trusted=list(TRUSTED))
    except UntrustedTypesFoundException as error:
        raise CorruptError(f"{name}: {error}; expected none but {', '.join(TRUSTED)}; do not use it") from None
