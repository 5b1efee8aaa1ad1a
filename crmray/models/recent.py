"""Candidates that may forget: fitted on the newest of their training dates alone, where validation prefers it.

What comes of a lead drifts with the market and with how sales people work. Old rows tell more of other rows and less of
today's; which weighs more is for validation, out of time, to say.

Recent is mixed with a family, before it: what it calls `super()` is the family, whose model keeps the share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.tabular import to_json

SHARE_FILE = "recent.json"
SHARES = (1.0, 0.5)
"""newest_share that a grid search tries"""


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


def share_file(share: float) -> dict[str, bytes]:
    """What a model adds to its files; nothing where it saw all rows."""
    return {} if share == 1 else {SHARE_FILE: to_json({"newest_share": share})}


@dataclass(frozen=True, kw_only=True)
class Recent:
    """A candidate fitted on the newest rows."""

    newest_share: float = 1.0
    """Share of the training rows, of the newest dates, that it is fitted on."""

    def __post_init__(self) -> None:
        if not 0 < self.newest_share <= 1:
            raise ValueError(f"got newest_share={self.newest_share!r}, expected a share above 0, at most 1")
        super().__post_init__()  # type: ignore[misc]

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> Any:
        """As the family's `fit`, on the newest rows."""
        rows = newest(train, self.newest_share)
        model = super().fit(rows, validation, seed=seed, rounds=rounds)  # type: ignore[misc]
        return replace(model, newest_share=self.newest_share)

    @classmethod
    def load(cls, files: Mapping[str, bytes]) -> Any:
        """The model that `save` wrote."""
        share = json.loads(files[SHARE_FILE])["newest_share"] if SHARE_FILE in files else 1.0
        return replace(super().load(files), newest_share=share)  # type: ignore[misc]
