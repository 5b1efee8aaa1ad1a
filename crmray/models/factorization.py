"""Matrix factorisation of who bought what: implicit feedback by alternating least squares.

Source: Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets" (ICDM 2008): preference 1 for
what was bought and 0 for the rest, confidence 1 + alpha * weight for what was bought and 1 for the rest. Customers are
folded in from their history, so a new one needs no new fit. Shapes: B rows, I items, D factors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors import numpy as safetensors

from crmray.models import histories, ranking
from crmray.models.histories import Catalogue
from crmray.models.neighbours import TIE, check_share, needs_history
from crmray.models.tabular import check_positive, file_of, to_json

BLOCK_ROWS = 2_048
"""linear systems solved at once"""


@dataclass(frozen=True, kw_only=True)
class ALS:
    """The settings of the factorisation."""

    NAME: ClassVar[str] = "als"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"alpha": (0.3, 3.0), "l2": (1.0, 10.0)}

    dim: int = 64
    """latent factors"""
    alpha: float = 1.0
    """confidence that a purchase adds"""
    l2: float = 1.0
    """regularisation of the factors"""
    decay: float = 0.9
    """weight of a purchase one visit before the newest one, when a customer is folded in; 1: all alike"""
    num_rounds: int = 8
    """times that customers and products are solved for in turn"""

    def __post_init__(self):
        check_positive(dim=self.dim, alpha=self.alpha, l2=self.l2, num_rounds=self.num_rounds)
        check_share(decay=self.decay)

    applies = staticmethod(needs_history)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> FittedALS:
        """Solve for customers and products in turn, from small random factors of the products."""
        train = histories.training(train)
        catalogue = Catalogue.of(train)
        bought = histories.encode(train, catalogue).matrix(len(catalogue), 1.0)
        buyers = bought.T.tocsr()
        items_ID = np.random.default_rng(seed).normal(0.0, 0.01, (len(catalogue), self.dim))
        for _ in range(self.num_rounds):
            customers = solve(bought, items_ID, self.alpha, self.l2)
            items_ID = solve(buyers, customers, self.alpha, self.l2)
        return FittedALS(
            catalogue=catalogue, items_ID=items_ID.astype(np.float32), alpha=self.alpha, l2=self.l2, decay=self.decay
        )

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedALS:
        """What `save` wrote. CorruptError when a file is missing."""
        about = json.loads(file_of(files, "model.json"))
        items_ID = safetensors.load(file_of(files, "factors.safetensors"))["items"]
        return FittedALS(catalogue=Catalogue.load(files), items_ID=items_ID, **about)


def solve(weights: sp.csr_matrix, others: np.ndarray, alpha: float, l2: float) -> np.ndarray:
    """(rows, D) factors of the rows given those of the columns Y: (Y'Y + Y'(C - 1)Y + l2)^-1 Y'C p, with confidences
    C = 1 + alpha * weight."""
    dim = others.shape[1]
    gram = others.T @ others + l2 * np.eye(dim)
    found = np.zeros((weights.shape[0], dim))
    for start in range(0, weights.shape[0], BLOCK_ROWS):
        rows = range(start, min(start + BLOCK_ROWS, weights.shape[0]))
        left, right = np.repeat(gram[None], len(rows), axis=0), np.zeros((len(rows), dim))
        for place, row in enumerate(rows):
            first, last = weights.indptr[row : row + 2]
            known, extra = others[weights.indices[first:last]], alpha * weights.data[first:last].astype(np.float64)
            left[place] += (known * extra[:, None]).T @ known
            right[place] = (1.0 + extra) @ known
        found[rows.start : rows.stop] = np.linalg.solve(left, right[:, :, None])[:, :, 0]
    return found


@dataclass(frozen=True, kw_only=True)
class FittedALS(ranking.Ranked):
    """Factors of the products; customers' factors follow from their history."""

    catalogue: Catalogue
    """the products"""
    items_ID: np.ndarray
    """(I, D) float32 factors"""
    alpha: float
    """confidence that a purchase adds"""
    l2: float
    """regularisation"""
    decay: float
    """weight of a purchase one visit before the newest one"""

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32."""
        bought = histories.encode(examples, self.catalogue).matrix(len(self.catalogue), self.decay)
        customers_BD = solve(bought, self.items_ID.astype(np.float64), self.alpha, self.l2)
        scores_BI = customers_BD.astype(np.float32) @ self.items_ID.T
        return scores_BI + np.float32(TIE) * self.catalogue.popularity

    def save(self) -> dict[str, bytes]:
        """The catalogue's files, model.json, factors.safetensors."""
        about = {"alpha": self.alpha, "l2": self.l2, "decay": self.decay}
        own = {"model.json": to_json(about), "factors.safetensors": safetensors.save({"items": self.items_ID})}
        return {**self.catalogue.save(), **own}
