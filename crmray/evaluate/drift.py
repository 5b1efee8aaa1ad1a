"""How far the features of later rows have moved from those of training: the population stability index.

    PSI = sum over bins of (share - share in training) · ln(share / share in training)

over ten bins of equal training rows for a number (missing values are a bin of their own) and over the frequent values
of a category (Siddiqi 2006, Credit Risk Scorecards). Below 0.1 nothing happened, from SHIFTED on a model should be
looked at. A profile is JSON: shares and bin edges, no value of any row but frequent categories.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.columns import feature_columns, numbers_of, texts_of

SHIFTED = 0.25
NUM_BINS = 10
MAX_VALUES = 20
"""frequent categories with a bin of their own; the others share one"""
MOST_TOLD = 10
"""features of a summary"""
LEAST = 1e-4
"""a share is taken as at least this, so that an empty bin has a finite index"""


def profile(train: pa.Table, labels: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Feature column -> its bins and the share of the training rows in each; constant columns are left out."""
    numeric, categorical = feature_columns(train.schema, labels)
    found: dict[str, dict[str, Any]] = {}
    for name in numeric:
        values = numbers_of(train, name)
        known = values[~np.isnan(values)]
        edges = np.unique(np.quantile(known, np.arange(1, NUM_BINS) / NUM_BINS)) if len(known) else np.zeros(0)
        found[name] = {"edges": edges.tolist()}
    for name in categorical:
        counts = pc.value_counts(texts_of(train, name).drop_null())
        pairs = zip(counts.field("counts").to_pylist(), counts.field("values").to_pylist(), strict=True)
        found[name] = {"values": [value for _, value in sorted(pairs, key=lambda p: (-p[0], p[1]))[:MAX_VALUES]]}
    shares = {name: _shares(bins, train, name) for name, bins in found.items()}
    return {name: {**found[name], "shares": share.tolist()} for name, share in shares.items() if share.max() < 1}


def _shares(bins: Mapping[str, Any], table: pa.Table, name: str) -> np.ndarray:
    """Share of the rows in each bin; the last bin holds what is missing, of categories the one before it the rest."""
    if "edges" in bins:
        values, size = numbers_of(table, name), len(bins["edges"]) + 2
        code = np.where(np.isnan(values), size - 1, np.searchsorted(bins["edges"], values, side="left"))
    else:
        texts, size = texts_of(table, name), len(bins["values"]) + 2
        known = pc.index_in(texts, value_set=pa.array(bins["values"], pa.string())).fill_null(size - 2)
        code = np.where(pc.is_null(texts).to_numpy(zero_copy_only=False), size - 1, known.to_numpy())
    return np.bincount(code.astype(np.int64), minlength=size) / max(table.num_rows, 1)


def psi(reference: Mapping[str, Mapping[str, Any]], table: pa.Table) -> dict[str, float]:
    """Column -> population stability index of these rows against the profile, the most moved first."""
    found = {}
    for name, bins in reference.items():
        before = np.maximum(np.asarray(bins["shares"]), LEAST)
        after = np.maximum(_shares(bins, table, name), LEAST)
        found[name] = round(float(((after - before) * np.log(after / before)).sum()), 4)
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def summary(reference: Mapping[str, Mapping[str, Any]], table: pa.Table) -> dict[str, Any]:
    """JSON for a report: rows, how many features are shifted, and the most moved ones with their index."""
    moved = psi(reference, table)
    return {
        "rows": table.num_rows,
        "features": len(moved),
        "shifted": sum(value >= SHIFTED for value in moved.values()),
        "psi": dict(list(moved.items())[:MOST_TOLD]),
    }
