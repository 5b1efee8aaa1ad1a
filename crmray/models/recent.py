"""Candidates that may forget: fitted on the newest of their training dates alone, where validation prefers it.

What comes of a lead drifts with the market and with how sales people work. Old rows tell more of other rows and less of
today's; which weighs more is for validation, out of time, to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.boosting import LightGBM
from crmray.models.linear import Logistic


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

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> Any:
        """As LightGBM, on the newest rows."""
        return super().fit(newest(train, self.newest_share), validation, seed=seed, rounds=rounds)


@dataclass(frozen=True, kw_only=True)
class RecentLogistic(Logistic):
    """Logistic regression on the newest rows."""

    GRID: ClassVar[dict[str, tuple]] = {**Logistic.GRID, "newest_share": (1.0, 0.5)}

    newest_share: float = 1.0
    """Share of the training rows, of the newest dates, that it is fitted on."""

    def __post_init__(self) -> None:
        check_share(self.newest_share)
        super().__post_init__()

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> Any:
        """As Logistic, on the newest rows."""
        return super().fit(newest(train, self.newest_share), validation, seed=seed, rounds=rounds)
