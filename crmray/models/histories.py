"""Purchase histories as ragged arrays, and the ranking of items for a block of customers.

Rows in are examples of the recommendation task: `history` list<string> (product ids, oldest first),
`history_days_before` list<float32>, `exclude_owned` bool, `target` list<string> (null where there is no label).
Shape suffixes: B customers of a block, I items, K places of a ranking, M history entries of all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

BLOCK_CELLS = 16_000_000
"""scores held at once while ranking: 64 MB of float32"""


class Scorer(Protocol):
    """What every fitted recommender offers besides `predict`, `save` and `rounds`."""

    items: np.ndarray
    """(I,) product ids, the most bought first"""

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32; higher is better, comparable within a row only."""
        ...


@dataclass(frozen=True, kw_only=True)
class Histories:
    """What each row has bought, as codes of a catalogue; products outside the catalogue are left out."""

    offsets: np.ndarray
    """(rows + 1,) int64; row i owns entries offsets[i]:offsets[i + 1], oldest first"""
    codes: np.ndarray
    """(M,) int32 positions in the catalogue"""
    days_before: np.ndarray
    """(M,) float32 days before the row's as_of"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) number of entries."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """(M,) row of each entry."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def from_end(self) -> np.ndarray:
        """(M,) distance of each entry from its row's end, 0 for the newest."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.codes))

    def matrix(self, weights: np.ndarray, num_items: int) -> sp.csr_matrix:
        """(rows, I) float32 sparse matrix of entry weights; entries of the same item add up."""
        matrix = sp.csr_matrix((weights.astype(np.float32), self.codes, self.offsets), shape=(len(self), num_items))
        matrix.sum_duplicates()
        return matrix


def flatten(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Offsets (rows + 1,) int64 and flat values of a list column; null lists count as empty."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pc.list_flatten(array)


def catalogue(train: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Product ids of all histories (object array, the most bought first, ties by id) and their numbers of buyers."""
    _, values = flatten(train["history"])
    counts = pc.value_counts(values)
    ids = counts.field("values").to_numpy(zero_copy_only=False)
    buyers = counts.field("counts").to_numpy(zero_copy_only=False)
    order = np.lexsort((ids.astype(str), -buyers))
    return ids[order].astype(object), buyers[order].astype(np.int64)


def encode(examples: pa.Table, items: np.ndarray) -> Histories:
    """Histories of `examples` in codes of `items`."""
    offsets, values = flatten(examples["history"])
    _, days = flatten(examples["history_days_before"])
    codes, kept_offsets, kept = _codes(offsets, values, items)
    days_before = days.to_numpy(zero_copy_only=False).astype(np.float32)[kept]
    return Histories(offsets=kept_offsets, codes=codes, days_before=days_before)


def encode_lists(column: pa.ChunkedArray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (rows + 1,) and codes of a list<string> column; ids outside `items` are left out."""
    offsets, values = flatten(column)
    codes, kept_offsets, _ = _codes(offsets, values, items)
    return kept_offsets, codes


def _codes(offsets: np.ndarray, values: pa.Array, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = pc.index_in(values.cast(pa.string()), value_set=pa.array(items, pa.string()))
    kept = pc.is_valid(found).to_numpy(zero_copy_only=False)
    codes = pc.drop_null(found).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, np.concatenate([[0], np.cumsum(kept)])[offsets].astype(np.int64), kept


def targets(examples: pa.Table) -> list[set[str]]:
    """The products to be found, row by row; empty where there is no label."""
    return [set(products or ()) for products in examples["target"].to_pylist()]


def blocks(num_rows: int, num_items: int) -> Iterable[slice]:
    """Slices of rows whose scores fit BLOCK_CELLS."""
    size = max(1, min(4096, BLOCK_CELLS // max(1, num_items)))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def recommend(
    model: Scorer, examples: pa.Table, *, top_k: int = 10, exclude: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The best `top_k` items of every row: {"products": (rows, K) object, "scores": (rows, K) float32}.

    What a customer owns is left out where `exclude_owned` says so, `exclude` for everybody. Ties go to the item bought
    most. Where fewer than K items are left the tail is None with score nan.
    """
    return rank(model.scores, model.items, examples, top_k=top_k, exclude=exclude)


def rank(
    scores: Callable[[pa.Table], np.ndarray],
    items: np.ndarray,
    examples: pa.Table,
    *,
    top_k: int = 10,
    exclude: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """As `recommend`, for a scoring function."""
    width = min(top_k, len(items))
    products = np.full((examples.num_rows, top_k), None, dtype=object)
    values = np.full((examples.num_rows, top_k), np.nan, dtype=np.float32)
    barred = np.flatnonzero(np.isin(items.astype(str), list(exclude))) if len(exclude) else np.empty(0, np.int64)
    for block in blocks(examples.num_rows, len(items)):
        part = examples.slice(block.start, block.stop - block.start)
        scores_BI = np.array(scores(part), dtype=np.float32)
        scores_BI[owned(part, items)] = -np.inf
        scores_BI[:, barred] = -np.inf
        best_BK, best_scores_BK = top(scores_BI, width)
        shown_BK = np.isfinite(best_scores_BK)
        products[block, :width] = np.where(shown_BK, items[best_BK], None)
        values[block, :width] = np.where(shown_BK, best_scores_BK, np.nan)
    return {"products": products, "scores": values}


def owned(examples: pa.Table, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index arrays (rows, codes) of what may not be shown because the customer has it."""
    offsets, codes = encode_lists(examples["history"], items)
    rows = np.repeat(np.arange(examples.num_rows), np.diff(offsets))
    asked = pc.fill_null(examples["exclude_owned"], True).to_numpy()[rows]
    return rows[asked], codes[asked]


def top(scores_BI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scores (B, k) of the highest scores, best first; equal scores in order of code."""
    cut_B1 = np.partition(scores_BI, scores_BI.shape[1] - k, axis=1)[:, -k][:, None]
    best_BK = np.empty((len(scores_BI), k), np.int64)
    for row, scores_I in enumerate(scores_BI):
        candidates = np.flatnonzero(scores_I >= cut_B1[row])
        best_BK[row] = candidates[np.argsort(-scores_I[candidates], kind="stable")[:k]]
    return best_BK, np.take_along_axis(scores_BI, best_BK, axis=1)


def ndcg(products: np.ndarray, wanted: Sequence[set[str]]) -> np.ndarray:
    """(rows,) NDCG of rankings (rows, K) with binary gains and the ideal of min(K, |target|); nan without a target."""
    gains_K = 1.0 / np.log2(np.arange(2, products.shape[1] + 2))
    ideals_K = np.cumsum(gains_K)
    result = np.full(len(products), np.nan)
    for row, target in enumerate(wanted):
        if target:
            hits = np.fromiter((product in target for product in products[row]), bool, products.shape[1])
            result[row] = gains_K[hits].sum() / ideals_K[min(len(target), products.shape[1]) - 1]
    return result
