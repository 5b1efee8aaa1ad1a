"""The demo org's products and the planted structure of what is bought after what.

A line of an order follows, with probability FOLLOW, one product j of the order before (any of its lines alike):
P(i | j) = successors[era, j, i], four successors with weights SUCCESSOR_WEIGHTS. Otherwise, and in a first order, it is
drawn from base[era, t, s, i] ∝ exp(popularity_i + liking[t, category_i] + tier_liking[s, tier_i]), as are the products
viewed on the web. An era begins whenever new products are launched; before its launch a product has probability 0, and
the rest is scaled up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FOLLOW = 0.45
SUCCESSOR_WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
NUM_TASTES = 5
CATEGORIES = ("Electronics", "Kitchen", "Garden", "Office", "Toys", "Sports", "Beauty", "Books", "Tools", "Textiles")
CATEGORY_PRICES = np.array([48.0, 30, 34, 26, 22, 40, 24, 20, 42, 25])
TIERS = ("Basic", "Plus", "Premium")
TIER_FACTORS = np.array([0.6, 1.0, 1.9])
PER_CATEGORY = 15
LAUNCHES = (0.25, 0.5, 0.75)
"""fractions of the history at which new products come"""
PER_LAUNCH = 6
NOUNS = (
    "Lamp",
    "Case",
    "Set",
    "Kit",
    "Stand",
    "Box",
    "Pack",
    "Frame",
    "Tray",
    "Mat",
    "Rack",
    "Holder",
    "Cover",
    "Board",
    "Band",
)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """M products in E eras of the history."""

    category: np.ndarray
    """(M,) index into CATEGORIES"""
    tier: np.ndarray
    """(M,) index into TIERS"""
    price: np.ndarray
    """(M,) list price in the org's currency"""
    launch_era: np.ndarray
    """(M,) first era in which it is sold; 0 = always"""
    era_weeks: np.ndarray
    """(E,) first week of each era"""
    base: np.ndarray
    """(E, tastes, 2, M) P(product | era, taste, price-sensitive)"""
    successors: np.ndarray
    """(E, M, M) P(next | era, product)"""

    def era_of(self, week: np.ndarray) -> np.ndarray:
        """Era of each week."""
        return np.searchsorted(self.era_weeks, week, side="right") - 1

    def names(self) -> list[str]:
        """Product names, made up."""
        nouns = np.arange(len(self.tier)) // len(CATEGORIES)
        return [
            f"{CATEGORIES[c]} {NOUNS[n]} {TIERS[r]}" for c, n, r in zip(self.category, nouns, self.tier, strict=True)
        ]

    @staticmethod
    def make(seed: int, num_weeks: int) -> Catalogue:
        """The catalogue of a seed."""
        rng = np.random.default_rng([seed, 20261001, 9])
        num = len(CATEGORIES) * PER_CATEGORY
        category, tier = np.arange(num) % len(CATEGORIES), rng.integers(0, len(TIERS), num)
        price = np.round(CATEGORY_PRICES[category] * TIER_FACTORS[tier] * rng.uniform(0.75, 1.35, num)) - 0.05
        launch_era = np.zeros(num, np.int64)
        late = rng.choice(num, PER_LAUNCH * len(LAUNCHES), replace=False)
        launch_era[late] = np.arange(len(late)) // PER_LAUNCH + 1

        liking = np.zeros((NUM_TASTES, len(CATEGORIES)))
        for t in range(NUM_TASTES):
            liking[t, [2 * t, 2 * t + 1]] = 2.4
            liking[t, (2 * t + 2) % len(CATEGORIES)] = 1.2
        tier_liking = np.array([[-0.5, 0.3, 0.7], [0.9, 0.0, -1.0]])
        popularity = rng.normal(0, 0.8, num)
        logit = popularity + liking[:, None, category] + tier_liking[None][:, :, tier]
        sold = launch_era[None] <= np.arange(len(LAUNCHES) + 1)[:, None]
        base = np.exp(logit)[None] * sold[:, None, None]
        return Catalogue(
            category=category,
            tier=tier,
            price=price,
            launch_era=launch_era,
            era_weeks=np.array([0, *(round(f * num_weeks) for f in LAUNCHES)]),
            base=base / base.sum(-1, keepdims=True),
            successors=_successors(rng, category, launch_era, sold),
        )


def _successors(rng: np.random.Generator, category: np.ndarray, launch_era: np.ndarray, sold: np.ndarray) -> np.ndarray:
    """(E, M, M): four successors of each product, two in its category and two in another; the first is always sold."""
    num = len(category)
    weights = np.zeros((num, num))
    for i in range(num):
        mates = np.flatnonzero((category == category[i]) & (np.arange(num) != i))
        others = np.flatnonzero(category == (category[i] + 3) % len(CATEGORIES))
        first = rng.choice(others[launch_era[others] == 0])
        second, fourth = rng.choice(mates, 2, replace=False)
        third = rng.choice(others[others != first])
        weights[i, [first, second, third, fourth]] = SUCCESSOR_WEIGHTS
    by_era = weights[None] * sold[:, None, :]
    return by_era / by_era.sum(-1, keepdims=True)
