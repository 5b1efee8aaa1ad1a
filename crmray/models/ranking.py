"""Rankings: the best items of each customer.

Shape suffixes: B customers of a block, I items, K places of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.product_facts import Facts
from crmray.models import histories
from crmray.models.histories import Catalogue
from crmray.models.rules import Rules

BLOCK_CELLS = 16_000_000
"""scores held at once while ranking: 64 MB of float32"""


def blocks(num_rows: int, num_items: int) -> Iterator[slice]:
    """Slices of rows whose scores fit BLOCK_CELLS."""
    size = max(1, min(4096, BLOCK_CELLS // max(1, num_items)))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def rank(
    scores: Callable[[pa.Table], np.ndarray],
    catalogue: Catalogue,
    examples: pa.Table,
    *,
    top_k: int = 10,
    exclude: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The best `top_k` items of every row: {"products": (rows, K) object, "scores": (rows, K) float32}.

    scores: examples -> (B, I), higher is better. What a customer owns is left out where `exclude_owned` says so,
    `exclude` for everybody. Equal scores stand in the order of the catalogue. Where fewer than K items are left, the
    rest is None with score nan.
    """
    products = np.full((examples.num_rows, top_k), None, dtype=object)
    values = np.full((examples.num_rows, top_k), np.nan, dtype=np.float32)
    for block in blocks(examples.num_rows, len(catalogue)):
        part = examples.slice(block.start, block.stop - block.start)
        shown = rank_block(np.asarray(scores(part)), catalogue, part, top_k=top_k, exclude=exclude)
        products[block], values[block] = shown
    return {"products": products, "scores": values}


def rank_block(
    scores_BI: np.ndarray, catalogue: Catalogue, part: pa.Table, *, top_k: int = 10, exclude: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Products (B, K) object and scores (B, K) float32 of the rows whose scores are given; as `rank`."""
    allowed_BI = _allowed(scores_BI, catalogue, part, exclude)
    best_BK, values_BK = top(allowed_BI, min(top_k, len(catalogue)))
    shown_BK = np.isfinite(values_BK)
    products_BK = np.full((len(allowed_BI), top_k), None, dtype=object)
    scores_BK = np.full((len(allowed_BI), top_k), np.nan, np.float32)
    width = best_BK.shape[1]
    products_BK[:, :width] = np.where(shown_BK, catalogue.items[best_BK], None)
    scores_BK[:, :width] = np.where(shown_BK, values_BK, np.nan)
    return products_BK, scores_BK


def lists(
    scores: Callable[[pa.Table], np.ndarray],
    catalogue: Catalogue,
    examples: pa.Table,
    top_k: int,
    rules: Rules,
    facts: Facts,
    hidden: Collection[str],
    *,
    pool: int,
) -> list[tuple[list[str], list[float]]]:
    """Products and scores that each row is shown under the rules, best first; shorter where fewer are left.

    Rules that reorder choose among the `pool` best products; for a row for which these are not enough, among all.
    """
    found: list[tuple[list[str], list[float]]] = [([], [])] * examples.num_rows
    short = np.arange(examples.num_rows)
    for depth in [min(pool, len(catalogue)), len(catalogue)] if rules.reorders else [top_k]:
        for block in blocks(len(short), depth):  # the whole rankings of all rows would not fit the memory
            part = examples.take(pa.array(short[block]))
            best = rank(scores, catalogue, part, top_k=depth, exclude=sorted(hidden))
            for row, names, values in zip(short[block], best["products"], best["scores"], strict=True):
                size = int(np.isfinite(values).sum())
                chosen = rules.choose(names[:size].tolist(), values[:size], top_k, facts)
                found[row] = names[chosen].tolist(), values[chosen].astype(float).tolist()
        short = np.array([row for row in short if len(found[row][0]) < top_k], np.int64)
    return found


def places(
    scores: Callable[[pa.Table], np.ndarray],
    catalogue: Catalogue,
    examples: pa.Table,
    product: str,
    *,
    exclude: Sequence[str],
) -> np.ndarray:
    """(rows,) int64 place of one product, from 1, among the products that each row may be shown; 0 where it may not be
    shown, or where the model does not know it."""
    found = np.zeros(examples.num_rows, np.int64)
    code = catalogue.code_of.get(product)
    if code is None:
        return found
    for block in blocks(examples.num_rows, len(catalogue)):
        part = examples.slice(block.start, block.stop - block.start)
        allowed_BI = _allowed(np.asarray(scores(part)), catalogue, part, exclude)
        own_B1 = allowed_BI[:, [code]]
        found[block] = np.where(np.isfinite(own_B1[:, 0]), 1 + (allowed_BI > own_B1).sum(1), 0)
    return found


def _allowed(scores_BI: np.ndarray, catalogue: Catalogue, part: pa.Table, exclude: Sequence[str]) -> np.ndarray:
    """(B, I) float32: a copy of the scores, -inf for what a row or nobody may be shown."""
    allowed_BI = np.array(scores_BI, dtype=np.float32)
    allowed_BI[owned(part, catalogue)] = -np.inf
    allowed_BI[:, [catalogue.code_of[product] for product in exclude if product in catalogue.code_of]] = -np.inf
    return allowed_BI


def owned(examples: pa.Table, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """Index arrays (rows, codes) of what may not be shown because the customer has it."""
    offsets, codes, _ = catalogue.codes(histories.column_of(examples, "history"))
    rows = np.repeat(np.arange(examples.num_rows), np.diff(offsets))
    asked = pc.fill_null(histories.column_of(examples, "exclude_owned"), True).to_numpy()[rows]
    return rows[asked], codes[asked]


def top(scores_BI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scores (B, k) of the highest scores, best first; equal scores in order of code."""
    cut_B1 = np.partition(scores_BI, scores_BI.shape[1] - k, axis=1)[:, -k][:, None]
    best_BK = np.empty((len(scores_BI), k), np.int64)
    for row, scores_I in enumerate(scores_BI):
        candidates = np.flatnonzero(scores_I >= cut_B1[row])
        best_BK[row] = candidates[np.argsort(-scores_I[candidates], kind="stable")[:k]]
    return best_BK, np.take_along_axis(scores_BI, best_BK, axis=1)


class Recommender(Protocol):
    """What a fitted recommender offers."""

    @property
    def catalogue(self) -> Catalogue:
        """The products that it knows."""

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32; higher is better, comparable within a row only."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """The ten best products of each row; see `rank`."""

    def save(self) -> dict[str, bytes]:
        """File name -> content."""


class Ranked:
    """What all recommenders share: they rank by their scores."""

    def predict(self: Recommender, examples: pa.Table) -> dict[str, np.ndarray]:
        """The ten best products of each row; see `rank`."""
        return rank(self.scores, self.catalogue, examples)
