"""Figures of rankings of what customers buy next, by audience.

Rows are examples of the recommendation task: `target` list<string>, `audience` (active | lapsed | cold).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.baskets import ACTIVE, COLD
from crmray.data.product_facts import Facts
from crmray.errors import NotEnoughDataError
from crmray.evaluate import metrics

TOP_K = 10


def rows_with_target(examples: pa.Table, audience: Sequence[str]) -> np.ndarray:
    """Positions of the rows of these audiences that have something to be found."""
    lengths = pc.fill_null(pc.list_value_length(examples["target"]), 0)
    asked = pc.is_in(examples["audience"], value_set=pa.array(audience, pa.string()))
    return np.flatnonzero(pc.and_(pc.greater(lengths, 0), asked).to_numpy())


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """hr10, ndcg10, recall10, mrr10 over customers who bought in the lookback and buy something to be found; rows.

    predictions: "products" (N, 10), or "hits" (N, 10) where a training loop tells only which of them are right.
    NotEnoughDataError when there is no such customer.
    """
    rows = rows_with_target(examples, (ACTIVE,))
    if not len(rows):
        raise NotEnoughDataError(
            f"got {examples.num_rows} customers of whom none bought in the lookback and buys something new in the"
            " horizon, expected some; choose a longer horizon_days, or exclude_owned: false where people buy the same"
            " again"
        )
    truth = examples["target"].take(pa.array(rows)).to_pylist()
    if "hits" in predictions:
        ranked, truth = _as_places(predictions["hits"][rows], truth)
    else:
        ranked = predictions["products"][rows]
    found = metrics.ranking_rows(ranked, truth)
    return {**{f"{name}10": float(values.mean()) for name, values in found.items()}, "rows": float(len(rows))}


def _as_places(hits: np.ndarray, truth: list[list[str]]) -> tuple[np.ndarray, list[list[int]]]:
    """Rankings and truths as numbers: a hit at place k is item k, what was missed is items beyond the ranking."""
    width = hits.shape[1]
    ranked = np.where(hits > 0, np.arange(width), -1)
    named = []
    for row, target in zip(ranked, truth, strict=True):
        found = row[row >= 0].tolist()
        named.append(found + list(range(width, width + len(target) - len(found))))
    return ranked, named


def ranking(lists: pa.ChunkedArray) -> np.ndarray:
    """(N, TOP_K) object: the first products of each list; None where it is shorter."""
    found = np.full((len(lists), TOP_K), None, dtype=object)
    for row, products in enumerate(lists.to_pylist()):
        found[row, : len(products)] = products[:TOP_K]
    return found


def of_new_products(answers: pa.Table, test: pa.Table, new_days: float) -> dict[str, float | int | None]:
    """hr10 and ndcg10 of `new_products` over the customers with purchases who buy a product launched lately."""
    as_of, facts = test["as_of"][0].as_py(), Facts.of(test)
    places = facts.launched_within(as_of, new_days) if as_of is not None else np.empty(0, np.int64)
    new = set(facts.table["product_id"].take(pa.array(places)).to_pylist())
    truth = [[product for product in target or () if product in new] for target in test["target"].to_pylist()]
    ranked = ranking(answers["new_products"])
    audience = test["audience"].to_pylist()
    rows = np.array([row for row, target in enumerate(truth) if target and audience[row] != COLD], np.int64)
    return figures(ranked, truth, rows)


def share_unknown(truth: Sequence[Sequence[str] | None], known: Mapping[str, int]) -> float:
    """Share of what was bought that no model could show: nobody had bought it before."""
    bought = [product for target in truth for product in target or ()]
    return sum(product not in known for product in bought) / max(1, len(bought))


def figures(ranked: np.ndarray, truth: Sequence[Sequence[str]], rows: np.ndarray) -> dict[str, float | int | None]:
    """hr10 and ndcg10 of these rows; null without any."""
    if not len(rows):
        return {"rows": 0, "hr10": None, "ndcg10": None}
    found = metrics.ranking_rows(ranked[rows], [truth[i] for i in rows])
    return {"rows": len(rows), "hr10": float(found["hr"].mean()), "ndcg10": float(found["ndcg"].mean())}
