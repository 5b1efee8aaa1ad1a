"""Purchase histories as ragged arrays, and the ranking of items for blocks of customers.

Rows in are examples of the recommendation task: `history` list<string> (product ids, oldest first),
`history_days_before` list<float32>, `exclude_owned` bool. Entries of one row with the same days are one visit.
Shape suffixes: B customers of a block, I items, K places of a ranking, M history entries of all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from crmray.errors import DataError, NotEnoughDataError

BLOCK_CELLS = 16_000_000
"""scores held at once while ranking: 64 MB of float32"""
BLOCK_PAIRS = 20_000_000
"""entries of the visits' pasts held at once while counting: 240 MB"""
NEGLIGIBLE = 0.01
"""a weight below this share of the largest is left out of the counts"""


@dataclass(frozen=True, kw_only=True)
class Histories:
    """What each row has bought, as codes of a catalogue; products outside the catalogue are left out."""

    offsets: np.ndarray
    """(rows + 1,) int64; row i owns entries offsets[i]:offsets[i + 1], oldest first"""
    codes: np.ndarray
    """(M,) int32 positions in the catalogue"""
    days_before: np.ndarray
    """(M,) float32 days before the row's as_of, descending"""

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

    def visits(self) -> np.ndarray:
        """(M,) int64 number of each entry's visit, ascending over all rows, from 0."""
        new = np.ones(len(self.codes), bool)
        new[1:] = self.days_before[1:] != self.days_before[:-1]
        new[self.offsets[:-1][self.lengths > 0]] = True
        return np.cumsum(new) - 1

    def visits_from_end(self) -> np.ndarray:
        """(M,) int64 visits between each entry's and the newest of its row, which is 0."""
        visits = self.visits()
        if not len(visits):
            return visits
        newest = visits[np.maximum(self.offsets[1:] - 1, 0)]
        return np.repeat(newest, self.lengths) - visits

    def matrix(self, num_items: int, decay: float) -> sp.csr_matrix:
        """(rows, I) float32: each entry weighs decay ** (visits after it); decay 0 keeps the newest visit only."""
        weights = np.power(np.float32(decay), self.visits_from_end(), dtype=np.float32)
        matrix = sp.csr_matrix((weights, self.codes, self.offsets), shape=(len(self), num_items))
        matrix.sum_duplicates()
        return matrix

    def slice(self, start: int, stop: int) -> Histories:
        """Rows start:stop."""
        first, last = self.offsets[start], self.offsets[stop]
        return Histories(
            offsets=self.offsets[start : stop + 1] - first,
            codes=self.codes[first:last],
            days_before=self.days_before[first:last],
        )


def flatten(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Offsets (rows + 1,) int64 and flat values of a list column; null lists count as empty."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pc.list_flatten(array)


def catalogue(train: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Product ids of all histories (object (I,), the most bought first, ties by id), and (I,) int64 their buyers.

    NotEnoughDataError when there are fewer than two.
    """
    _, values = flatten(train["history"])
    counts = pc.value_counts(values)
    ids = counts.field("values").to_numpy(zero_copy_only=False).astype(object)
    buyers = counts.field("counts").to_numpy(zero_copy_only=False)
    if len(ids) < 2:
        raise NotEnoughDataError(
            f"got {len(ids)} different products in the purchases of {train.num_rows} customers, expected at least 2: "
            "check that transactions.product_id is mapped and that products_matching fits the ids"
        )
    order = np.lexsort((ids.astype(str), -buyers))
    return ids[order], buyers[order].astype(np.int64)


def encode(examples: pa.Table, items: np.ndarray) -> Histories:
    """Histories of `examples` in codes of `items`. DataError when the two list columns do not run alongside."""
    offsets, values = flatten(examples["history"])
    day_offsets, days = flatten(examples["history_days_before"])
    if not np.array_equal(offsets, day_offsets):
        raise DataError("columns 'history' and 'history_days_before' differ in length, expected one number per product")
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


def cooccurrence(histories: Histories, num_items: int, closeness: float) -> sp.csr_matrix:
    """(I, I) symmetric float32: sum over customers of closeness ** |visits between the two purchases|.

    closeness 1 counts the customers who bought both. The diagonal is the number of buyers. With closeness below 1 the
    matrix stays positive semi-definite (an exponential kernel on the line), so that EASE can be solved on it.
    """
    if closeness == 1.0:
        bought = histories.matrix(num_items, 1.0)
        return (bought.T @ bought).tocsr()
    longest = int(np.ceil(np.log(NEGLIGIBLE) / np.log(closeness))) if closeness > 0 else 0
    total = sp.csr_matrix((num_items, num_items), dtype=np.float32)
    step = max(1, int(BLOCK_PAIRS / max(1.0, len(histories.codes) * (longest + 1) / max(1, len(histories)))))
    for start in range(0, len(histories), step):
        total = total + _kernel_counts(
            histories.slice(start, min(start + step, len(histories))), num_items, closeness, longest
        )
    return total


def _kernel_counts(part: Histories, num_items: int, closeness: float, longest: int) -> sp.csr_matrix:
    visits, from_end = part.visits(), part.visits_from_end()
    num_visits = int(visits[-1]) + 1 if len(visits) else 0
    shape = (num_visits, num_items)
    now = sp.csr_matrix((np.ones(len(visits), np.float32), (visits, part.codes)), shape=shape)
    rows, codes, weights = [], [], []
    for gap in range(1, longest + 1):
        reaches = from_end >= gap
        if not reaches.any():
            break
        rows.append(visits[reaches] + gap)
        codes.append(part.codes[reaches])
        weights.append(np.full(int(reaches.sum()), closeness**gap, np.float32))
    same_visit = (now.T @ now).tocsr()
    if not rows:
        return same_visit
    past = sp.csr_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(codes))), shape=shape)
    forward = (past.T @ now).tocsr()
    return same_visit + forward + forward.T


def blocks(num_rows: int, num_items: int) -> Iterator[slice]:
    """Slices of rows whose scores fit BLOCK_CELLS."""
    size = max(1, min(4096, BLOCK_CELLS // max(1, num_items)))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def rank(
    scores: Callable[[pa.Table], np.ndarray],
    items: np.ndarray,
    examples: pa.Table,
    *,
    top_k: int = 10,
    exclude: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The best `top_k` items of every row: {"products": (rows, K) object, "scores": (rows, K) float32}.

    scores: examples -> (B, I), higher is better. What a customer owns is left out where `exclude_owned` says so,
    `exclude` for everybody. Equal scores stand in the order of `items`. Where fewer than K items are left, the rest is
    None with score nan.
    """
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
