"""Popularity, and item-to-item models: what a customer bought votes for what else is bought with it.

Sources: Aiolli, "Efficient top-N recommendation for very large scale binary rated datasets" (RecSys 2013; asymmetric
cosine); Sarwar et al., "Item-based collaborative filtering" (WWW 2001; alpha .5, shrink 0, closeness 1, decay 1).
Shape suffixes as in `histories`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors import numpy as safetensors

from crmray.models import histories, ranking
from crmray.models.histories import Catalogue
from crmray.models.tabular import check_positive, file_of, needs, to_json

TIE = 1e-6
"""weight of popularity in the scores: it orders what has no votes and nothing else"""
needs_history = needs("history", "history_days_before", "exclude_owned")
"""`applies` of a recommender"""


def check_share(**values: float) -> None:
    """ValueError unless every value is within 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"got {name}={value!r}, expected a number from 0 to 1")


def check_not_negative(**values: float) -> None:
    """ValueError unless every value is 0 or above."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"got {name}={value!r}, expected a number from 0 on")


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """The products with the most recent buyers, the same for everybody. The baseline."""

    NAME: ClassVar[str] = "popularity"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    window_days: float | None = histories.RECENT_DAYS
    """count only customers whose last purchase of the product is at most this many days before as_of; None: all.
    Without dates (leave-one-out) all count"""

    def __post_init__(self):
        if self.window_days is not None:
            check_positive(window_days=self.window_days)

    applies = staticmethod(needs_history)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> FittedPopularity:
        """Count."""
        return FittedPopularity(catalogue=Catalogue.of(histories.training(train), self.window_days))

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedPopularity:
        """What FittedPopularity.save wrote."""
        return FittedPopularity(catalogue=Catalogue.load(files))


@dataclass(frozen=True, kw_only=True)
class FittedPopularity(ranking.Ranked):
    """Numbers of buyers."""

    catalogue: Catalogue
    """products and their popularity"""

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32: share of the most bought product's buyers."""
        return np.broadcast_to(self.catalogue.popularity, (examples.num_rows, len(self.catalogue)))

    def save(self) -> dict[str, bytes]:
        """The catalogue's files."""
        return self.catalogue.save()


@dataclass(frozen=True, kw_only=True)
class ItemKNN:
    """Item-based collaborative filtering: asymmetric cosine of co-purchases, recent purchases voting louder."""

    NAME: ClassVar[str] = "itemknn"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {
        "alpha": (0.5, 0.7), "shrink": (0.0, 20.0), "closeness": (0.8, 1.0), "decay": (0.0, 0.7),
    }  # fmt: skip

    alpha: float = 0.5
    """exponent of the owned product's buyers; 1 - alpha that of the candidate's (0.5: cosine)"""
    shrink: float = 5.0
    """added to the denominator: how far rare pairs are trusted less"""
    closeness: float = 0.8
    """weight of a co-purchase one visit apart; 1: any distance counts the same"""
    decay: float = 0.7
    """weight of a purchase one visit before the newest one; 0: only the newest visit votes, 1: all alike"""
    num_neighbours: int = 200
    """products for which each owned one votes"""

    def __post_init__(self):
        check_share(alpha=self.alpha, closeness=self.closeness, decay=self.decay)
        check_positive(num_neighbours=self.num_neighbours)
        check_not_negative(shrink=self.shrink)

    applies = staticmethod(needs_history)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> ItemToItem:
        """Count co-purchases and normalise them."""
        train = histories.training(train)
        catalogue = Catalogue.of(train)
        buyers = catalogue.buyers
        pairs = histories.cooccurrence(histories.encode(train, catalogue), len(catalogue), self.closeness).tocoo()
        apart = pairs.row != pairs.col
        owned, candidate, counts = pairs.row[apart], pairs.col[apart], pairs.data[apart]
        norm = buyers[owned].astype(np.float64) ** self.alpha * buyers[candidate] ** (1.0 - self.alpha) + self.shrink
        votes = sp.csr_matrix((counts / norm, (owned, candidate)), shape=pairs.shape)
        return ItemToItem(catalogue=catalogue, votes=strongest(votes, self.num_neighbours), decay=self.decay)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> ItemToItem:
        """What ItemToItem.save wrote."""
        return ItemToItem.load(files)


def strongest(votes: sp.csr_matrix, num_neighbours: int) -> sp.csr_matrix:
    """Keep the `num_neighbours` largest weights of each row, float32, columns ascending."""
    kept = []
    for start, stop in zip(votes.indptr[:-1], votes.indptr[1:], strict=True):
        size = stop - start
        if size <= num_neighbours:
            kept.append(np.arange(start, stop))
        else:
            largest = np.argpartition(np.abs(votes.data[start:stop]), size - num_neighbours)[size - num_neighbours :]
            kept.append(start + np.sort(largest))
    index = np.concatenate(kept)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in kept])])
    result = sp.csr_matrix((votes.data[index].astype(np.float32), votes.indices[index], indptr), shape=votes.shape)
    result.sort_indices()
    return result


def arrays_of(matrix: sp.csr_matrix) -> dict[str, np.ndarray]:
    """A sparse matrix as arrays to be saved; `matrix_of` takes them back."""
    return {
        "data": matrix.data, "indices": matrix.indices.astype(np.int32), "indptr": matrix.indptr.astype(np.int64),
    }  # fmt: skip


def matrix_of(arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> sp.csr_matrix:
    """From what `arrays_of` gave, among other arrays."""
    return sp.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)


def between(votes: sp.csr_matrix) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Of a matrix (I, I) the dense part at some rows and columns."""
    return lambda rows, columns: votes[rows][:, columns].toarray()


def reasons_by_share(
    catalogue: Catalogue,
    bought: sp.csr_matrix,
    votes: Callable[[np.ndarray, np.ndarray], np.ndarray],
    products: Sequence[Sequence[str]],
    num_reasons: int = 2,
) -> list[list[list[str]]]:
    """For each row and each of its products: the owned products with the largest part in its score, best first.

    bought (rows, I): weight of what each row owns; votes: codes of owned products (O,) and of candidates (C,) -> (O, C)
    how much each owned one speaks for each candidate.
    """
    code_of, items = catalogue.code_of, catalogue.items
    answer = []
    for row, shown in enumerate(products):
        start, stop = bought.indptr[row : row + 2]
        owned, weights = bought.indices[start:stop], bought.data[start:stop]
        asked = [code_of.get(product, -1) for product in shown]
        shares = votes(owned, np.maximum(asked, 0)) * weights[:, None]
        order = np.argsort(-shares, axis=0, kind="stable")[:num_reasons]
        answer.append(
            [
                [items[owned[i]] for i in order[:, place] if shares[i, place] > 0] if code >= 0 else []
                for place, code in enumerate(asked)
            ]
        )
    return answer


@dataclass(frozen=True, kw_only=True)
class ItemToItem(ranking.Ranked):
    """A fitted linear item model: scores = decayed history x votes. Products without a vote follow by popularity."""

    BECAUSE: ClassVar[str] = "bought with {}"

    catalogue: Catalogue
    """the products"""
    votes: sp.csr_matrix
    """(I, I) float32; row: owned product, column: candidate"""
    decay: float
    """weight of a purchase one visit before the newest one"""

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32."""
        history_BI = histories.encode(examples, self.catalogue).matrix(len(self.catalogue), self.decay)
        return (history_BI @ self.votes).toarray() + np.float32(TIE) * self.catalogue.popularity

    def because(self, examples: pa.Table, products: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        """For each row and each of its products: the owned products that vote most for it, best first."""
        bought = histories.encode(examples, self.catalogue).matrix(len(self.catalogue), self.decay)
        return reasons_by_share(self.catalogue, bought, between(self.votes), products)

    def save(self) -> dict[str, bytes]:
        """The catalogue's files, model.json, votes.safetensors."""
        votes = safetensors.save(arrays_of(self.votes))
        own = {"model.json": to_json({"decay": self.decay}), "votes.safetensors": votes}
        return {**self.catalogue.save(), **own}

    @staticmethod
    def load(files: Mapping[str, bytes]) -> ItemToItem:
        """What `save` wrote. CorruptError when a file is missing."""
        catalogue = Catalogue.load(files)
        arrays = safetensors.load(file_of(files, "votes.safetensors"))
        votes = matrix_of(arrays, (len(catalogue), len(catalogue)))
        return ItemToItem(catalogue=catalogue, votes=votes, decay=json.loads(file_of(files, "model.json"))["decay"])
