"""From a fitted recommender and its decision to the lists that are shown, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.data.product_facts import Facts
from crmray.errors import DataError, did_you_mean
from crmray.models import content, explanations, histories, ranking
from crmray.models.explanations import CONTENT, PERSONAL, POPULAR, SIMILAR
from crmray.models.ranking import Recommender
from crmray.models.rules import POOL, Rules


def answer(
    model: Recommender, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool, num_products: int,
    similar_to: str | None, for_product: str | None, options: Mapping[str, Any],
) -> pa.Table:  # fmt: skip
    """The columns of the recommendation task's `predict`, which says what the arguments are."""
    facts, catalogue = Facts.of(examples), model.catalogue
    rules = Rules(**{**decision["rules"], "exclude": tuple(decision["rules"]["exclude"])}).with_request(options)
    rules.check(facts)
    asked = {"similar_to": similar_to, "for_product": for_product}
    _check_known(asked, catalogue, facts)
    hidden = {*rules.exclude, *facts.unavailable, *([similar_to] if similar_to is not None else [])}
    sources, scorers = _scorers(model, decision, examples, facts, similar_to)
    products: list[list[str]] = [[] for _ in range(examples.num_rows)]
    scores: list[list[float]] = [[] for _ in range(examples.num_rows)]
    place = np.zeros(examples.num_rows, np.int64)
    for rows, scorer in scorers:
        part = examples.take(pa.array(rows))
        best = ranking.lists(scorer, catalogue, part, num_products, rules, facts, hidden, pool=POOL)
        for row, (names, values) in zip(rows, best, strict=True):
            products[row], scores[row] = names, values
        if for_product is not None:
            place[rows] = ranking.places(scorer, catalogue, part, for_product, exclude=sorted(hidden))
    about = examples["entity_id"] if similar_to is None else pa.repeat(similar_to, examples.num_rows)
    shown = {
        "entity_id": about,
        "as_of": examples["as_of"],
        "products": pa.array(products, pa.list_(pa.string())),
        "scores": pa.array(scores, pa.list_(pa.float64())),
        "source": pa.array(sources, pa.string()),
        "new_products": pa.array(_new_products(examples, rules, facts, hidden), pa.list_(pa.string())),
    }
    shown["place"] = pa.array(place, mask=place == 0)
    told = explanations.sentences(model, examples, products, sources, facts) if explain else [None] * len(products)
    return pa.table({**shown, "reasons": pa.array(told, pa.list_(pa.string()))})


def _new_products(examples: pa.Table, rules: Rules, facts: Facts, hidden: Collection[str]) -> list[list[str]]:
    """Each row's new products under the rules, which are a list of their own; scored by their order alone."""
    found = []
    for names in examples["new_products"].to_pylist():
        left = [name for name in names if name not in hidden]
        found.append([left[i] for i in rules.choose(left, -np.arange(len(left), dtype=float), len(left), facts)])
    return found


def _check_known(asked: Mapping[str, str | None], catalogue: histories.Catalogue, facts: Facts) -> None:
    """DataError, that begins with the option's name, for an id that is no product's."""
    for option, product in asked.items():
        if product is not None and product not in catalogue.code_of and product not in facts.place_of:
            known = sorted({*catalogue.code_of, *facts.place_of})
            raise DataError(
                f"{option}: got product {product!r}, expected the id of one of the {len(catalogue)} products that were"
                f" bought or of the {len(facts)} in the products table{did_you_mean(product, known)}"
            )


def _scorers(
    model: Recommender, decision: Mapping[str, Any], examples: pa.Table, facts: Facts, similar_to: str | None
) -> tuple[list[str], list[tuple[np.ndarray, Callable[[pa.Table], np.ndarray]]]]:
    """Where each row's answer comes from, and what scores which rows."""
    catalogue, lifts = model.catalogue, decision["lifts"]
    known = np.diff(catalogue.codes(histories.column_of(examples, "history"))[0]) > 0
    like = content.similar(facts, similar_to, catalogue) if similar_to in facts.place_of and not known.any() else None
    if like is not None:  # a product that nobody bought: products like it
        return [SIMILAR] * len(known), [(np.arange(len(known)), lambda block: np.tile(like, (block.num_rows, 1)))]
    sources = np.full(len(known), PERSONAL if similar_to is None else SIMILAR, dtype=object)
    informed = content.informed(examples.filter(pa.array(~known)), catalogue, lifts)
    sources[~known] = np.where(informed, CONTENT, POPULAR)
    both = [
        (np.flatnonzero(known), model.scores),
        (np.flatnonzero(~known), lambda block: content.cold_scores(block, catalogue, lifts)),
    ]
    return sources.tolist(), [(rows, scorer) for rows, scorer in both if len(rows)]
