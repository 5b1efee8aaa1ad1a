"""The rule of thumb of lead scoring: the past rate of the label by one category, such as the lead's source."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.columns import texts_of
from crmray.models.labels import labels_of
from crmray.models.tabular import file_of, to_json


@dataclass(frozen=True, kw_only=True)
class SourceRate:
    """Share of label 1 by source in the training rows, drawn towards the share of all of them where rows are few."""

    NAME: ClassVar[str] = "source_rate"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    column: str = "lead_source"
    """Category whose rates count."""
    prior_rows: int = 20
    """Rows of the overall rate that are added to each source's."""

    @classmethod
    def applies(cls, columns: Collection[str]) -> str | None:
        """Why it cannot run on examples with these columns, or None."""
        return None if cls.column in columns else f"the examples have no column {cls.column!r}"

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> SourceRateModel:
        """Count; validation, seed and rounds change nothing."""
        labels = labels_of(train)
        overall = float(labels.mean())
        codes = texts_of(train, self.column).dictionary_encode()
        index = codes.indices.fill_null(len(codes.dictionary)).to_numpy()
        rows = np.bincount(index, minlength=len(codes.dictionary))
        rates = (np.bincount(index, labels, len(rows)) + self.prior_rows * overall) / (rows + self.prior_rows)
        named = zip(codes.dictionary.to_pylist(), rates.tolist(), strict=False)  # the rate of rows without one is last
        return SourceRateModel(column=self.column, rates=dict(sorted(named)), otherwise=overall)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> SourceRateModel:
        """The model that `save` wrote."""
        return SourceRateModel(**json.loads(file_of(files, "rates.json")))


@dataclass(frozen=True, kw_only=True)
class SourceRateModel:
    """Rates by source."""

    column: str
    """Category."""
    rates: dict[str, float] = field(default_factory=dict)
    """Value -> rate."""
    otherwise: float
    """Rate of other values, and where there is none."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}."""
        at = pc.index_in(texts_of(examples, self.column), value_set=pa.array(list(self.rates), pa.string()))
        index = at.fill_null(len(self.rates)).to_numpy()
        return {"score": np.array([*self.rates.values(), self.otherwise])[index]}

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"rates.json": to_json(asdict(self))}
