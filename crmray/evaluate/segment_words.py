"""What segments are called, and why a customer is in one: both by the features in which the segment stands out.

Shapes: N customers, D features, standardised: 0 is the mean over all customers, 1 a standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.evaluate import phrases
from crmray.models.lifecycle import DORMANT, SPEND

WORDS: dict[str, tuple[str, str]] = {
    "spend_amount": ("high value", "low value"),
    "frequency_orders": ("buys often", "buys rarely"),
    SPEND: ("heavy buyer", "light buyer"),
    "recency_days": ("lapsing", "bought lately"),
    "basket_amount_mean": ("large baskets", "small baskets"),
    "basket_units_mean": ("many units a basket", "few units a basket"),
    "price_discount_mean": ("buys at a discount", "pays full price"),
    "visit_num_90d": ("visits often", "visits rarely"),
    DORMANT: ("dormant", "active"),
}
"""feature -> words for "unusually high" and "unusually low"; segments are numbered along the first"""
WITHIN: dict[str, tuple[str, str]] = {
    "spend_amount": ("higher value", "lower value"),
    "frequency_orders": ("buys more often", "buys more rarely"),
    SPEND: ("heavier buyer", "lighter buyer"),
    "recency_days": ("bought longer ago", "bought more lately"),
    "basket_amount_mean": ("larger baskets", "smaller baskets"),
    "basket_units_mean": ("more units a basket", "fewer units a basket"),
    "price_discount_mean": ("buys more at a discount", "pays closer to full price"),
    "visit_num_90d": ("visits more often", "visits more rarely"),
    DORMANT: ("more likely dormant", "less likely dormant"),
}
"""the same beside the rest of a segment: who bought longer ago than other good customers is not lapsing for that"""
UNUSUAL = 0.5
"""standard deviations from the mean over all customers from which on a feature is worth a word"""
NUM_REASONS = 3


def word(column: str, deviation: float) -> str:
    """For a feature that is above, or below, the mean."""
    return WORDS[column][0 if deviation > 0 else 1]


def names(
    deviations: Sequence[np.ndarray], columns: Sequence[str], words: Mapping[str, tuple[str, str]] = WORDS
) -> list[str]:
    """A name per deviation (D,): its strongest words, as many as it takes to tell them apart."""
    ranked = []
    for deviation in deviations:
        order = np.argsort(-np.abs(deviation), kind="stable")
        strong = [d for n, d in enumerate(order) if n == 0 or abs(deviation[d]) >= UNUSUAL]
        ranked.append([words[columns[d]][0 if deviation[d] > 0 else 1] for d in strong])
    for length in range(2, len(columns) + 1):
        found = [", ".join(one[:length]) for one in ranked]
        if len(set(found)) == len(found):
            return found
    counts: dict[str, int] = {}
    for i, name in enumerate(found):
        counts[name] = counts.get(name, 0) + 1
        found[i] = name if counts[name] == 1 else f"{name} ({counts[name]})"
    return found


def reasons(
    rows: pa.Table, position_ND: np.ndarray, center_ND: np.ndarray, columns: Sequence[str], typical: Mapping[str, Any]
) -> list[list[str]]:
    """For each customer up to NUM_REASONS features that speak for its segment against the others, the strongest first:
    "lapsing: last purchase 148 days ago, typically 30".

    center_ND: of each customer's segment. typical: median of each feature over all customers.

    How much nearer x is to its own centre than to the others, in squared distances averaged over the customers of the
    others, falls by 2 x_d center_d / (1 - share of the segment) where feature d is set to the mean, since the centres
    of all customers average to 0. So a feature speaks for the segment where customer and segment lie on the same side.
    """
    speaks_ND = position_ND * center_ND
    told = []
    for row, order in enumerate(np.argsort(-speaks_ND, axis=1, kind="stable")[:, :NUM_REASONS]):
        own = [d for n, d in enumerate(order) if speaks_ND[row, d] > (UNUSUAL**2 if n else 0.0)]
        told.append(
            [
                f"{word(name, position_ND[row, d])}: {phrases.told(name, rows[name][row].as_py(), typical[name])}"
                for d, name in ((d, columns[d]) for d in own)
            ]
        )
    return told
