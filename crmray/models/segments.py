"""A fitted segmentation: standardised features, and a centre for each segment.

N rows, D features, K segments. Features are signed log1p, because spend and counts are heavy-tailed, then standardised
with the population standard deviation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from crmray.errors import DataError, NotEnoughDataError
from crmray.models.anomalies import Anomalies
from crmray.models.lifecycle import DORMANT, Lifecycle
from crmray.models.tabular import file_of

RIDGE = 1e-3
"""variance within segments, in those of the features, that every direction has at least"""
NUM_SEGMENTS = (3, 4, 5, 6, 7, 8)
"""numbers of segments that are tried"""
NOT_FEATURES = ("entity_id", "as_of", "part", "later_amount")
BEFORE = "before_"
"""beginning of the columns that hold the features as they stood some time earlier; null for who was not there yet"""


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
    whitening_DD: np.ndarray | None = None
    """distances are those of rows times this matrix; None: of the rows as they are"""
    lifecycle: Lifecycle | None = None
    """who is dormant, and how much customers buy who are not; None: the examples' features alone"""
    rounds: int | None = None
    """passes over the shards until the centres stood still"""

    @classmethod
    def of(
        cls, columns: Sequence[str], mean_D: np.ndarray, scale_D: np.ndarray, centers_KD: np.ndarray, stability: float,
        *, rows_ND: np.ndarray | None = None, seed: int = 0, anomalies: Anomalies | None = None,
        rounds: int | None = None, lifecycle: Lifecycle | None = None, whitening_DD: np.ndarray | None = None,
    ) -> Segments:  # fmt: skip
        """Centres ordered by falling distance along the first feature (spend); anomalies given, or fitted on rows."""
        if anomalies is None:
            assert rows_ND is not None
            anomalies = Anomalies.fit(rows_ND, seed)
        order = np.argsort(-centers_KD[:, 0], kind="stable")
        return cls(
            columns=tuple(columns), mean_D=mean_D, scale_D=scale_D, centers_KD=centers_KD[order], stability=stability,
            anomalies=anomalies, rounds=rounds, lifecycle=lifecycle, whitening_DD=whitening_DD,
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

    def _assign(self, rows_ND: np.ndarray) -> np.ndarray:
        return nearest(rows_ND, self.centers_KD, self.whitening_DD)

    def distance(self, rows_ND: np.ndarray, segment_N: np.ndarray) -> np.ndarray:
        """(N,) standard deviations to the centre of each row's segment."""
        return np.sqrt(((rows_ND - self.centers_KD[segment_N]) ** 2).sum(axis=1))

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """segment int64 (N,), distance (N,) to its centre, position (N, D), stability (N,) constant, previous int64
        (N,) segment before, -1 for none, and anomaly (N,) in 0..1."""
        rows = self.with_lifecycle(examples)
        rows_ND = self._position(rows)
        segment = self._assign(rows_ND)
        known, values_ND = before(rows, self.columns)
        then_ND = standardise(values_ND, self.mean_D, self.scale_D)
        previous = np.where(known, self._assign(then_ND), -1)
        return {
            "segment": segment, "distance": self.distance(rows_ND, segment), "position": rows_ND,
            "stability": np.full(len(segment), self.stability), "previous": previous,
            "anomaly": self.anomalies.score(rows_ND),
        }  # fmt: skip

    def save(self) -> dict[str, bytes]:
        """Tensors as safetensors, the rest as JSON."""
        tensors = {"mean": self.mean_D, "scale": self.scale_D, "centers": self.centers_KD}
        if self.whitening_DD is not None:
            tensors["whitening"] = self.whitening_DD
        head = {"columns": list(self.columns), "stability": self.stability, "rounds": self.rounds}
        head["lifecycle"] = None if self.lifecycle is None else self.lifecycle.to_json()
        own = {"segments.safetensors": save_tensors(tensors), "segments.json": json.dumps(head).encode()}
        return {**own, **self.anomalies.save()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Segments:
        """From what `save` gave. CorruptError when a file is missing."""
        head = json.loads(file_of(files, "segments.json"))
        tensors = load_tensors(file_of(files, "segments.safetensors"))
        return cls(
            columns=tuple(head["columns"]), mean_D=tensors["mean"], scale_D=tensors["scale"],
            centers_KD=tensors["centers"], whitening_DD=tensors.get("whitening"), stability=head["stability"],
            anomalies=Anomalies.load(files), rounds=head["rounds"],
            lifecycle=None if head["lifecycle"] is None else Lifecycle.from_json(head["lifecycle"]),
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


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_floating(type_) or pa.types.is_integer(type_)


def nearest(rows_ND: np.ndarray, centers_KD: np.ndarray, whitening_DD: np.ndarray | None = None) -> np.ndarray:
    """(N,) number of the nearest centre, as `Segments.whitening_DD` says. A row alone gives the same numbers."""
    if whitening_DD is not None:
        rows_ND, centers_KD = _turned(rows_ND, whitening_DD), _turned(centers_KD, whitening_DD)
    return np.stack([((rows_ND - center_D) ** 2).sum(axis=1) for center_D in centers_KD], axis=1).argmin(axis=1)


def _turned(values_ND: np.ndarray, whitening_DD: np.ndarray) -> np.ndarray:
    """The matrix product, in sums whose order does not hang on the number of rows."""
    out_ND = np.zeros_like(values_ND)
    for d, axis_D in enumerate(whitening_DD):
        out_ND += values_ND[:, [d]] * axis_D
    return out_ND


def whitening(squares_DD: np.ndarray, n_K: np.ndarray, centers_KD: np.ndarray) -> np.ndarray:
    """(D, D) by which rows have unit covariance within segments of n_K rows, the pooled one.

    squares_DD: products of all pairs of features, summed over all rows.
    """
    within_DD = (squares_DD - (n_K[:, None] * centers_KD).T @ centers_KD) / n_K.sum() + RIDGE * np.eye(len(squares_DD))
    return np.linalg.cholesky(np.linalg.inv(within_DD))
