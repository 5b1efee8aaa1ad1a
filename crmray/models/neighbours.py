"""Popularity, and item-to-item models: what a customer bought votes for what else is bought with it.

Sources: Aiolli, "Efficient top-N recommendation for very large scale binary rated datasets" (RecSys 2013; asymmetric
cosine); Sarwar et al., "Item-based collaborative filtering" (WWW 2001; alpha .5, shrink 0, closeness 1, decay 1).
Shape suffixes as in `histories`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors import numpy as safetensors

from crmray.models import histories
from crmray.models.tabular import check_positive, file_of, to_json

HISTORY = ("history", "history_days_before", "exclude_owned")


def needs_history(columns: Sequence[str]) -> str | None:
    """Why a recommender cannot be fitted on these columns, or None."""
    missing = [name for name in HISTORY if name not in columns]
    return f"the examples have no column {missing[0]!r}" if missing else None


def check_share(**values: float) -> None:
    """ValueError unless every value is within 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"got {name}={value!r}, expected a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """The products with the most buyers, the same for everybody. The baseline."""

    NAME: ClassVar[str] = "popularity"
    KIND: ClassVar[str] = "memory"
    NEURAL: ClassVar[bool] = False
    GRID: ClassVar[dict[str, tuple]] = {"window_days": (None, 14.0, 30.0, 90.0)}

    window_days: float | None = None
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
        items, buyers = histories.catalogue(train)
        if self.window_days is not None and train["as_of"].null_count == 0:
            bought = histories.encode(train, items)
            recent = bought.codes[bought.days_before <= self.window_days]
            buyers = np.bincount(recent, minlength=len(items))
        return FittedPopularity(items=items, buyers=buyers.astype(np.int64))

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedPopularity:
        """What FittedPopularity.save wrote."""
        return FittedPopularity(
            items=load_items(files), buyers=safetensors.load(file_of(files, "buyers.safetensors"))["buyers"]
        )


@dataclass(frozen=True, kw_only=True)
class FittedPopularity:
    """Numbers of buyers."""

    items: np.ndarray
    """(I,) product ids"""
    buyers: np.ndarray
    """(I,) int64"""
    rounds: ClassVar[int | None] = None

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32: share of the most bought product's buyers."""
        shares_I = (self.buyers / max(1, self.buyers.max())).astype(np.float32)
        return np.broadcast_to(shares_I, (examples.num_rows, len(shares_I)))

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """The ten best products of each row; see `histories.rank`."""
        return histories.rank(self.scores, self.items, examples)

    def save(self) -> dict[str, bytes]:
        """items.json, buyers.safetensors."""
        return {
            "items.json": to_json(self.items.tolist()),
            "buyers.safetensors": safetensors.save({"buyers": self.buyers}),
        }


@dataclass(frozen=True, kw_only=True)
class ItemKNN:
    """Item-based collaborative filtering: asymmetric cosine of co-purchases, recent purchases voting louder."""

    NAME: ClassVar[str] = "itemknn"
    KIND: ClassVar[str] = "memory"
    NEURAL: ClassVar[bool] = False
    GRID: ClassVar[dict[str, tuple]] = {
        "alpha": (0.5, 0.7), "shrink": (0.0, 5.0, 20.0), "closeness": (0.8, 1.0), "decay": (0.0, 0.5, 0.8, 1.0),
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
        if self.shrink < 0:
            raise ValueError(f"got shrink={self.shrink!r}, expected a number from 0 on")

    applies = staticmethod(needs_history)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> ItemToItem:
        """Count co-purchases and normalise them."""
        items, buyers = histories.catalogue(train)
        pairs = histories.cooccurrence(histories.encode(train, items), len(items), self.closeness).tocoo()
        apart = pairs.row != pairs.col
        owned, candidate, counts = pairs.row[apart], pairs.col[apart], pairs.data[apart]
        norm = buyers[owned].astype(np.float64) ** self.alpha * buyers[candidate] ** (1.0 - self.alpha) + self.shrink
        votes = sp.csr_matrix((counts / norm, (owned, candidate)), shape=pairs.shape)
        votes = strongest(votes, self.num_neighbours)
        return ItemToItem(items=items, buyers=buyers, votes=votes, decay=self.decay)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> ItemToItem:
        """What ItemToItem.save wrote."""
        return ItemToItem.load(files)


def strongest(votes: sp.csr_matrix, num_neighbours: int) -> sp.csr_matrix:
    """Keep the `num_neighbours` largest weights of each row, float32, columns ascending."""
    votes = votes.tocsr()
    rows = np.repeat(np.arange(votes.shape[0]), np.diff(votes.indptr))
    order = np.lexsort((votes.indices, -np.abs(votes.data), rows))
    place = np.arange(len(order)) - votes.indptr[rows[order]]
    kept = np.sort(order[place < num_neighbours])
    result = sp.csr_matrix(
        (votes.data[kept].astype(np.float32), (rows[kept], votes.indices[kept])), shape=votes.shape, dtype=np.float32
    )
    result.sort_indices()
    return result


@dataclass(frozen=True, kw_only=True)
class ItemToItem:
    """A fitted linear item model: scores = decayed history x votes. Of equal scores the most bought product is first."""

    items: np.ndarray
    """(I,) product ids, the most bought first"""
    buyers: np.ndarray
    """(I,) int64 number of buyers"""
    votes: sp.csr_matrix
    """(I, I) float32; row: owned product, column: candidate"""
    decay: float
    """weight of a purchase one visit before the newest one"""
    rounds: ClassVar[int | None] = None

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32."""
        history_BI = histories.encode(examples, self.items).matrix(len(self.items), self.decay)
        return (history_BI @ self.votes).toarray()

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """The ten best products of each row; see `histories.rank`."""
        return histories.rank(self.scores, self.items, examples)

    def because(self, examples: pa.Table, products: np.ndarray, num_reasons: int = 2) -> list[list[list[str]]]:
        """For each row and each of its products (rows, K): the owned products that vote most for it, strongest first."""
        code_of = {item: code for code, item in enumerate(self.items)}
        bought = histories.encode(examples, self.items).matrix(len(self.items), self.decay)
        answer = []
        for row, shown in enumerate(products):
            start, stop = bought.indptr[row : row + 2]
            owned, weights = bought.indices[start:stop], bought.data[start:stop]
            asked = [code_of.get(product, -1) for product in shown]
            shares = self.votes[owned][:, np.maximum(asked, 0)].toarray() * weights[:, None]
            order = np.argsort(-shares, axis=0, kind="stable")[:num_reasons]
            answer.append(
                [
                    [self.items[owned[i]] for i in order[:, place] if shares[i, place] > 0] if code >= 0 else []
                    for place, code in enumerate(asked)
                ]
            )
        return answer

    def save(self) -> dict[str, bytes]:
        """items.json, model.json, votes.safetensors."""
        arrays = {
            "buyers": self.buyers, "data": self.votes.data,
            "indices": self.votes.indices.astype(np.int32), "indptr": self.votes.indptr.astype(np.int64),
        }  # fmt: skip
        return {
            "items.json": to_json(self.items.tolist()),
            "model.json": to_json({"decay": self.decay}),
            "votes.safetensors": safetensors.save(arrays),
        }

    @staticmethod
    def load(files: Mapping[str, bytes]) -> ItemToItem:
        """What `save` wrote. CorruptError when a file is missing."""
        items = load_items(files)
        arrays = safetensors.load(file_of(files, "votes.safetensors"))
        votes = sp.csr_matrix(
            (arrays["data"], arrays["indices"], arrays["indptr"]), shape=(len(items), len(items))
        )  # fmt: skip
        decay = json.loads(file_of(files, "model.json"))["decay"]
        return ItemToItem(items=items, buyers=arrays["buyers"], votes=votes, decay=decay)


def load_items(files: Mapping[str, bytes]) -> np.ndarray:
    """(I,) object array of product ids from items.json."""
    return np.array(json.loads(file_of(files, "items.json")), dtype=object)
