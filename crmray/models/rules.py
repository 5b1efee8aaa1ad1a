"""Business rules over a ranking: what is never shown, how many of a category, and how unlike each other.

Source of the diversity: Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents
and producing summaries" (SIGIR 1998). Shapes: M products of a ranking, K shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from crmray.data.product_facts import Facts
from crmray.errors import DataError
from crmray.models.content import product_vectors

POOL = 200
"""best products among which caps and diversity choose at first"""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds for every list."""

    exclude: tuple[str, ...] = ()
    """ids of products that are never shown"""
    max_per_category: int | None = None
    """products of one category in a list; None: any number. Products without a category do not count"""
    diversity: float = 0.0
    """0: the best products; towards 1: the more unlike each other, by name, category, brand and price"""

    @property
    def reorders(self) -> bool:
        """Whether a list may be other than the best products that may be shown."""
        return self.max_per_category is not None or self.diversity > 0

    def with_request(self, options: Mapping[str, Any]) -> Rules:
        """These rules as one request asks for: its own exclusions are added, its caps and diversity replace these."""
        asked = {name: options[name] for name in ("max_per_category", "diversity") if options.get(name) is not None}
        own = {"max_per_category": self.max_per_category, "diversity": self.diversity}
        return Rules(exclude=(*self.exclude, *options.get("exclude", ())), **{**own, **asked})

    def check(self, facts: Facts) -> None:
        """DataError when a rule needs what is not known of any product."""
        if self.max_per_category is not None and not facts.categories:
            raise DataError(
                f"max_per_category: got {self.max_per_category}, but no product has a category; map products.category,"
                " or leave the rule out"
            )
        if self.diversity > 0 and not facts.texts:
            raise DataError(
                f"diversity: got {self.diversity}, but no product has a name, category or brand; map one of them in"
                " the products table, or leave the rule out"
            )

    def choose(self, products: Sequence[str], scores: np.ndarray, top_k: int, facts: Facts) -> list[int]:
        """Positions of at most top_k of the products (best first), in the order in which they are shown.

        Each next one is the best by (1 - diversity) score - diversity (likeness to those shown), the scores scaled to
        0..1 over the products; of a category that is full none is taken.
        """
        if not self.reorders:
            return list(range(min(top_k, len(products))))
        spread = float(scores.max() - scores.min()) if len(products) else 0.0
        value_M = (1.0 - self.diversity) * ((scores - scores.min()) / spread if spread else np.zeros(len(products)))
        vectors = _vectors(facts, products) if self.diversity > 0 else None
        nearest_M, free_M = np.zeros(len(products)), np.ones(len(products), bool)
        groups = np.array([facts.categories.get(product, "") for product in products])
        shown: list[int] = []
        while len(shown) < top_k and free_M.any():
            best = int(np.argmax(np.where(free_M, value_M - self.diversity * nearest_M, -np.inf)))
            shown.append(best)
            free_M[best] = False
            if vectors is not None:
                nearest_M = np.maximum(nearest_M, (vectors @ vectors[best].T).toarray()[:, 0])
            of_group = int((groups[shown] == groups[best]).sum()) if groups[best] else 0
            if self.max_per_category is not None and of_group >= self.max_per_category:
                free_M &= groups != groups[best]
        return shown


def _vectors(facts: Facts, products: Sequence[str]) -> sp.csr_matrix:
    """(M, W) vectors of the products; 0 for those of which nothing is known."""
    vectors = product_vectors(facts)
    assert vectors is not None  # `check` said so
    places = [facts.place_of.get(product, -1) for product in products]
    return sp.diags((np.array(places) >= 0).astype(float)) @ vectors[np.maximum(places, 0)]
