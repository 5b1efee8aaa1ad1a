"""k-means over shards.

N rows, D features, K segments. Lloyd's algorithm needs only sums per segment from each shard, so memory is bounded by a
shard (Lloyd 1982; k-means++ seeding of Arthur & Vassilvitskii 2007 on a sample). Features are signed log1p, because
spend and counts are heavy-tailed, then standardised with the population standard deviation.

Of the numbers of segments whose silhouette x stability is within one standard error of the best the smallest is taken.

Stability is the mean adjusted Rand index of assignments by models fitted on pairs of bootstrap samples (Hennig 2007).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from crmray.errors import DataError, NotEnoughDataError
from crmray.models.anomalies import Anomalies
from crmray.models.lifecycle import DORMANT, NUM_WEEKS, Lifecycle
from crmray.models.tabular import check_positive, file_of

NUM_SEGMENTS = (3, 4, 5, 6, 7, 8)
"""numbers of segments that are tried"""
STABILITY_PAIRS = 3
STABILITY_ROWS = 10_000
SILHOUETTE_ROWS = 10_000
"""rows on which each is measured, at most"""
TOLERANCE = 1e-4
"""distance that all centres together may still move when the passes end"""
NOT_FEATURES = ("entity_id", "as_of", "part", "later_amount")
BEFORE = "before_"
"""beginning of the columns that hold the features as they stood some time earlier; null for who was not there yet"""
MAX_PASSES = 100


def matrix(examples: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Signed log1p of the columns, the probability as it is, float64 (N, D); null becomes NaN. DataError for a missing
    or infinite column."""
    values_ND = np.empty((examples.num_rows, len(columns)))
    for d, column in enumerate(columns):
        if column not in examples.column_names:
            raise DataError(f"segmentation: column {column!r} is missing, expected {list(columns)}")
        values = pc.cast(examples[column], pa.float64()).to_numpy()
        if np.isinf(values).any():
            raise DataError(f"segmentation: column {column!r} holds an infinite value, expected finite numbers")
        heavy_tailed = not column.endswith(DORMANT)
        values_ND[:, d] = np.sign(values) * np.log1p(np.abs(values)) if heavy_tailed else values
    return values_ND


def sums(values_ND: np.ndarray) -> dict[str, np.ndarray]:
    """n, sum and squares (D,) of the known values of each feature; those of all shards add up."""
    known_ND = ~np.isnan(values_ND)
    filled_ND = np.where(known_ND, values_ND, 0.0)
    return {"n": known_ND.sum(axis=0), "sum": filled_ND.sum(axis=0), "squares": (filled_ND**2).sum(axis=0)}


def mean_and_scale(total: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation (D,) from `sums`; of a feature without a value 0 and 1."""
    n_D = np.maximum(total["n"], 1)
    mean_D = total["sum"] / n_D
    scale_D = np.sqrt(np.maximum(total["squares"] / n_D - mean_D**2, 0.0))
    scale_D[scale_D < 1e-9] = 1.0  # a constant feature stays at zero and separates nobody
    return mean_D, scale_D


def standardise(values_ND: np.ndarray, mean_D: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    """(N, D) deviations from the mean in standard deviations; a missing value stands at the mean."""
    return np.nan_to_num((values_ND - mean_D) / scale_D)


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

    @classmethod
    def of(cls, rows_ND: np.ndarray, segment: np.ndarray, centers_KD: np.ndarray, stability: float) -> Cut:
        """Of the segments that these rows fall into."""
        mean, error = silhouette(rows_ND, segment)
        return cls(centers_KD=centers_KD, stability=stability, quality=mean * stability, error=error * stability)


def simplest(cuts: Sequence[Cut]) -> Cut:
    """Of those as good as the best within its standard error the one with the fewest segments (Breiman et al. 1984)."""
    best = max(cuts, key=lambda cut: cut.quality)
    enough = [cut for cut in cuts if cut.quality >= best.quality - best.error]
    return min(enough, key=lambda cut: len(cut.centers_KD))


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A fitted segmentation: nearest centre in the standardised space."""

    columns: tuple[str, ...]
    """features, in the order of the axes"""
    mean_D: np.ndarray
    """of signed log1p values"""
    scale_D: np.ndarray
    """population standard deviation of the same; 1 for a constant feature"""
    centers_KD: np.ndarray
    """standardised centres, ordered by falling mean of the value feature"""
    stability: float
    """mean adjusted Rand index over pairs of bootstrap fits"""
    anomalies: Anomalies
    """who is unlike all others"""
    lifecycle: Lifecycle | None = None
    """who is dormant, and how much customers buy who are not; None: the examples' features alone"""
    rounds: int | None = None
    """passes over the shards until the centres stood still"""

    @classmethod
    def of(
        cls, columns: Sequence[str], mean_D: np.ndarray, scale_D: np.ndarray, centers_KD: np.ndarray, stability: float,
        *, rows_ND: np.ndarray | None = None, seed: int = 0, anomalies: Anomalies | None = None,
        rounds: int | None = None, lifecycle: Lifecycle | None = None,
    ) -> Segments:  # fmt: skip
        """Centres ordered by falling distance along the first feature (spend); anomalies given, or fitted on rows."""
        if anomalies is None:
            assert rows_ND is not None
            anomalies = Anomalies.fit(rows_ND, seed)
        order = np.argsort(-centers_KD[:, 0], kind="stable")
        return cls(
            columns=tuple(columns), mean_D=mean_D, scale_D=scale_D, centers_KD=centers_KD[order], stability=stability,
            anomalies=anomalies, rounds=rounds, lifecycle=lifecycle,
        )  # fmt: skip

    def with_lifecycle(self, examples: pa.Table) -> pa.Table:
        """The rows with all `columns`, also those one horizon earlier where they are held."""
        held = any(name.startswith(BEFORE) for name in examples.column_names)
        return with_lifecycle(examples, self.lifecycle, ("", BEFORE) if held else ("",))

    def position(self, examples: pa.Table) -> np.ndarray:
        """Standardised features, (N, D); a missing value stands at the mean."""
        return self._position(self.with_lifecycle(examples))

    def _position(self, rows: pa.Table) -> np.ndarray:
        return standardise(matrix(rows, self.columns), self.mean_D, self.scale_D)

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """segment int64 (N,), distance (N,) to its centre, position (N, D), stability (N,) constant, previous int64
        (N,) segment before, -1 for none, and anomaly (N,) in 0..1."""
        rows = self.with_lifecycle(examples)
        rows_ND = self._position(rows)
        segment, squared = nearest(rows_ND, self.centers_KD)
        known, values_ND = before(rows, self.columns)
        then_ND = standardise(values_ND, self.mean_D, self.scale_D)
        previous = np.where(known, nearest(then_ND, self.centers_KD)[0], -1)
        return {
            "segment": segment, "distance": np.sqrt(squared), "position": rows_ND,
            "stability": np.full(len(segment), self.stability), "previous": previous,
            "anomaly": self.anomalies.score(rows_ND),
        }  # fmt: skip

    def save(self) -> dict[str, bytes]:
        """Tensors as safetensors, the rest as JSON."""
        tensors = {"mean": self.mean_D, "scale": self.scale_D, "centers": self.centers_KD}
        head = {"columns": list(self.columns), "stability": self.stability, "rounds": self.rounds}
        head["lifecycle"] = None if self.lifecycle is None else self.lifecycle.to_json()
        own = {"segments.safetensors": save_tensors(tensors), "segments.json": json.dumps(head).encode()}
        return {**own, **self.anomalies.save()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Segments:
        """From what `save` gave. CorruptError when a file is missing."""
        head = json.loads(file_of(files, "segments.json"))
        tensors = load_tensors(file_of(files, "segments.safetensors"))
        lifecycle = head.get("lifecycle")  # bundles of the first versions know of none
        return cls(
            columns=tuple(head["columns"]), mean_D=tensors["mean"], scale_D=tensors["scale"],
            centers_KD=tensors["centers"], stability=head["stability"], anomalies=Anomalies.load(files),
            rounds=head["rounds"], lifecycle=None if lifecycle is None else Lifecycle.from_json(lifecycle),
        )  # fmt: skip


def with_lifecycle(examples: pa.Table, lifecycle: Lifecycle | None, prefixes: Sequence[str] = ("",)) -> pa.Table:
    """The rows with what the lifecycle, if there is one, says of each customer."""
    return examples if lifecycle is None else lifecycle.with_traits(examples, prefixes)


def before(examples: pa.Table, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Who was there before (N,) bool, and their features then, as `matrix`. Rows without such columns: nobody."""
    names = [BEFORE + column for column in columns]
    if not any(name in examples.column_names for name in names):
        return np.zeros(examples.num_rows, bool), np.zeros((examples.num_rows, len(columns)))
    values_ND = matrix(examples, names)
    return ~np.isnan(values_ND).all(axis=1), values_ND


def feature_names(examples: pa.Table, num_segments: int | None) -> list[str]:
    """The features that customers are grouped by. NotEnoughDataError for too few customers."""
    least = 10 * (num_segments or max(NUM_SEGMENTS))
    if examples.num_rows < least:
        raise NotEnoughDataError(
            f"segmentation: got {examples.num_rows} customers, expected at least {least} for "
            f"{least // 10} segments; widen lookback_days or ask for fewer with num_segments"
        )
    return [
        field.name for field in examples.schema
        if field.name not in NOT_FEATURES and not field.name.startswith(BEFORE) and _is_number(field.type)
    ]  # fmt: skip


def features(
    examples: pa.Table, num_segments: int | None, dormant_weeks: int | None, seed: int
) -> tuple[list[str], np.ndarray, Lifecycle | None]:
    """Names and `matrix` of the features that customers are grouped by, and the lifecycle that gives some of them."""
    columns = feature_names(examples, num_segments)
    if dormant_weeks is None:
        return columns, matrix(examples, columns), None
    lifecycle = Lifecycle.fit(examples, dormant_weeks=dormant_weeks, seed=seed)
    rows = with_lifecycle(examples, lifecycle)
    columns = feature_names(rows, num_segments)
    return columns, matrix(rows, columns), lifecycle


def check_num_segments(num_segments: int | None) -> None:
    """ValueError unless it is left open or 2 or more."""
    if num_segments is not None and num_segments < 2:
        raise ValueError(f"got num_segments={num_segments}, expected 2 or more")


def check_dormant_weeks(dormant_weeks: int | None) -> None:
    """ValueError unless it is left open or within the weeks that a lifecycle looks at."""
    if dormant_weeks is not None and not 1 <= dormant_weeks <= NUM_WEEKS:
        raise ValueError(f"got dormant_weeks={dormant_weeks}, expected 1 to {NUM_WEEKS}")


def nearest(rows_ND: np.ndarray, centers_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the nearest centre (N,) and the squared distance to it (N,). A row alone gives the same numbers."""
    squared_NK = np.stack([((rows_ND - center_D) ** 2).sum(axis=1) for center_D in centers_KD], axis=1)
    segment = squared_NK.argmin(axis=1)
    return segment, squared_NK[np.arange(len(rows_ND)), segment]


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_floating(type_) or pa.types.is_integer(type_)


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """k-means; unless it is given, the number of segments is chosen on the sample."""

    num_segments: int | None = None
    """K; None: the simplest of NUM_SEGMENTS by silhouette and stability"""
    num_starts: int = 10
    """k-means++ starts on the sample; the best one goes over all shards"""
    dormant_weeks: int | None = None
    """weeks without activity from which on a customer is dormant, see Lifecycle; None: the examples' features alone"""

    NAME: ClassVar[str] = "kmeans"
    KIND: ClassVar[str] = "shards"
    NEURAL: ClassVar[bool] = False
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_segments": NUM_SEGMENTS}

    def __post_init__(self) -> None:
        check_num_segments(self.num_segments)
        check_dormant_weeks(self.dormant_weeks)
        check_positive(num_starts=self.num_starts)

    @classmethod
    def applies(cls, columns: Sequence[str]) -> str | None:
        """Always: every examples table has features."""
        return None

    def start(self, sample: pa.Table, seed: int) -> dict[str, Any]:
        """First state: the sample for seeding; the first pass measures mean and spread of every feature."""
        columns, values_ND, lifecycle = features(sample, self.num_segments, self.dormant_weeks, seed)
        return {"columns": tuple(columns), "lifecycle": lifecycle, "seed": seed, "sample": values_ND, "passes": 0}

    def map(self, state: Mapping[str, Any], shard: pa.Table) -> dict[str, np.ndarray]:
        """Sums of one shard: of the features in the first pass, per segment afterwards."""
        rows_ND = matrix(with_lifecycle(shard, state["lifecycle"]), state["columns"])
        if "centers" not in state:
            return sums(rows_ND)
        rows_ND = standardise(rows_ND, state["mean"], state["scale"])
        segment, _ = nearest(rows_ND, state["centers"])
        sums_KD = np.zeros_like(state["centers"])
        np.add.at(sums_KD, segment, rows_ND)
        return {"n": np.bincount(segment, minlength=len(sums_KD)), "sum": sums_KD}

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
            return {**rest, **learned, "anomalies": unlike}, False
        empty_K = total["n"] == 0  # keeps its old centre
        centers_KD = np.where(empty_K[:, None], state["centers"], total["sum"] / np.maximum(total["n"], 1)[:, None])
        passes = state["passes"] + 1
        still = float(((centers_KD - state["centers"]) ** 2).sum()) <= TOLERANCE * TOLERANCE
        return {**state, "centers": centers_KD, "passes": passes}, still or passes >= MAX_PASSES

    def fitted(self, state: Mapping[str, Any]) -> Segments:
        """The segmentation."""
        return Segments.of(
            state["columns"], state["mean"], state["scale"], state["centers"], state["stability"],
            anomalies=state["anomalies"], rounds=state["passes"], lifecycle=state["lifecycle"],
        )  # fmt: skip

    @staticmethod
    def load(files: Mapping[str, bytes]) -> Segments:
        """The fitted segmentation from what `save` gave."""
        return Segments.from_files(files)

    def _best(self, sample_ND: np.ndarray, seed: int) -> Cut:
        """The given number of segments, or the simplest."""
        cuts = []
        for k in (self.num_segments,) if self.num_segments else NUM_SEGMENTS:
            local = self._local(sample_ND, k, seed)
            steady = self._stability(sample_ND[:STABILITY_ROWS], k, seed)
            cuts.append(Cut.of(sample_ND, local.labels_, local.cluster_centers_, steady))
        return simplest(cuts)

    def _local(self, rows_ND: np.ndarray, k: int, seed: int) -> Any:
        from sklearn.cluster import KMeans as LocalKMeans

        return LocalKMeans(k, n_init=self.num_starts, random_state=seed).fit(rows_ND)

    def _stability(self, rows_ND: np.ndarray, k: int, seed: int) -> float:
        return stability(rows_ND, lambda rows: self._local(rows_ND[rows], k, seed).predict(rows_ND), seed)
