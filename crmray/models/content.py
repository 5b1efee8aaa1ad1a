"""What to recommend without purchases to go by: customers by their attributes, new products by theirs.

Source of the likeness of products: TF-IDF vectors and their cosine, as in Lops, de Gemmis and Semeraro, "Content-based
recommender systems" (2011). Shapes: B customers, I items of a catalogue, P rows of the products table, N new products.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from crmray.data.product_facts import Facts
from crmray.models import histories
from crmray.models.histories import Catalogue

ATTRIBUTE = "customer_"
"""beginning of the columns that describe a customer"""
NUM_LIFTED = 200
"""most bought products whose appeal is told apart by attribute"""
MAX_VALUES = 50
"""commonest values of an attribute that are told apart"""
PRIOR_BUYERS = 50.0
"""purchases of everybody that are added to those of a value: few purchases say little"""
MIN_CUSTOMERS = 10
"""customers with purchases that a value must have to be told apart: fewer say little, and might be recognised"""
MIN_PURCHASES = 5
"""customers of a value from whom on a product's share among them counts; both after the least cell counts of official
statistics (Hundepool et al., Statistical Disclosure Control, 2012)"""
NUM_NEW = 10
MAX_NEW = 500


def lifts(train: pa.Table) -> dict[str, Any]:
    """How much more each attribute value's customers buy a product than everybody: {"products", "columns"}.

    products: the NUM_LIFTED most bought ids; columns: column -> value -> log ratio for each of them. Values of fewer
    than MIN_CUSTOMERS customers with purchases are left out. A product that fewer than MIN_PURCHASES of a value's
    customers bought counts as bought by that many, or by as many as expected where that is less: so one purchase lifts
    nothing.
    """
    train = histories.training(train)
    catalogue = Catalogue.of(train)
    bought = histories.encode(train, catalogue).distinct()
    size = min(NUM_LIFTED, len(catalogue))
    share = catalogue.buyers / catalogue.buyers.sum()
    columns: dict[str, dict[str, list[float]]] = {}
    for name in _attributes(train.schema):
        values = train[name].combine_chunks()
        counts = sorted(
            pc.value_counts(values.drop_null()).to_pylist(), key=lambda pair: (-pair["counts"], pair["values"])
        )
        by_value: dict[str, list[float]] = {}
        for value in (pair["values"] for pair in counts[:MAX_VALUES]):
            mine = pc.fill_null(pc.equal(values, value), False).to_numpy(zero_copy_only=False)
            if np.count_nonzero(bought.lengths[mine]) >= MIN_CUSTOMERS:
                own = np.bincount(bought.codes[mine[bought.rows]], minlength=len(catalogue))
                by_value[value] = np.round(np.log(_ratio(own, share)[:size]), 4).tolist()
        if len(counts) > 1 and by_value:
            columns[name] = by_value
    return {"products": catalogue.items[:size].tolist(), "columns": columns}


def _ratio(own: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(I,) share of each product among `own` purchases over its `share` among everybody's, both shrunk and floored."""
    total = own.sum()
    own = np.where(own < MIN_PURCHASES, np.minimum(MIN_PURCHASES, total * share), own)
    return (own + PRIOR_BUYERS * share) / (total + PRIOR_BUYERS) / share


def _attributes(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name.startswith(ATTRIBUTE) and pa.types.is_string(schema.field(name).type)]


def cold_scores(examples: pa.Table, catalogue: Catalogue, found: Mapping[str, Any]) -> np.ndarray:
    """(B, I) float32 scores for customers without purchases.

    The logarithm of popularity plus the lifts of the customer's attribute values. found: from `lifts`, or empty.
    """
    log_popularity_I = np.log(catalogue.popularity + 1e-4).astype(np.float32)
    scores_BI = np.repeat(log_popularity_I[None, :], examples.num_rows, axis=0)
    places = _lifted(catalogue, found)
    if not places:
        return scores_BI
    given, codes = (list(column) for column in zip(*places, strict=True))
    for name, by_value in found["columns"].items():
        for row, value in enumerate(histories.column_of(examples, name).to_pylist()):
            if value in by_value:
                scores_BI[row, codes] += np.array(by_value[value], np.float32)[given]
    return scores_BI


def informed(examples: pa.Table, catalogue: Catalogue, found: Mapping[str, Any]) -> np.ndarray:
    """(B,) bool: whether an attribute has a say in `cold_scores`."""
    result = np.zeros(examples.num_rows, bool)
    if _lifted(catalogue, found):
        for name, by_value in found["columns"].items():
            values = histories.column_of(examples, name)
            result |= pc.is_in(values, value_set=pa.array(list(by_value), values.type)).to_numpy()
    return result


def _lifted(catalogue: Catalogue, found: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Places of the products with lifts: among these, and in the catalogue."""
    products = found.get("products", ())
    return [(place, catalogue.code_of[item]) for place, item in enumerate(products) if item in catalogue.code_of]


def new_products(
    facts: Facts, bought: sp.csr_matrix, as_of: datetime, *, new_days: float, top_k: int = NUM_NEW
) -> list[list[str]]:
    """For each customer the new products most like what was bought, best first, at most top_k; none without purchases.

    bought (B, P): weights of what each customer bought, columns in the order of the facts. New: launched in the
    `new_days` before as_of (the MAX_NEW latest), not bought.
    """
    new = facts.launched_within(as_of, new_days)[:MAX_NEW]
    vectors = product_vectors(facts) if len(new) and bought.nnz else None
    if vectors is None:
        return [[] for _ in range(bought.shape[0])]
    ids = facts.table["product_id"].to_pylist()
    scores_BN = (bought @ (vectors @ vectors[new].T)).toarray()
    scores_BN[bought[:, new].toarray() > 0] = 0.0
    order_BN = np.argsort(-scores_BN, axis=1, kind="stable")[:, :top_k]
    return [[ids[new[j]] for j in order if scores[j] > 0] for scores, order in zip(scores_BN, order_BN, strict=True)]


@lru_cache(maxsize=8)
def product_vectors(facts: Facts) -> sp.csr_matrix | None:
    """(P, words) float64 TF-IDF vectors of length 1 of the words of the name, the category, the brand and the step of
    the price; None where products have no text."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not facts.texts:
        return None
    shown = [*facts.texts, *(name for name in ("price_amount",) if name in facts.table.column_names)]
    words = [_words(row) for row in facts.table.select(shown).to_pylist()]
    return TfidfVectorizer(analyzer=lambda tokens: tokens).fit_transform(words) if any(words) else None


def _words(row: Mapping[str, Any]) -> list[str]:
    """Words of the name, every other attribute as one word with its column, the price in steps of half an octave."""
    words, price = re.findall(r"\w+", (row.get("name") or "").lower()), row.get("price_amount")
    words += [f"{name}={value}" for name, value in row.items() if name not in ("name", "price_amount") and value]
    return [*words, f"price={round(2 * np.log2(price))}"] if price and price > 0 else words


def similar(facts: Facts, product: str, catalogue: Catalogue) -> np.ndarray | None:
    """(I,) float32 likeness of the catalogue's products to one of the facts; None where products have no text."""
    vectors = product_vectors(facts)
    if vectors is None:
        return None
    like_P = (vectors @ vectors[facts.place_of[product]].T).toarray()[:, 0]
    places = [facts.place_of.get(item, -1) for item in catalogue.items]
    return np.append(like_P, 0.0)[places].astype(np.float32)
