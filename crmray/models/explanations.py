"""Why a product is recommended, in words: what the models say themselves, else what is known of the product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from crmray.data.product_facts import Facts
from crmray.models import histories

PERSONAL, CONTENT, POPULAR, SIMILAR = "personal", "content", "popular", "similar"
"""where an answer comes from: purchases, attributes of the customer, what everybody buys, or the product asked about"""


def sentences(
    model: Any, examples: pa.Table, shown: Sequence[Sequence[str]], sources: Sequence[str], facts: Facts
) -> list[list[str]]:
    """A few words for each product of each row.

    Of a blend the member with the largest weight speaks first, and the others where it has nothing to say.
    """
    found: list[list[str]] = [["" for _ in row] for row in shown]
    for member in _by_weight(model):
        if not hasattr(member, "because"):
            continue
        for row, owned in enumerate(member.because(examples, shown)):
            for place, products in enumerate(owned):
                if products and not found[row][place]:
                    told = " and ".join(facts.names.get(product, product) for product in products)
                    found[row][place] = member.BECAUSE.format(told)
    bought = histories.column_of(examples, "history").to_pylist()
    return [
        [
            words if words and source in (PERSONAL, SIMILAR) else _otherwise(product, source, set(own or ()), facts)
            for words, product in zip(row, products, strict=True)
        ]
        for row, products, source, own in zip(found, shown, sources, bought, strict=True)
    ]


def _by_weight(model: Any) -> list[Any]:
    """The members of a blend, the weightiest first; or the model alone."""
    if not hasattr(model, "members"):
        return [model]
    return [model.members[name] for name in sorted(model.members, key=lambda name: -model.weights[name])]


def _otherwise(product: str, source: str, bought: set[str], facts: Facts) -> str:
    """Words for a product of which no model says why."""
    category = facts.categories.get(product)
    if source == SIMILAR:
        return "goes with it"
    if source == CONTENT:
        return "bought by similar customers"
    if source == POPULAR:
        return f"popular now in {category}" if category else "popular now"
    known = category is not None and any(facts.categories.get(other) == category for other in bought)
    return f"fits what was bought in {category}" if known else "fits what was bought"
