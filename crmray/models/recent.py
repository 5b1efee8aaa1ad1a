"""Candidates that may forget: fitted on the newest of their training dates alone, where validation prefers it.

What comes of a lead drifts with the market and with how sales people work. Old rows tell more of other rows and less of
today's; which weighs more is for validation, out of time, to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.boosting import LightGBM, LightGBMModel
from crmray.models.linear import LinearModel, Logistic
from crmray.models.tabular import to_json

SHARE_FILE = "recent.json"


def newest(train: pa.Table, share: float) -> pa.Table:
    """The rows of the newest dates that hold at least this share (0..1) of the rows; all of them without dates."""
    if share >= 1 or "as_of" not in train.column_names or train["as_of"].null_count:
        return train
    dates = pc.value_counts(train["as_of"]).to_pylist()
    rows = 0
    for pair in sorted(dates, key=lambda pair: pair["values"], reverse=True):
        rows += pair["counts"]
        if rows >= share * train.num_rows:
            return train.filter(pc.greater_equal(train["as_of"], pa.scalar(pair["values"], train["as_of"].type)))
    return train


def check_share(share: float) -> None:
    """ValueError for a share outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"got newest_share={share!r}, expected a share above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class RecentLightGBM(LightGBM):
    """Gradient-boosted trees on the newest rows."""

    GRID: ClassVar[dict[str, tuple]] = {**LightGBM.GRID, "newest_share": (1.0, 0.5)}

    newest_share: float = 1.0
    """Share of the training rows, of the newest dates, that it is fitted on."""

    def __post_init__(self) -> None:
        check_share(self.newest_share)
        super().__post_init__()

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> RecentLightGBMModel:
        """As LightGBM, on the newest rows."""
        model = super().fit(newest(train, self.newest_share), validation, seed=seed, rounds=rounds)
        return RecentLightGBMModel(**vars(model), newest_share=self.newest_share)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> RecentLightGBMModel:
        """The model that `save` wrote."""
        return RecentLightGBMModel(**vars(LightGBM.load(files)), newest_share=_share_of(files))


@dataclass(frozen=True, kw_only=True)
class RecentLogistic(Logistic):
    """Logistic regression on the newest rows."""

    GRID: ClassVar[dict[str, tuple]] = {**Logistic.GRID, "newest_share": (1.0, 0.5)}

    newest_share: float = 1.0
    """Share of the training rows, of the newest dates, that it is fitted on."""

    def __post_init__(self) -> None:
        check_share(self.newest_share)
        super().__post_init__()

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> RecentLogisticModel:
        """As Logistic, on the newest rows."""
        model = super().fit(newest(train, self.newest_share), validation, seed=seed, rounds=rounds)
        return RecentLogisticModel(**vars(model), newest_share=self.newest_share)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> RecentLogisticModel:
        """The model that `save` wrote."""
        return RecentLogisticModel(**vars(Logistic.load(files)), newest_share=_share_of(files))


@dataclass(frozen=True, kw_only=True)
class RecentLightGBMModel(LightGBMModel):
    """Fitted trees that know which of the training rows they saw."""

    newest_share: float = 1.0
    """As the candidate's."""

    def fitted_on(self, train: pa.Table) -> pa.Table:
        """Those of the training rows that it was fitted on."""
        return newest(train, self.newest_share)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {**super().save(), **_share_file(self.newest_share)}


@dataclass(frozen=True, kw_only=True)
class RecentLogisticModel(LinearModel):
    """A fitted logistic regression that knows which of the training rows it saw."""

    newest_share: float = 1.0
    """As the candidate's."""

    def fitted_on(self, train: pa.Table) -> pa.Table:
        """Those of the training rows that it was fitted on."""
        return newest(train, self.newest_share)

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {**super().save(), **_share_file(self.newest_share)}


def _share_file(share: float) -> dict[str, bytes]:
    """None for a model of all rows: such a model is what the plain family gives."""
    return {} if share == 1 else {SHARE_FILE: to_json({"newest_share": share})}


def _share_of(files: Mapping[str, bytes]) -> float:
    return json.loads(files[SHARE_FILE])["newest_share"] if SHARE_FILE in files else 1.0
