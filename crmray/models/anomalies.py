"""Customers unlike all others: isolated by few random cuts, or badly described by what goes together elsewhere.

N rows, D standardised features, P principal components. Two scores, each as its share of training rows below it, and
their mean: isolation forest (Liu, Ting & Zhou 2008), which sees what is far out, and the error of a reconstruction from
the principal components (Shyu et al. 2003), which sees what does not go together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crmray.models.tabular import file_of, to_json
from crmray.models.trees import estimator_of

NUM_TREES = 50
EXPLAINED_SHARE = 0.8
"""of the variance, that the principal components keep"""
NUM_QUANTILES = 1_000


@dataclass(frozen=True, kw_only=True)
class Anomalies:
    """Fitted on standardised rows."""

    forest: Any
    """scikit-learn's IsolationForest"""
    components_PD: np.ndarray
    """principal components, orthonormal"""
    isolation_Q: np.ndarray
    """ascending quantiles of the isolation of training rows"""
    error_Q: np.ndarray
    """ascending quantiles of their reconstruction error"""

    @classmethod
    def fit(cls, rows_ND: np.ndarray, seed: int) -> Anomalies:
        """Learn from training rows; they stand around 0."""
        from sklearn.ensemble import IsolationForest

        forest = IsolationForest(n_estimators=NUM_TREES, random_state=seed).fit(rows_ND)
        _, singular_D, components_DD = np.linalg.svd(rows_ND, full_matrices=False)
        share_D = np.cumsum(singular_D**2) / max(float((singular_D**2).sum()), 1e-12)
        kept = min(1 + int(np.searchsorted(share_D, EXPLAINED_SHARE)), rows_ND.shape[1] - 1)
        places = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
        components_PD = components_DD[:kept]
        return cls(
            forest=forest,
            components_PD=components_PD,
            isolation_Q=np.quantile(-forest.score_samples(rows_ND), places),
            error_Q=np.quantile((_residual(rows_ND, components_PD) ** 2).sum(axis=1), places),
        )

    def score(self, rows_ND: np.ndarray) -> np.ndarray:
        """(N,) in 0..1: mean share of the training rows that are less isolated, and better reconstructed."""
        if not len(rows_ND):
            return np.zeros(0)
        isolation = np.searchsorted(self.isolation_Q, -self.forest.score_samples(rows_ND))
        error = np.searchsorted(self.error_Q, (_residual(rows_ND, self.components_PD) ** 2).sum(axis=1))
        return (isolation + error) / (2 * NUM_QUANTILES)

    def save(self) -> dict[str, bytes]:
        """The forest through skops, the rest as JSON."""
        from skops import io

        arrays = {name: getattr(self, name).tolist() for name in ("components_PD", "isolation_Q", "error_Q")}
        return {"anomalies.skops": io.dumps(self.forest), "anomalies.json": to_json(arrays)}

    @classmethod
    def load(cls, files: Mapping[str, bytes]) -> Anomalies:
        """From what `save` gave. CorruptError for a file that holds anything else."""
        forest = estimator_of(files, "anomalies.skops")
        arrays = {name: np.array(values) for name, values in json.loads(file_of(files, "anomalies.json")).items()}
        return cls(forest=forest, **arrays)


def _residual(rows_ND: np.ndarray, components_PD: np.ndarray) -> np.ndarray:
    """(N, D) what the principal components do not explain, in standard deviations."""
    return rows_ND - (rows_ND @ components_PD.T) @ components_PD
