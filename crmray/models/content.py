"""What to recommend without purchases to go by: customers by their attributes, new products by theirs.

Source of the likeness of products: TF-IDF vectors and their cosine, as in Lops, de Gemmis and Semeraro, "Content-based
recommender systems" (2011). Shapes: B customers, I items of a catalogue, P rows of the products table, N new products.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from crmray.data.asof_rows import DAY_US
from crmray.data.splits import micros
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
NUM_NEW = 10
MAX_NEW = 500


def lifts(train: pa.Table) -> dict[str, Any]:
    """How much more each attribute value's customers buy a product than everybody: {"products", "columns"}.

    products: the NUM_LIFTED most bought ids; columns: column -> value -> log ratio for each of them.
    """
    train = histories.training(train)
    catalogue = Catalogue.of(train)
    bought = histories.encode(train, catalogue)
    size = min(NUM_LIFTED, len(catalogue))
    share = catalogue.buyers / catalogue.buyers.sum()
    columns: dict[str, dict[str, list[float]]] = {}
    for name in _attributes(train.schema):
        values = train[name].combine_chunks()
        counts = sorted(
            pc.value_counts(values.drop_null()).to_pylist(), key=lambda pair: (-pair["counts"], pair["values"])
        )
        if len(counts) < 2:
            continue
        columns[name] = {}
        for value in (pair["values"] for pair in counts[:MAX_VALUES]):
            mine = pc.fill_null(pc.equal(values, value), False).to_numpy(zero_copy_only=False)[bought.rows]
            own = np.bincount(bought.codes[mine], minlength=len(catalogue))
            ratio = (own + PRIOR_BUYERS * share) / (own.sum() + PRIOR_BUYERS) / share
            columns[name][value] = np.round(np.log(ratio[:size]), 4).tolist()
    return {"products": catalogue.items[:size].tolist(), "columns": columns}


def _attributes(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name.startswith(ATTRIBUTE) and pa.types.is_string(schema.field(name).type)]


def cold_scores(examples: pa.Table, catalogue: Catalogue, found: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(B, I) float32 scores for customers without purchases, and (B,) bool: whether an attribute had a say.

    The logarithm of popularity plus the lifts of the customer's attribute values. found: from `lifts`, or empty.
    """
    log_popularity_I = np.log(catalogue.popularity + 1e-4).astype(np.float32)
    scores_BI = np.repeat(log_popularity_I[None, :], examples.num_rows, axis=0)
    informed_B = np.zeros(examples.num_rows, bool)
    places = [
        (i, catalogue.code_of[item]) for i, item in enumerate(found.get("products", ())) if item in catalogue.code_of
    ]
    if not places:
        return scores_BI, informed_B
    given, codes = (list(column) for column in zip(*places, strict=True))
    for name, by_value in found["columns"].items():
        for row, value in enumerate(histories.column_of(examples, name).to_pylist()):
            if value in by_value:
                scores_BI[row, codes] += np.array(by_value[value], np.float32)[given]
                informed_B[row] = True
    return scores_BI, informed_B


def new_products(
    products: pa.Table, bought: sp.csr_matrix, as_of: datetime, *, new_days: float, top_k: int = NUM_NEW
) -> list[list[str]]:
    """For each customer the new products most like what was bought, best first, at most top_k; none without purchases.

    products: the table, P rows. bought (B, P): weights of what each customer bought, columns in the table's order. New:
    launched in the `new_days` before as_of, not inactive, not bought. Products are compared by the words of their name
    and by their other text attributes.
    """
    new = _new(products, as_of, new_days)
    vectors = _vectors(products) if len(new) and bought.nnz else None
    if vectors is None:
        return [[] for _ in range(bought.shape[0])]
    ids = products["product_id"].to_pylist()
    scores_BN = (bought @ (vectors @ vectors[new].T)).toarray()
    scores_BN[bought[:, new].toarray() > 0] = 0.0
    order_BN = np.argsort(-scores_BN, axis=1, kind="stable")[:, :top_k]
    return [[ids[new[j]] for j in order if scores[j] > 0] for scores, order in zip(scores_BN, order_BN, strict=True)]


def _new(products: pa.Table, as_of: datetime, new_days: float) -> np.ndarray:
    """Positions of the MAX_NEW latest new products, the latest launched first; none without launch dates."""
    if "launched_at" not in products.column_names:
        return np.empty(0, np.int64)
    age_us = micros(as_of) - products["launched_at"].cast(pa.int64()).fill_null(np.iinfo(np.int64).min // 2).to_numpy()
    is_new = (age_us > 0) & (age_us <= new_days * DAY_US)
    if "active" in products.column_names:
        is_new &= products["active"].fill_null(True).to_numpy()
    new = np.flatnonzero(is_new)
    return new[np.argsort(age_us[new], kind="stable")][:MAX_NEW]


def _vectors(products: pa.Table) -> sp.csr_matrix | None:
    """(P, words) TF-IDF vectors of length 1; None where products have no text."""
    texts = [name for name in products.column_names if name != "product_id" and _is_text(products, name)]
    if not texts:
        return None
    words = [_words(row) for row in products.select(texts).to_pylist()]
    return TfidfVectorizer(analyzer=lambda tokens: tokens).fit_transform(words) if any(words) else None


def _is_text(products: pa.Table, name: str) -> bool:
    return pa.types.is_string(products.schema.field(name).type)


def _words(row: Mapping[str, Any]) -> list[str]:
    """Words of the name, and every other attribute as one word with its column."""
    words = re.findall(r"\w+", (row.get("name") or "").lower())
    return words + [f"{name}={value}" for name, value in row.items() if name != "name" and value is not None]
