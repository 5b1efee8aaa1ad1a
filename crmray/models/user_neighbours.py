"""User-based collaborative filtering: what customers with a similar history bought.

Source: Resnick et al., "GroupLens: an open architecture for collaborative filtering of netnews" (CSCW 1994), with the
cosine of implicit feedback. The fitted model is made of customers' rows, so it names them: whoever is erased from the
lake is found in its files, and the bundle is retired (crmray.forget). Shapes: B rows, U customers, I items.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors import numpy as safetensors
from scipy.sparse.linalg import norm as norms

from crmray.models import histories, ranking
from crmray.models.histories import Catalogue
from crmray.models.neighbours import (
    TIE,
    arrays_of,
    check_not_negative,
    check_share,
    matrix_of,
    needs_history,
    strongest,
)
from crmray.models.tabular import check_positive, file_of, to_json


@dataclass(frozen=True, kw_only=True)
class UserKNN:
    """The settings of user-based collaborative filtering."""

    NAME: ClassVar[str] = "userknn"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"num_neighbours": (50, 200), "decay": (0.5, 0.8)}

    num_neighbours: int = 100
    """customers who vote"""
    shrink: float = 1.0
    """added to the denominator of the cosine: how far short histories are trusted less"""
    decay: float = 0.7
    """weight of a purchase one visit before the newest one; 1: all alike"""
    rarity: float = 0.0
    """exponent of a product's buyers by which its weight falls: sharing a rare product says more; 0: all alike"""
    max_customers: int = 50_000
    """customers kept, those with the latest purchases"""

    def __post_init__(self):
        check_positive(num_neighbours=self.num_neighbours, max_customers=self.max_customers)
        check_share(decay=self.decay, rarity=self.rarity)
        check_not_negative(shrink=self.shrink)

    applies = staticmethod(needs_history)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> FittedUserKNN:
        """Keep the customers' histories."""
        train = histories.training(train)
        catalogue = Catalogue.of(train)
        bought = histories.encode(train, catalogue)
        latest = np.full(len(bought), np.inf)
        np.minimum.at(latest, bought.rows, bought.days_before)
        kept = np.sort(np.argsort(latest, kind="stable")[: min(self.max_customers, int((latest < np.inf).sum()))])
        return FittedUserKNN(
            catalogue=catalogue, customers=train["entity_id"].take(pa.array(kept)).to_pylist(),
            bought=bought.take(kept).matrix(len(catalogue), self.decay), num_neighbours=self.num_neighbours,
            shrink=self.shrink, decay=self.decay, rarity=self.rarity,
        )  # fmt: skip

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedUserKNN:
        """What `save` wrote. CorruptError when a file is missing."""
        catalogue, customers = Catalogue.load(files), json.loads(file_of(files, "customers.json"))
        arrays = safetensors.load(file_of(files, "bought.safetensors"))
        bought = matrix_of(arrays, (len(customers), len(catalogue)))
        about = json.loads(file_of(files, "model.json"))
        return FittedUserKNN(catalogue=catalogue, customers=customers, bought=bought, **about)


@dataclass(frozen=True, kw_only=True)
class FittedUserKNN(ranking.Ranked):
    """Histories of customers, and how likeness to them is measured."""

    BECAUSE: ClassVar[str] = "bought by others with similar purchases"

    catalogue: Catalogue
    """the products"""
    customers: list[str]
    """(U,) their ids, as they stand in the lake"""
    bought: sp.csr_matrix
    """(U, I) float32 decayed histories"""
    num_neighbours: int
    """customers who vote"""
    shrink: float
    """added to the denominator of the cosine"""
    decay: float
    """weight of a purchase one visit before the newest one"""
    rarity: float
    """exponent of a product's buyers by which its weight falls"""

    @cached_property
    def _weights(self) -> sp.dia_matrix:
        return sp.diags(self.catalogue.buyers.astype(np.float64) ** -self.rarity)

    @cached_property
    def _compared(self) -> sp.csr_matrix:
        return self.bought @ self._weights

    @cached_property
    def _place_of(self) -> dict[str, int]:
        return {customer: place for place, customer in enumerate(self.customers)}

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32: the neighbours' purchases, weighed by likeness. Nobody is a neighbour of their own."""
        return self._voted(examples).toarray() + np.float32(TIE) * self.catalogue.popularity

    def because(self, examples: pa.Table, products: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        """For each row and each of its products: the product itself where a neighbour bought it."""
        voted, code_of = self._voted(examples), self.catalogue.code_of
        bought = (set(voted.indices[start:stop]) for start, stop in itertools.pairwise(voted.indptr))
        return [
            [[product] if code_of.get(product) in codes else [] for product in shown]
            for codes, shown in zip(bought, products, strict=True)
        ]

    def _voted(self, examples: pa.Table) -> sp.csr_matrix:
        """(B, I) float32 votes above 0, of a few rows at a time: each of them may be like every customer."""
        parts = [
            self._votes(examples.slice(block.start, block.stop - block.start))
            for block in ranking.blocks(examples.num_rows, len(self.customers))
        ]
        return sp.vstack([sp.csr_matrix((0, len(self.catalogue)), dtype=np.float32), *parts], format="csr")

    def _votes(self, examples: pa.Table) -> sp.csr_matrix:
        history = histories.encode(examples, self.catalogue).matrix(len(self.catalogue), self.decay) @ self._weights
        likeness = (history @ self._compared.T).tocoo()
        norm = norms(history, axis=1)[likeness.row] * norms(self._compared, axis=1)[likeness.col]
        own = np.array([self._place_of.get(who, -1) for who in examples["entity_id"].to_pylist()], np.int64)
        values = np.where(own[likeness.row] == likeness.col, 0.0, likeness.data / (norm + self.shrink))
        cosine = sp.csr_matrix((values, (likeness.row, likeness.col)), shape=likeness.shape)
        voted = (strongest(cosine, self.num_neighbours) @ self.bought).astype(np.float32)
        voted.eliminate_zeros()
        return voted

    def save(self) -> dict[str, bytes]:
        """The catalogue's files, model.json, customers.json, bought.safetensors."""
        about = {name: getattr(self, name) for name in ("num_neighbours", "shrink", "decay", "rarity")}
        own = {"model.json": to_json(about), "customers.json": to_json(self.customers)}
        return {**self.catalogue.save(), **own, "bought.safetensors": safetensors.save(arrays_of(self.bought))}
