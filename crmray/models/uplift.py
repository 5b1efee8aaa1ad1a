"""Who is moved by a treatment: meta-learners over boosted trees or linear models, from a randomised campaign.

Rows have `label` (0/1, what came) and `label_treated` (0/1, the arm). A fitted model predicts, float64 (N,) each:
    p_treated, p_control    probability of the outcome with and without the treatment
    uplift                  what the treatment adds, by which rows are ranked

S-, T- and X-learner: Künzel et al. 2019, "Metalearners for estimating heterogeneous treatment effects". Class
transformation: Jaskowski and Jaroszewicz 2012, with both arms weighted alike by drawing rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.blend import member_files, members_of
from crmray.models.boosting import LightGBM
from crmray.models.labels import LABEL, labels_of
from crmray.models.linear import Linear
from crmray.models.tabular import check_choice, check_positive, file_of, needs, needs_features, to_json

TREATED = "label_treated"
TREATMENT = "treatment"
"""feature of the S-learner"""
BASES: dict[str, Any] = {"lightgbm": LightGBM, "linear": Linear}


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What the meta-learners share: the models that they are made of."""

    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"base": ("lightgbm", "linear"), "num_rounds": (40, 120)}

    base: Literal["lightgbm", "linear"] = "lightgbm"
    """Boosted trees, or a linear model (logistic for outcomes, ridge regression for effects)."""
    num_rounds: int = 40
    """Boosting rounds: effects are small, so few."""
    num_leaves: int = 4
    """Leaves per tree."""
    min_rows_leaf: int = 50
    """Training rows in each leaf."""
    C: float = 0.1
    """Inverse strength of the penalty of linear models."""
    memory_gib: float = 2.0
    """Training rows are sampled beyond this."""

    def __post_init__(self) -> None:
        check_choice("base", self.base, BASES)
        check_positive(num_rounds=self.num_rounds, min_rows_leaf=self.min_rows_leaf, C=self.C)

    @classmethod
    def for_rows(cls, num_rows: int) -> dict[str, Any]:
        """Defaults that depend on the number of training rows."""
        return {"min_rows_leaf": int(np.clip(num_rows // 100, 20, 200))}

    applies = staticmethod(needs_features)

    def outcome(self, rows: pa.Table, seed: int) -> Any:
        """A model of P(label = 1)."""
        if self.base == "linear":
            return Linear(C=self.C, memory_gib=self.memory_gib).fit(rows, None, seed=seed)
        return self._boosted("yes_no").fit(rows, None, seed=seed, rounds=self.num_rounds)

    def effect(self, rows: pa.Table, values: np.ndarray, seed: int) -> Any:
        """A model of a number (N,) of these rows."""
        at = rows.schema.get_field_index(LABEL)
        rows = rows.set_column(at, LABEL, pa.array(values, pa.float64()))
        if self.base == "linear":
            return Linear(kind="number", C=self.C, memory_gib=self.memory_gib).fit(rows, None, seed=seed)
        return self._boosted("number").fit(rows, None, seed=seed, rounds=self.num_rounds)

    def _boosted(self, kind: Literal["yes_no", "number"]) -> LightGBM:
        return LightGBM(
            kind=kind, num_leaves=self.num_leaves, min_rows_leaf=self.min_rows_leaf, memory_gib=self.memory_gib
        )

    def fitted(self, kind: str, parts: Mapping[str, Any], numbers: Mapping[str, float]) -> UpliftModel:
        """The model of these parts."""
        return UpliftModel(kind=kind, base=self.base, parts=parts, numbers=numbers)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> UpliftModel:
        """The model that `save` wrote."""
        about = json.loads(file_of(files, "uplift.json"))
        parts = members_of(files, about["parts"], dict.fromkeys(about["parts"], BASES[about["base"]]))
        return UpliftModel(kind=about["kind"], base=about["base"], parts=parts, numbers=about["numbers"])


def arms(train: pa.Table) -> tuple[pa.Table, pa.Table, float]:
    """Treated rows, control rows, share treated. NotEnoughDataError when an arm has fewer than two rows."""
    treated = labels_of(train, TREATED)
    mask = pa.array(treated == 1)
    return train.filter(mask), train.filter(pc.invert(mask)), float(treated.mean())


@dataclass(frozen=True, kw_only=True)
class SLearner(Learner):
    """One model of the outcome with the arm among its features."""

    NAME: ClassVar[str] = "s_learner"

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> UpliftModel:
        """Fit on training rows; validation and rounds change nothing."""
        arm = labels_of(train, TREATED)
        rows = train.append_column(TREATMENT, pa.array(arm, pa.float64()))
        return self.fitted("s", {"outcome": self.outcome(rows, seed)}, {})


@dataclass(frozen=True, kw_only=True)
class TLearner(Learner):
    """A model of the outcome for each arm."""

    NAME: ClassVar[str] = "t_learner"

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> UpliftModel:
        """Fit on training rows; validation and rounds change nothing."""
        treated, control, _ = arms(train)
        return self.fitted("t", {"treated": self.outcome(treated, seed), "control": self.outcome(control, seed)}, {})


@dataclass(frozen=True, kw_only=True)
class XLearner(Learner):
    """A model of the effect in each arm, imputed by the other arm's outcome model; weighted by the share treated."""

    NAME: ClassVar[str] = "x_learner"

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> UpliftModel:
        """Fit on training rows; validation and rounds change nothing."""
        treated, control, share = arms(train)
        parts = {"treated": self.outcome(treated, seed), "control": self.outcome(control, seed)}
        gained = labels_of(treated) - parts["control"].predict(treated)["score"]
        missed = parts["treated"].predict(control)["score"] - labels_of(control)
        parts["effect_treated"] = self.effect(treated, gained, seed)
        parts["effect_control"] = self.effect(control, missed, seed)
        return self.fitted("x", parts, {"share": share})


@dataclass(frozen=True, kw_only=True)
class ClassTransformation(Learner):
    """One model of "treated with the outcome, or control without it", whose probability is (1 + uplift) / 2 where both
    arms are of one size: rows of the smaller arm are drawn again until they are."""

    NAME: ClassVar[str] = "class_transformation"

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> UpliftModel:
        """Fit on training rows; validation and rounds change nothing."""
        treated, control, _ = arms(train)
        small, large = sorted((treated, control), key=lambda rows: rows.num_rows)
        more = np.random.default_rng(seed).integers(small.num_rows, size=large.num_rows - small.num_rows)
        both = pa.concat_tables([large, small, small.take(pa.array(more))])
        same = (labels_of(both) == labels_of(both, TREATED)).astype(np.int8)
        rows = both.set_column(both.schema.get_field_index(LABEL), LABEL, pa.array(same))
        return self.fitted("class", {"same": self.outcome(rows, seed), "control": self.outcome(control, seed)}, {})


@dataclass(frozen=True, kw_only=True)
class ResponseModel(Learner):
    """Who buys when treated, whether or not they would have anyway: what is often mistaken for uplift."""

    NAME: ClassVar[str] = "response_model"

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> UpliftModel:
        """Fit on the treated training rows; validation and rounds change nothing."""
        treated, control, _ = arms(train)
        rate = float(labels_of(control).mean())
        return self.fitted("response", {"treated": self.outcome(treated, seed)}, {"control": rate})


@dataclass(frozen=True, kw_only=True)
class TreatAll:
    """The rule of thumb: the offer does the same to everybody."""

    NAME: ClassVar[str] = "treat_all"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    applies = staticmethod(needs())  # no feature

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> UpliftModel:
        """Take the rates of both arms; validation, seed and rounds change nothing."""
        treated, control, _ = arms(train)
        rates = {"treated": float(labels_of(treated).mean()), "control": float(labels_of(control).mean())}
        return UpliftModel(kind="all", base="lightgbm", parts={}, numbers=rates)

    load = Learner.load


@dataclass(frozen=True, kw_only=True)
class UpliftModel:
    """A fitted meta-learner."""

    kind: str
    """s, t, x, class, response, all."""
    base: str
    """lightgbm or linear."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """The models that it is made of."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Shares and rates that it needs."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """uplift, p_treated, p_control; float64 (N,) each."""
        n = examples.num_rows
        if self.kind == "s":
            with_, without = (self._score("outcome", _with_arm(examples, arm)) for arm in (1.0, 0.0))
            return {"uplift": with_ - without, "p_treated": with_, "p_control": without}
        if self.kind == "all":
            with_, without = (np.full(n, self.numbers[arm]) for arm in ("treated", "control"))
            return {"uplift": with_ - without, "p_treated": with_, "p_control": without}
        if self.kind == "t":
            with_, without = self._score("treated", examples), self._score("control", examples)
            return {"uplift": with_ - without, "p_treated": with_, "p_control": without}
        if self.kind == "response":
            with_, without = self._score("treated", examples), np.full(n, self.numbers["control"])
            return {"uplift": with_ - without, "p_treated": with_, "p_control": without}
        without = self._score("control", examples)
        uplift = 2 * self._score("same", examples) - 1 if self.kind == "class" else self._weighted_effects(examples)
        return {"uplift": uplift, "p_treated": np.clip(without + uplift, 0.0, 1.0), "p_control": without}

    def _weighted_effects(self, examples: pa.Table) -> np.ndarray:
        share = self.numbers["share"]
        in_control, in_treated = (self._score(f"effect_{arm}", examples) for arm in ("control", "treated"))
        return share * in_control + (1 - share) * in_treated

    def _score(self, part: str, examples: pa.Table) -> np.ndarray:
        return self.parts[part].predict(examples)["score"]

    def save(self) -> dict[str, bytes]:
        """Files of the model: uplift.json, and each part's under `<name>/`."""
        about = {"kind": self.kind, "base": self.base, "parts": list(self.parts), "numbers": dict(self.numbers)}
        return {"uplift.json": to_json(about), **member_files(self.parts)}


def _with_arm(examples: pa.Table, arm: float) -> pa.Table:
    return examples.append_column(TREATMENT, pa.array(np.full(examples.num_rows, arm)))
