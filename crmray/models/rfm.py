"""The analyst's RFM rules, with which learned segments are compared: bands of recency, frequency and spend."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from crmray.models.kmeans import STABILITY_ROWS, stability
from crmray.models.segments import before, matrix
from crmray.models.tabular import file_of


@dataclass(frozen=True, kw_only=True)
class RFMRules:
    """The analyst's rule: thirds of recency, frequency and spend, named by the sum of their scores."""

    num_bands: int = 3
    """bands per feature"""

    NAME: ClassVar[str] = "rfm_rules"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    COLUMNS: ClassVar[tuple[str, str, str]] = ("recency_days", "frequency_orders", "spend_amount")

    @classmethod
    def applies(cls, columns: Sequence[str]) -> str | None:
        """Needs recency, frequency and spend."""
        missing = [column for column in cls.COLUMNS if column not in columns]
        return f"needs {missing}" if missing else None

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> FittedRules:
        """Band edges are quantiles of the training rows."""
        rows_ND = matrix(train, self.COLUMNS)
        part_ND = rows_ND[:STABILITY_ROWS]
        steady = stability(part_ND, lambda rows: _band_sum(part_ND, self._edges(part_ND[rows])), seed)
        return FittedRules(
            edges_DB=self._edges(rows_ND), mean_D=rows_ND.mean(axis=0), scale_D=rows_ND.std(axis=0), stability=steady
        )

    def _edges(self, rows_ND: np.ndarray) -> np.ndarray:
        return np.quantile(rows_ND, np.linspace(0, 1, self.num_bands + 1)[1:-1], axis=0).T

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedRules:
        """The fitted rules from what `save` gave."""
        head = json.loads(file_of(files, "rules.json"))
        arrays = {name: np.array(head[name]) for name in ("edges_DB", "mean_D", "scale_D")}
        return FittedRules(**arrays, stability=head["stability"], rounds=None)


@dataclass(frozen=True, kw_only=True)
class FittedRules:
    """Fitted RFM rules."""

    edges_DB: np.ndarray
    """inner band edges of every feature, on signed log1p values"""
    mean_D: np.ndarray
    """of signed log1p values"""
    scale_D: np.ndarray
    """population standard deviation of the same"""
    stability: float
    """mean adjusted Rand index over pairs of bootstrap fits"""
    rounds: int | None = None

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """As Segments.predict; distance is zero, rules have no centre, and nobody is an anomaly to them (NaN)."""
        rows_ND = matrix(examples, RFMRules.COLUMNS)
        segment = _band_sum(rows_ND, self.edges_DB)
        known, values_ND = before(examples, RFMRules.COLUMNS)
        position = np.nan_to_num((rows_ND - self.mean_D) / np.where(self.scale_D > 0, self.scale_D, 1.0))
        return {
            "segment": segment, "distance": np.zeros(len(segment)), "position": position,
            "stability": np.full(len(segment), self.stability),
            "previous": np.where(known, _band_sum(values_ND, self.edges_DB), -1),
            "anomaly": np.full(len(segment), np.nan),
        }  # fmt: skip

    def save(self) -> dict[str, bytes]:
        """One JSON file."""
        values = {
            key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()
        }
        return {"rules.json": json.dumps(values).encode()}


def _band_sum(rows_ND: np.ndarray, edges_DB: np.ndarray) -> np.ndarray:
    """Sum of the bands' numbers, recency counted backwards, best customers first: segment 0 is the best."""
    bands_DN = [np.searchsorted(edges_DB[d], np.nan_to_num(rows_ND[:, d]), side="right") for d in range(3)]
    top = 3 * edges_DB.shape[1]
    return top - ((edges_DB.shape[1] - bands_DN[0]) + bands_DN[1] + bands_DN[2])
