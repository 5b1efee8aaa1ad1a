"""k-means over shards.

N rows, D features, K segments. Lloyd's algorithm needs only sums per segment from each shard, so memory is bounded by a
shard (Lloyd 1982; k-means++ seeding of Arthur & Vassilvitskii 2007 on a sample).

Features that tell the same twice, such as spend and visits, count twice in a distance. With `adaptive` the segments
that were found are refined by distances of their pooled covariance: k-means with adaptive distances (Diday & Govaert
1977), which makes the determinant of the scatter within the segments least (Friedman & Rubin 1967).

Of the numbers of segments whose silhouette x stability is within one standard error of the best the smallest is taken.

Stability is the mean adjusted Rand index of assignments by models fitted on pairs of bootstrap samples (Hennig 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from crmray.models.anomalies import Anomalies
from crmray.models.lifecycle import NUM_WEEKS
from crmray.models.segments import (
    NUM_SEGMENTS,
    Segments,
    features,
    matrix,
    mean_and_scale,
    nearest,
    standardise,
    sums,
    whitening,
    with_lifecycle,
)
from crmray.models.tabular import check_positive, needs

STABILITY_PAIRS = 3
STABILITY_ROWS = 10_000
SILHOUETTE_ROWS = 10_000
"""rows on which each is measured, at most"""
TOLERANCE = 1e-4
"""distance that all centres together may still move when the passes end"""
MAX_PASSES = 100


def silhouette(rows_ND: np.ndarray, segment: np.ndarray) -> tuple[float, float]:
    """Mean silhouette (Rousseeuw 1987) of at most SILHOUETTE_ROWS rows, and its standard error."""
    from sklearn.metrics import silhouette_samples

    rows = np.random.default_rng(0).permutation(len(segment))[:SILHOUETTE_ROWS]
    values = silhouette_samples(rows_ND[rows], segment[rows])
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def stability(rows_ND: np.ndarray, assign: Callable[[np.ndarray], np.ndarray], seed: int) -> float:
    """Mean adjusted Rand index of the segments that pairs of bootstrap fits give to all rows.

    assign: fits on the row numbers it is given and returns the segment of every row.
    """
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(seed)
    n = len(rows_ND)
    fits = [assign(rng.integers(0, n, n)) for _ in range(2 * STABILITY_PAIRS)]
    return float(np.mean([adjusted_rand_score(fits[2 * i], fits[2 * i + 1]) for i in range(STABILITY_PAIRS)]))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A number of segments that is tried on a sample."""

    centers_KD: np.ndarray
    """standardised centres"""
    stability: float
    """mean adjusted Rand index over pairs of bootstrap fits"""
    quality: float
    """silhouette times stability"""
    error: float
    """standard error of the silhouette times stability"""
    whitening_DD: np.ndarray | None = None
    """as in Segments"""

    @classmethod
    def of(
        cls, rows_ND: np.ndarray, centers_KD: np.ndarray, stability: float, whitening_DD: np.ndarray | None = None
    ) -> Cut:
        """Of the segments that these rows fall into."""
        mean, error = silhouette(rows_ND, nearest(rows_ND, centers_KD, whitening_DD))
        return cls(
            centers_KD=centers_KD, stability=stability, quality=mean * stability, error=error * stability,
            whitening_DD=whitening_DD,
        )  # fmt: skip


def simplest(cuts: Sequence[Cut]) -> Cut:
    """Of those as good as the best within its standard error the one with the fewest segments (Breiman et al. 1984)."""
    best = max(cuts, key=lambda cut: cut.quality)
    enough = [cut for cut in cuts if cut.quality >= best.quality - best.error]
    return min(enough, key=lambda cut: len(cut.centers_KD))


def check_num_segments(num_segments: int | None) -> None:
    """ValueError unless it is left open or 2 or more."""
    if num_segments is not None and num_segments < 2:
        raise ValueError(f"got num_segments={num_segments}, expected 2 or more")


def check_dormant_weeks(dormant_weeks: int | None) -> None:
    """ValueError unless it is left open or within the weeks that a lifecycle looks at."""
    if dormant_weeks is not None and not 1 <= dormant_weeks <= NUM_WEEKS:
        raise ValueError(f"got dormant_weeks={dormant_weeks}, expected 1 to {NUM_WEEKS}")


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """k-means; unless it is given, the number of segments is chosen on the sample."""

    num_segments: int | None = None
    """K; None: the simplest of NUM_SEGMENTS by silhouette and stability"""
    num_starts: int = 10
    """k-means++ starts on the sample; the best one goes over all shards"""
    adaptive: bool = False
    """whether distances become those of the pooled covariance within the segments"""
    dormant_weeks: int | None = None
    """weeks without activity from which on a customer is dormant, see Lifecycle; None: the examples' features alone"""

    NAME: ClassVar[str] = "kmeans"
    KIND: ClassVar[str] = "shards"
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_segments": NUM_SEGMENTS}

    def __post_init__(self) -> None:
        check_num_segments(self.num_segments)
        check_dormant_weeks(self.dormant_weeks)
        check_positive(num_starts=self.num_starts)

    applies = staticmethod(needs())  # every examples table has features

    def start(self, sample: pa.Table, seed: int) -> dict[str, Any]:
        """First state: the sample for seeding; the first pass measures mean and spread of every feature."""
        columns, values_ND, lifecycle = features(sample, self.num_segments, self.dormant_weeks, seed)
        return {"columns": tuple(columns), "lifecycle": lifecycle, "seed": seed, "sample": values_ND, "passes": 0}

    def map(self, state: Mapping[str, Any], shard: pa.Table) -> dict[str, np.ndarray]:
        """Sums of one shard: of the features in the first pass, per segment afterwards."""
        rows_ND = matrix(with_lifecycle(shard, state["lifecycle"]), state["columns"])
        if "centers" not in state:
            return sums(rows_ND)
        return _sums_of(standardise(rows_ND, state["mean"], state["scale"]), state["centers"], state["whitening"])

    def reduce(
        self, state: Mapping[str, Any], partials: Sequence[Mapping[str, np.ndarray]]
    ) -> tuple[dict[str, Any], bool]:
        """Next state, and whether the centres stand still."""
        total = {name: np.sum([partial[name] for partial in partials], axis=0) for name in partials[0]}
        if "centers" not in state:
            mean_D, scale_D = mean_and_scale(total)
            sample_ND = standardise(state["sample"], mean_D, scale_D)
            rest = {key: value for key, value in state.items() if key != "sample"}
            best = self._best(sample_ND, state["seed"])
            unlike = Anomalies.fit(sample_ND, state["seed"])
            learned = {"mean": mean_D, "scale": scale_D, "centers": best.centers_KD, "stability": best.stability}
            return {**rest, **learned, "whitening": best.whitening_DD, "anomalies": unlike}, False
        centers_KD, whitening_DD = self._moved(total, state["centers"])
        passes = state["passes"] + 1
        done = _stand_still(centers_KD, state["centers"]) or passes >= MAX_PASSES
        return {**state, "centers": centers_KD, "whitening": whitening_DD, "passes": passes}, done

    def fitted(self, state: Mapping[str, Any]) -> Segments:
        """The segmentation."""
        return Segments.of(
            state["columns"], state["mean"], state["scale"], state["centers"], state["stability"],
            anomalies=state["anomalies"], rounds=state["passes"], lifecycle=state["lifecycle"],
            whitening_DD=state["whitening"],
        )  # fmt: skip

    load = staticmethod(Segments.from_files)

    def _best(self, sample_ND: np.ndarray, seed: int) -> Cut:
        """The given number of segments, or the simplest."""
        cuts = []
        for k in (self.num_segments,) if self.num_segments else NUM_SEGMENTS:
            steady = self._stability(sample_ND[:STABILITY_ROWS], k, seed)
            centers_KD, whitening_DD = self._local(sample_ND, k, seed)
            cuts.append(Cut.of(sample_ND, centers_KD, steady, whitening_DD))
        return simplest(cuts)

    def _local(self, rows_ND: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Centres and whitening of rows that are all here."""
        from sklearn.cluster import KMeans as LocalKMeans

        centers_KD = LocalKMeans(k, n_init=self.num_starts, random_state=seed).fit(rows_ND).cluster_centers_
        whitening_DD = None
        for _ in range(MAX_PASSES if self.adaptive else 0):
            before_KD = centers_KD
            centers_KD, whitening_DD = self._moved(_sums_of(rows_ND, before_KD, whitening_DD), before_KD)
            if _stand_still(centers_KD, before_KD):
                break
        return centers_KD, whitening_DD

    def _moved(self, total: Mapping[str, np.ndarray], before_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Centres, and whitening, of the segments with these sums; an empty one keeps its centre."""
        n_K = total["n"]
        centers_KD = np.where(n_K[:, None] > 0, total["sum"] / np.maximum(n_K, 1)[:, None], before_KD)
        return centers_KD, whitening(total["squares"], n_K, centers_KD) if self.adaptive else None

    def _stability(self, rows_ND: np.ndarray, k: int, seed: int) -> float:
        return stability(rows_ND, lambda rows: nearest(rows_ND, *self._local(rows_ND[rows], k, seed)), seed)


def _sums_of(rows_ND: np.ndarray, centers_KD: np.ndarray, whitening_DD: np.ndarray | None) -> dict[str, np.ndarray]:
    """n (K,) and sum (K, D) of the segments, and the products of all pairs of features (D, D) over all rows."""
    segment = nearest(rows_ND, centers_KD, whitening_DD)
    sums_KD = np.zeros_like(centers_KD)
    np.add.at(sums_KD, segment, rows_ND)
    return {"n": np.bincount(segment, minlength=len(sums_KD)), "sum": sums_KD, "squares": rows_ND.T @ rows_ND}


def _stand_still(centers_KD: np.ndarray, before_KD: np.ndarray) -> bool:
    return float(((centers_KD - before_KD) ** 2).sum()) <= TOLERANCE * TOLERANCE
