"""Content-based recommendation: products like those a customer bought, by their name, category, brand and price.

It ranks products that nobody has bought yet too, so it is what the other models lack when products are new.
Source: Lops, de Gemmis and Semeraro, "Content-based recommender systems" (2011). Shapes: B rows, I items, W words.
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

from crmray.data.product_facts import Facts
from crmray.errors import NotEnoughDataError
from crmray.models import histories, ranking
from crmray.models.content import product_vectors
from crmray.models.histories import Catalogue
from crmray.models.neighbours import TIE, arrays_of, check_share, matrix_of, needs_history, reasons_by_share
from crmray.models.tabular import file_of, to_json

DESCRIBED = "described_share"
"""column of the rows: share of the history's products that have a text; there is one only where products have texts"""


@dataclass(frozen=True, kw_only=True)
class ContentBased:
    """The settings of the content-based model."""

    NAME: ClassVar[str] = "content"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"decay": (0.5, 0.9), "popularity": (0.0, 0.3)}

    decay: float = 0.7
    """weight of a purchase one visit before the newest one"""
    popularity: float = 0.1
    """part of the score, 0..1, that is the product's popularity and not its likeness"""

    def __post_init__(self):
        check_share(decay=self.decay, popularity=self.popularity)

    @staticmethod
    def applies(columns: Sequence[str]) -> str | None:
        """None where there are histories and products with texts."""
        missing = f"the examples have no column {DESCRIBED!r}: products have no name, category or brand"
        return needs_history(columns) or (None if DESCRIBED in columns else missing)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> FittedContent:
        """Vectors of the products that were bought and of those that are known besides."""
        facts, train = Facts.of(train), histories.training(train)
        bought = Catalogue.of(train)
        others = sorted(set(facts.place_of) - set(bought.code_of))
        catalogue = Catalogue(
            items=np.array([*bought.items, *others], dtype=object),
            buyers=np.append(bought.buyers, np.zeros(len(others), np.int64)),
            popularity=np.append(bought.popularity, np.zeros(len(others), np.float32)),
        )
        vectors = product_vectors(facts)
        if vectors is None:
            raise NotEnoughDataError("got products without any text, expected a name, category or brand of some")
        places = np.array([facts.place_of.get(item, len(facts)) for item in catalogue.items])
        with_blank = sp.vstack([vectors, sp.csr_matrix((1, vectors.shape[1]))]).tocsr()
        vectors_IW = with_blank[places].astype(np.float32)
        return FittedContent(catalogue=catalogue, vectors_IW=vectors_IW, decay=self.decay, popularity=self.popularity)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedContent:
        """What `save` wrote. CorruptError when a file is missing."""
        catalogue, about = Catalogue.load(files), json.loads(file_of(files, "model.json"))
        arrays = safetensors.load(file_of(files, "vectors.safetensors"))
        vectors_IW = matrix_of(arrays, (len(catalogue), about.pop("num_words")))
        return FittedContent(catalogue=catalogue, vectors_IW=vectors_IW, **about)


@dataclass(frozen=True, kw_only=True)
class FittedContent(ranking.Ranked):
    """Vectors of products."""

    BECAUSE: ClassVar[str] = "like {}"

    catalogue: Catalogue
    """the products, those that nobody bought last"""
    vectors_IW: sp.csr_matrix
    """(I, W) float32 TF-IDF vectors of length 1; 0 for products without a text"""
    decay: float
    """weight of a purchase one visit before the newest one"""
    popularity: float
    """part of popularity in the score"""

    def _likeness(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return (self.vectors_IW[rows] @ self.vectors_IW[columns].T).toarray()

    def _bought(self, examples: pa.Table) -> sp.csr_matrix:
        return histories.encode(examples, self.catalogue).matrix(len(self.catalogue), self.decay)

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32: likeness to the history, and popularity."""
        bought = self._bought(examples)
        total_B = np.maximum(np.asarray(bought.sum(1)), TIE)
        like_BI = ((bought @ self.vectors_IW) @ self.vectors_IW.T).toarray() / total_B
        scores_BI = (1.0 - self.popularity) * like_BI + (self.popularity + TIE) * self.catalogue.popularity
        return scores_BI.astype(np.float32)

    def because(self, examples: pa.Table, products: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        """For each row and each of its products: the owned products most like it, best first."""
        return reasons_by_share(self.catalogue, self._bought(examples), self._likeness, products, num_reasons=1)

    def save(self) -> dict[str, bytes]:
        """The catalogue's files, model.json, vectors.safetensors."""
        about = {"decay": self.decay, "popularity": self.popularity, "num_words": self.vectors_IW.shape[1]}
        own = {"model.json": to_json(about), "vectors.safetensors": safetensors.save(arrays_of(self.vectors_IW))}
        return {**self.catalogue.save(), **own}
