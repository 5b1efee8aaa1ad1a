"""Gradient-boosted trees for purchases and spend, by LightGBM: three boosters on the same features.

    p_purchase   binary: at least one order
    purchases    p_purchase (1 + surplus): the orders beyond the first of those who buy, Poisson
    spend        tweedie: net spend of all rows at once; or hurdle: p_purchase times a Gamma regression among buyers

Numbers go in as they are, missing ones included, categories as codes. Models are stored in LightGBM's own text format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.models.boosting import SINGLE_THREAD_ROWS, Boosting, lightgbm_matrix, reloaded
from crmray.models.labels import within_budget
from crmray.models.preprocess import Preparation, Tabular
from crmray.models.tabular import check_choice, check_some_feature, file_of, needs_features, to_json
from crmray.models.value_targets import Targets, targets_of

if TYPE_CHECKING:
    import lightgbm

PARTS = ("buys", "surplus", "spend")
_Part = tuple[np.ndarray, np.ndarray]
"""features (N, F) and label (N,) of one booster"""
LEAST_SURPLUS = 1e-6  # Poisson regression refuses labels that are all 0
LEAST_SPEND_SHARE = 1e-6  # of the mean: where everything came back, a Gamma regression sees this


@dataclass(frozen=True, kw_only=True)
class SpendLightGBM(Boosting):
    """Boosted trees for purchases and spend."""

    GRID: ClassVar[dict[str, tuple]] = {
        "spend": ("tweedie", "hurdle"),
        "num_leaves": (8, 16),
        "feature_fraction": (0.3, 0.6),
    }

    min_frequency: int = 10
    """Rows that a category needs for a code of its own."""
    spend: Literal["tweedie", "hurdle"] = "tweedie"
    """How spend is modelled."""
    tweedie_power: float = 1.5
    """Variance power of the Tweedie loss, between 1 (Poisson) and 2 (Gamma)."""
    learning_rate: float = 0.03
    """Shrinkage per round."""
    num_leaves: int = 12
    """Leaves per tree."""
    min_rows_leaf: int = 30
    """Training rows in each leaf."""
    feature_fraction: float = 0.4
    """Share of features tried per tree."""
    bagging_fraction: float = 0.7
    """Share of rows per round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("spend", self.spend, ("tweedie", "hurdle"))
        if not 1 < self.tweedie_power < 2:
            raise ValueError(f"got tweedie_power={self.tweedie_power}, expected a number between 1 and 2")

    applies = staticmethod(needs_features)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> SpendLightGBMModel:
        """Fit `rounds` rounds if given; else as many as are best on validation; else `num_rounds`.

        The three boosters get the same number of rounds, the one that is best for all together: so one number carries
        over to a refit.
        """
        targets_of(train)
        tabular = Tabular.fit(train, Preparation(scale="none", min_frequency=self.min_frequency))
        check_some_feature(tabular)
        width = len(tabular.numeric) + len(tabular.categorical)
        rows = within_budget(
            train, bytes_per_row=8 * 4 * width, memory_gib=self.memory_gib, candidate=self.NAME, seed=seed
        )
        seen = self._parts(lightgbm_matrix(tabular, rows), targets_of(rows))
        held: Mapping[str, _Part] | None = None
        if rounds is None and validation is not None:
            targets = targets_of(validation, part="validation")
            held = self._parts(lightgbm_matrix(tabular, validation), targets)
        boosters, curves = {}, []
        for part in PARTS:
            boosters[part], curve = self._boost(
                part, seen[part], held[part] if held else None, range(len(tabular.numeric), width),
                rounds or self.num_rounds, seed,
            )  # fmt: skip
            curves.append(curve)
        together = [] if held is None else _together(curves)
        best = rounds or self.num_rounds if held is None else int(np.argmin(together)) + 1
        log.event("train.boosted", rounds=best, features=width)
        cut = {part: reloaded(boosters[part].model_to_string(num_iteration=best)) for part in PARTS}
        history = {"validation_loss": together} if together else {}
        return SpendLightGBMModel(tabular=tabular, boosters=cut, spend=self.spend, rounds=best, history=history)

    def _parts(self, matrix: np.ndarray, targets: Targets) -> dict[str, _Part]:
        """Part -> features and label of the rows that it is fitted on: all, or those who bought."""
        bought = targets.bought
        buyers = matrix[bought]
        spend = (matrix, targets.spend)
        if self.spend == "hurdle":
            least = LEAST_SPEND_SHARE * float(targets.spend[bought].mean())
            spend = (buyers, np.maximum(targets.spend[bought], least))
        return {
            "buys": (matrix, bought.astype(np.float64)),
            "surplus": (buyers, targets.purchases[bought] - 1.0 + LEAST_SURPLUS),
            "spend": spend,
        }

    def _boost(
        self, part: str, rows: _Part, held: _Part | None,
        categorical: range, rounds: int, seed: int,
    ) -> tuple[lightgbm.Booster, list[float]]:  # fmt: skip
        """A booster and its loss on held rows by round; with held rows it stops early."""
        import lightgbm

        parameters = self._parameters(part, seed)
        data = lightgbm.Dataset(*rows, categorical_feature=list(categorical), params=parameters)
        if held is None:
            return lightgbm.train(parameters, data, num_boost_round=rounds), []
        curve: dict[str, Any] = {}
        booster = lightgbm.train(
            parameters, data, num_boost_round=self.max_rounds, valid_sets=[data.create_valid(*held)],
            callbacks=[lightgbm.early_stopping(self.patience, verbose=False), lightgbm.record_evaluation(curve)],
        )  # fmt: skip
        (losses,) = curve["valid_0"].values()
        return booster, losses

    def _parameters(self, part: str, seed: int) -> dict[str, Any]:
        objective = {"buys": "binary", "surplus": "poisson", "spend": "tweedie" if self.spend == "tweedie" else "gamma"}
        return {
            "objective": objective[part],
            "tweedie_variance_power": self.tweedie_power,
            **self.shared_parameters(seed),
        }

    @staticmethod
    def load(files: Mapping[str, bytes]) -> SpendLightGBMModel:
        """The model that `save` wrote."""
        about = json.loads(file_of(files, "lightgbm.json"))
        boosters = {part: reloaded(file_of(files, f"{part}.txt").decode()) for part in PARTS}
        return SpendLightGBMModel(
            tabular=Tabular.from_state(about["tabular"]), boosters=boosters, spend=about["spend"],
            rounds=about["rounds"],
        )  # fmt: skip


def _together(curves: list[list[float]]) -> list[float]:
    """Mean of the validation losses by round, each on a scale from 1 (its first) to 0 (its least); a booster that
    stopped earlier keeps its last."""
    longest, scaled = max(map(len, curves)), []
    for curve in map(np.array, curves):
        span = curve[0] - curve.min()
        scaled.append(np.pad((curve - curve.min()) / (span if span > 0 else 1.0), (0, longest - len(curve)), "edge"))
    return np.mean(scaled, axis=0).tolist()


@dataclass(frozen=True, kw_only=True)
class SpendLightGBMModel:
    """Fitted boosters with their preprocessing."""

    tabular: Tabular
    """Their preprocessing."""
    boosters: Mapping[str, lightgbm.Booster]
    """One of each of PARTS."""
    spend: str
    """tweedie or hurdle."""
    rounds: int | None
    """Rounds of each booster."""
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What `_together` gave for each round; of a fit alone."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """OUTPUTS."""
        if not examples.num_rows:
            return {"p_purchase": np.zeros(0), "purchases": np.zeros(0), "spend": np.zeros(0)}
        threads: dict[str, Any] = {"num_threads": 1} if examples.num_rows < SINGLE_THREAD_ROWS else {}
        matrix = lightgbm_matrix(self.tabular, examples)
        p, surplus, spend = (np.asarray(self.boosters[part].predict(matrix, **threads)) for part in PARTS)
        return {
            "p_purchase": p,
            "purchases": p * (1.0 + surplus),
            "spend": spend * p if self.spend == "hurdle" else spend,
        }

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        about = {"tabular": self.tabular.state(), "spend": self.spend, "rounds": self.rounds}
        texts = {f"{part}.txt": booster.model_to_string().encode() for part, booster in self.boosters.items()}
        return {"lightgbm.json": to_json(about), **texts}
