"""Learned preprocessing of the feature columns of an examples table.

Everything is fitted on training rows, kept as JSON in the bundle and applied in memory: the same in training, batch
scoring and serving. Which columns are features, numeric or categorical: crmray.models.columns.

Shapes: N rows, F numeric columns kept, M of them with a missing flag, C categorical columns kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import NotEnoughDataError
from crmray.models.columns import feature_columns, numbers_of, texts_of

UNKNOWN, MISSING, FIRST_KNOWN = 0, 1, 2  # codes: unseen or rare, missing, then the vocabulary
NUM_QUANTILES = 256
MAX_CORRELATED_ROWS = 50_000
LARGEST_SQUARED = 1e150  # squares of larger numbers, or their sums, may overflow
MAX_CATEGORIES = 200
"""most frequent categories kept per column"""
CHOICES = {
    "missing": ("mean", "median", "mode"),
    "outliers": ("none", "clip"),
    "scale": ("none", "minmax", "standard", "quantile"),
}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How feature columns become numbers."""

    missing: Literal["mean", "median", "mode"] = "median"
    """What a missing number becomes; a flag column says that it was missing."""
    outliers: Literal["none", "clip"] = "none"
    """`clip` moves numbers to within [q1 - iqr_k IQR, q3 + iqr_k IQR]; a column whose IQR is 0 is left alone."""
    iqr_k: float = 3.0
    """Interquartile ranges allowed beyond the quartiles (Tukey: 1.5 outlying, 3 far out)."""
    scale: Literal["none", "minmax", "standard", "quantile"] = "standard"
    """Numbers as they are, in 0..1, with mean 0 and standard deviation 1, or as normal scores of their rank."""
    min_frequency: int = 10
    """Training rows that a category needs for a code of its own; rarer ones share the unknown code."""
    max_correlation: float = 1.0
    """Of two numeric columns whose |correlation| is above this the later one is left out; 1 keeps all."""

    def __post_init__(self):
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"got {field}={getattr(self, field)!r}, expected one of {', '.join(allowed)}")
        if self.iqr_k <= 0 or self.min_frequency < 1 or not 0 < self.max_correlation <= 1:
            raise ValueError(
                f"got iqr_k={self.iqr_k}, min_frequency={self.min_frequency}, max_correlation={self.max_correlation}, "
                "expected iqr_k above 0, min_frequency at least 1 and max_correlation above 0, at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """One numeric column as fitted."""

    name: str
    """Column name."""
    fill: float
    """What a missing value becomes, before scaling."""
    flag: bool
    """Whether values were missing in training, so that a flag is part of the features."""
    low: float | None
    """Lower bound, None for no bound."""
    high: float | None
    """Upper bound, None for no bound."""
    centre: float = 0.0
    """Subtracted by minmax and standard scaling."""
    spread: float = 1.0
    """Divides after that; above 0."""
    quantiles: tuple[float, ...] = ()
    """Training quantiles at (i + 0.5) / len, for quantile scaling."""


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One categorical column as fitted."""

    name: str
    """Column name."""
    values: tuple[str, ...]
    """Vocabulary, most frequent first; value i has code i + 2."""

    @property
    def num_codes(self) -> int:
        """Codes in use: unknown, missing, and the vocabulary."""
        return len(self.values) + FIRST_KNOWN


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """Fitted preprocessing; make it with `Tabular.fit` or `Tabular.from_state`."""

    preparation: Preparation
    """Settings it was fitted with."""
    numeric: tuple[Numeric, ...]
    """Numeric columns kept."""
    categorical: tuple[Categorical, ...]
    """Categorical columns kept."""
    dropped: dict[str, str]
    """Columns left out, with the reason."""

    @classmethod
    def fit(cls, table: pa.Table, preparation: Preparation, labels: Collection[str] = ()) -> Tabular:
        """Learn from training rows. Columns that tell rows apart in no way are dropped and listed.

        NotEnoughDataError for a table without rows.
        """
        if table.num_rows == 0:
            raise NotEnoughDataError("got 0 training rows, expected at least 1")
        numbers, texts = feature_columns(table.schema, labels)
        numeric, categorical, dropped = [], [], {}
        for name in numbers:
            number = _fit_numeric(name, numbers_of(table, name), preparation)
            if number is None:
                dropped[name] = "constant"
            else:
                numeric.append(number)
        alike = _alike(numeric, table, preparation.max_correlation)
        numeric = [column for column in numeric if column.name not in alike]
        dropped |= alike
        for name in texts:
            category, reason = _fit_categorical(name, texts_of(table, name), preparation)
            if category is None:
                dropped[name] = reason
            else:
                categorical.append(category)
        return cls(preparation=preparation, numeric=tuple(numeric), categorical=tuple(categorical), dropped=dropped)

    @property
    def number_names(self) -> list[str]:
        """Names of the columns of `numbers`: the numeric columns, then `<name>_is_missing`."""
        return [c.name for c in self.numeric] + [f"{c.name}_is_missing" for c in self.numeric if c.flag]

    @property
    def code_names(self) -> list[str]:
        """Names of the columns of `codes`."""
        return [c.name for c in self.categorical]

    @property
    def names(self) -> list[str]:
        """Names of the columns of `matrix`."""
        one_hot = [f"{c.name}={v}" for c in self.categorical for v in ("(other)", "(missing)", *c.values)]
        return self.number_names + one_hot

    @property
    def num_codes(self) -> list[int]:
        """Codes per categorical column (sizes of embedding tables)."""
        return [c.num_codes for c in self.categorical]

    def raw(self, table: pa.Table) -> np.ndarray:
        """Numeric columns as they are, float64 (N, F), NaN where missing."""
        out = np.empty((table.num_rows, len(self.numeric)), dtype=np.float64)
        for j, column in enumerate(self.numeric):
            out[:, j] = numbers_of(table, column.name)
        return out

    def numbers(self, table: pa.Table) -> np.ndarray:
        """Numeric columns clipped, filled and scaled, then the missing flags: float64 (N, F + M), all finite."""
        raw = self.raw(table)
        missing = np.isnan(raw)
        flags = [j for j, column in enumerate(self.numeric) if column.flag]
        for j, column in enumerate(self.numeric):
            values = np.where(missing[:, j], column.fill, raw[:, j])
            raw[:, j] = _scaled(column, values, self.preparation.scale)
        return np.concatenate([raw, missing[:, flags].astype(np.float64)], axis=1)

    def codes(self, table: pa.Table) -> np.ndarray:
        """Categorical columns as codes, int64 (N, C): 0 unseen or rare, 1 missing, then the vocabulary."""
        out = np.empty((table.num_rows, len(self.categorical)), dtype=np.int64)
        for j, column in enumerate(self.categorical):
            texts = texts_of(table, column.name)
            known = pc.index_in(texts, value_set=pa.array(column.values, pa.string())).fill_null(-1)
            codes = known.to_numpy(zero_copy_only=False).astype(np.int64) + FIRST_KNOWN
            codes[codes < FIRST_KNOWN] = UNKNOWN
            codes[texts.is_null().to_numpy(zero_copy_only=False)] = MISSING
            out[:, j] = codes
        return out

    def one_hot(self, codes: np.ndarray) -> np.ndarray:
        """Codes (N, C) as float64 (N, sum of codes)."""
        blocks = [np.eye(size)[codes[:, j]] for j, size in enumerate(self.num_codes)]
        return np.concatenate(blocks, axis=1) if blocks else np.zeros((len(codes), 0))

    def matrix(self, table: pa.Table) -> np.ndarray:
        """`numbers` beside one-hot categories, float64 (N, D): what linear models take."""
        return np.concatenate([self.numbers(table), self.one_hot(self.codes(table))], axis=1)

    def state(self) -> dict[str, Any]:
        """Everything as JSON; floats keep their bits."""
        return {
            "preparation": asdict(self.preparation),
            "numeric": [{**asdict(c), "quantiles": list(c.quantiles)} for c in self.numeric],
            "categorical": [{**asdict(c), "values": list(c.values)} for c in self.categorical],
            "dropped": dict(self.dropped),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tabular:
        """The inverse of `state`."""
        return cls(
            preparation=Preparation(**state["preparation"]),
            numeric=tuple(Numeric(**{**c, "quantiles": tuple(c["quantiles"])}) for c in state["numeric"]),
            categorical=tuple(Categorical(**{**c, "values": tuple(c["values"])}) for c in state["categorical"]),
            dropped=dict(state["dropped"]),
        )


def _fit_numeric(name: str, values: np.ndarray, preparation: Preparation) -> Numeric | None:
    """None when the column is constant (all missing included)."""
    missing = np.isnan(values)
    present = values[~missing]
    if not len(present) or (present.min() == present.max() and not missing.any()):
        return None
    low, high = _bounds(present, preparation)
    present = np.clip(present, low, high)
    if preparation.missing == "mode":
        unique, counts = np.unique(present, return_counts=True)
        fill = float(unique[counts.argmax()])
    else:
        fill = float(np.mean(present) if preparation.missing == "mean" else np.median(present))
    column = Numeric(name=name, fill=fill, flag=bool(missing.any()), low=low, high=high)
    filled = np.clip(np.where(missing, fill, values), low, high)
    if preparation.scale == "quantile":
        ranks = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
        return replace(column, quantiles=tuple(np.quantile(filled, ranks).tolist()))
    if preparation.scale == "none":
        return column
    if preparation.scale == "minmax":
        centre, spread = float(filled.min()), float(filled.max() - filled.min())
    else:
        centre, spread = _centre_spread(filled)
    # A column that is constant once filled has spread 0: only its missing flag tells rows apart.
    return replace(column, centre=centre, spread=spread if spread > 0 and np.isfinite(spread) else 1.0)


def _centre_spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, also of numbers whose squares overflow."""
    most = float(np.abs(values).max())
    if most < LARGEST_SQUARED:
        return float(values.mean()), float(values.std())
    shares = values / most
    return float(shares.mean()) * most, float(shares.std()) * most


def _alike(columns: list[Numeric], table: pa.Table, limit: float) -> dict[str, str]:
    """Columns that correlate with an earlier one that is kept by more than `limit` -> with which; from a row sample."""
    if limit >= 1 or len(columns) < 2:
        return {}
    rows = np.linspace(0, table.num_rows - 1, min(table.num_rows, MAX_CORRELATED_ROWS)).astype(np.int64)
    centred = np.empty((len(rows), len(columns)))
    for j, column in enumerate(columns):
        values = numbers_of(table, column.name)[rows]
        values = np.clip(np.where(np.isnan(values), column.fill, values), column.low, column.high)
        values = values / (np.abs(values).max() or 1.0)  # squares of the largest numbers must not overflow
        spread = float((values - values.mean()).std())
        centred[:, j] = (values - values.mean()) / (spread or 1.0)
    correlation = centred.T @ centred / len(rows)
    kept: list[int] = []
    found: dict[str, str] = {}
    for j, column in enumerate(columns):
        nearest = max(kept, key=lambda k: abs(correlation[j, k]), default=None)
        if nearest is not None and abs(correlation[j, nearest]) > limit:
            found[column.name] = f"correlation {correlation[j, nearest]:+.3f} with {columns[nearest].name!r}"
        else:
            kept.append(j)
    return found


def _bounds(present: np.ndarray, preparation: Preparation) -> tuple[float | None, float | None]:
    if preparation.outliers == "none":
        return None, None
    q1, q3 = np.quantile(present, [0.25, 0.75])
    if q1 == q3:  # a count that is mostly zero: bounds would make it constant
        return None, None
    reach = preparation.iqr_k * (q3 - q1)
    return float(q1 - reach), float(q3 + reach)


def _scaled(column: Numeric, values: np.ndarray, scale: str) -> np.ndarray:
    if column.low is not None or column.high is not None:
        values = np.clip(values, column.low, column.high)
    if scale == "none":
        return values
    if scale != "quantile":
        return (values - column.centre) / column.spread
    knots = np.asarray(column.quantiles)
    scores = _NORMAL_SCORES
    # Interpolating from both sides gives a value with many ties the middle of its ranks (as scikit-learn does).
    forward = np.interp(values, knots, scores)
    backward = -np.interp(-values, -knots[::-1], -scores[::-1])
    return (forward + backward) / 2


_NORMAL_SCORES = np.array([NormalDist().inv_cdf((i + 0.5) / NUM_QUANTILES) for i in range(NUM_QUANTILES)])


def _fit_categorical(name: str, texts: pa.Array, preparation: Preparation) -> tuple[Categorical | None, str]:
    counts = pc.value_counts(texts.drop_null())
    pairs = sorted(zip(counts.field("counts").to_pylist(), counts.field("values").to_pylist(), strict=True),
                   key=lambda pair: (-pair[0], pair[1]))  # fmt: skip
    if not pairs or (len(pairs) == 1 and not texts.null_count):
        return None, "constant"
    frequent = [value for count, value in pairs if count >= preparation.min_frequency][:MAX_CATEGORIES]
    if not frequent and not texts.null_count:
        return None, f"no value has {preparation.min_frequency} rows"
    return Categorical(name=name, values=tuple(frequent)), ""
