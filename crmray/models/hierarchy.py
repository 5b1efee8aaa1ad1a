"""Ward's hierarchical clustering of a sample, whose centres take in the rest (Ward 1963).

N rows, D features, K segments. A hierarchy needs all pairs of rows, so it is built on a sample; everybody else goes to
the nearest centre. The tree itself is what people look at: `linkage` gives it for a dendrogram.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from crmray.models.kmeans import Cut, check_dormant_weeks, check_num_segments, simplest, stability
from crmray.models.segments import (
    NUM_SEGMENTS,
    Segments,
    features,
    mean_and_scale,
    nearest,
    standardise,
    sums,
    whitening,
)
from crmray.models.tabular import needs

SAMPLE_ROWS = 2_000
"""rows of the hierarchy"""
STABILITY_ROWS = 1_000


@dataclass(frozen=True, kw_only=True)
class Ward:
    """Ward's hierarchy, cut where the segments are best."""

    num_segments: int | None = None
    """K; None: the simplest of NUM_SEGMENTS by silhouette and stability"""
    adaptive: bool = False
    """whether everybody else is assigned by distances of the pooled covariance within the segments"""
    dormant_weeks: int | None = None
    """weeks without activity from which on a customer is dormant, see Lifecycle; None: the examples' features alone"""

    NAME: ClassVar[str] = "ward"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_segments": NUM_SEGMENTS}

    def __post_init__(self) -> None:
        check_num_segments(self.num_segments)
        check_dormant_weeks(self.dormant_weeks)

    applies = staticmethod(needs())  # every examples table has features

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> Segments:
        """Centres of the hierarchy's segments. NotEnoughDataError for too few customers."""
        columns, values_ND, lifecycle = features(train, self.num_segments, self.dormant_weeks, seed)
        mean_D, scale_D = mean_and_scale(sums(values_ND))
        sample_ND = sample(standardise(values_ND, mean_D, scale_D), SAMPLE_ROWS, seed)
        numbers = (self.num_segments,) if self.num_segments else NUM_SEGMENTS
        best = simplest([self._cut(sample_ND, k, seed) for k in numbers])
        return Segments.of(
            columns, mean_D, scale_D, best.centers_KD, best.stability, rows_ND=sample_ND, seed=seed,
            lifecycle=lifecycle, whitening_DD=best.whitening_DD,
        )  # fmt: skip

    def _cut(self, sample_ND: np.ndarray, k: int, seed: int) -> Cut:
        part_ND = sample_ND[:STABILITY_ROWS]
        steady = stability(part_ND, lambda rows: nearest(part_ND, *self._split(part_ND[rows], k)), seed)
        centers_KD, whitening_DD = self._split(sample_ND, k)
        return Cut.of(sample_ND, centers_KD, steady, whitening_DD)

    def _split(self, rows_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Centres, and whitening, of k clusters."""
        segment = _clusters(rows_ND, k)
        centers_KD = _means(rows_ND, segment)
        if not self.adaptive:
            return centers_KD, None
        return centers_KD, whitening(rows_ND.T @ rows_ND, np.bincount(segment), centers_KD)

    load = staticmethod(Segments.from_files)


def sample(rows_ND: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` random rows."""
    return rows_ND[np.random.default_rng(seed).permutation(len(rows_ND))[:count]]


def centers(rows_ND: np.ndarray, k: int) -> np.ndarray:
    """(K, D) means of the k clusters of Ward's hierarchy of all rows."""
    return _means(rows_ND, _clusters(rows_ND, k))


def _clusters(rows_ND: np.ndarray, k: int) -> np.ndarray:
    from sklearn.cluster import AgglomerativeClustering

    return AgglomerativeClustering(k, linkage="ward").fit_predict(rows_ND)


def _means(rows_ND: np.ndarray, segment: np.ndarray) -> np.ndarray:
    return np.array([rows_ND[segment == one].mean(axis=0) for one in np.unique(segment)])


def linkage(rows_ND: np.ndarray) -> np.ndarray:
    """(N - 1, 4) merges in SciPy's form: the two clusters, the height, and the rows in the new one."""
    from scipy.cluster.hierarchy import linkage as of_scipy

    return of_scipy(rows_ND, method="ward")
