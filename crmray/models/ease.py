"""EASE: the linear autoencoder of items with a closed form.

Source: Steck, "Embarrassingly shallow autoencoders for sparse data" (WWW 2019). B = I - P diag(1 / diag P) with
P = (G + l2 I)^-1. Here G weighs a co-purchase by how many visits apart it was (`histories.cooccurrence`; closeness 1 is
Steck's G = X'X), and only the strongest weights of each product are kept: the dense matrix of 12,000 products takes
586 MB, its 200 strongest neighbours 19 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from scipy.linalg import lapack

from crmray.errors import TrainingError
from crmray.models import histories
from crmray.models.histories import Catalogue
from crmray.models.neighbours import ItemToItem, check_share, needs_history
from crmray.models.tabular import check_positive


@dataclass(frozen=True, kw_only=True)
class Ease:
    """The settings of EASE."""

    NAME: ClassVar[str] = "ease"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"l2": (30.0, 100.0, 300.0), "closeness": (0.8, 1.0), "decay": (0.5, 0.7)}

    l2: float = 100.0
    """regularisation: added to the diagonal, in customers"""
    closeness: float = 0.8
    """weight of a co-purchase one visit apart; 1: any distance counts the same"""
    decay: float = 0.7
    """weight of a purchase one visit before the newest one, when scoring"""
    num_neighbours: int = 200
    """weights kept per product"""
    max_items: int = 20_000
    """products solved for, the most bought ones; the others are never recommended. Takes 4 max_items^2 bytes, twice"""

    def __post_init__(self):
        check_positive(l2=self.l2, num_neighbours=self.num_neighbours, max_items=self.max_items)
        check_share(closeness=self.closeness, decay=self.decay)

    applies = staticmethod(needs_history)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> ItemToItem:
        """Solve. TrainingError when the matrix cannot be inverted in single precision."""
        train = histories.training(train)
        catalogue = Catalogue.of(train, max_items=self.max_items)
        gram = histories.cooccurrence(histories.encode(train, catalogue), len(catalogue), self.closeness)
        return ItemToItem(catalogue=catalogue, votes=solve(gram, self.l2, self.num_neighbours), decay=self.decay)

    load = ItemToItem.load


def solve(gram: sp.csr_matrix, l2: float, num_neighbours: int) -> sp.csr_matrix:
    """EASE's weights (I, I), float32, the `num_neighbours` largest of each row, diagonal zero."""
    dense = np.asfortranarray(gram.toarray(order="F"), dtype=np.float32)
    dense[np.diag_indices_from(dense)] += np.float32(l2)
    factor, failed = lapack.spotrf(dense, lower=1, overwrite_a=1, clean=0)
    if not failed:
        inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise TrainingError(
            f"ease: got a matrix of {gram.shape[0]} products that is not positive definite in single precision with "
            f"l2={l2:g}; raise l2"
        )
    return _strongest_weights(inverse, min(num_neighbours, gram.shape[0] - 1))


def _strongest_weights(inverse: np.ndarray, num_neighbours: int) -> sp.csr_matrix:
    """Rows of -P / diag(P), of which only the lower triangle of P is filled, cut to the strongest weights."""
    size = len(inverse)
    diagonal = np.diagonal(inverse).copy()
    indices = np.empty((size, num_neighbours), np.int32)
    data = np.empty((size, num_neighbours), np.float32)
    for row in range(size):
        weights = np.concatenate([inverse[row, :row], inverse[row:, row]]) / -diagonal
        weights[row] = 0.0
        kept = np.sort(np.argpartition(np.abs(weights), size - num_neighbours)[size - num_neighbours :])
        indices[row], data[row] = kept, weights[kept]
    indptr = np.arange(size + 1, dtype=np.int64) * num_neighbours
    return sp.csr_matrix((data.ravel(), indices.ravel(), indptr), shape=(size, size))
