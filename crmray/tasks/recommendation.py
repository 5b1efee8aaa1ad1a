"""Recommendation: which products each customer buys next.

Protocols. `temporal`: history before as_of, the target is what is bought in [as_of, as_of + horizon_days) and, with
exclude_owned, never before. Every fit sees all customers' whole history before the date of what it is compared on.
`leave_one_out`: the last item of a sequence is the test, the last but one the validation, and no clock is needed. All
products are ranked, never a sample of them.

Answers say where they come from (`source`): personal, from the customer's purchases; content, from the attributes of a
customer without any; popular, for one of whom nothing is known. New products stand apart in `new_products`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, field_validator

from crmray import schema
from crmray.data import asof, baskets, splits
from crmray.data.asof_contacts import attributes
from crmray.data.baskets import ACTIVE, COLD, LAPSED
from crmray.data.splits import Snapshots
from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate import metrics
from crmray.models import content, histories, ranking
from crmray.models.ease import Ease
from crmray.models.neighbours import ItemKNN, Popularity
from crmray.models.ranking import RankingBlend, Recommender
from crmray.models.sasrec import SASRec
from crmray.tasks.contract import EntityRequest, Needs

NAME, ROUTE, ENTITY = "recommendation", "/v1/recommend", "customer"
FEATURES_VERSION = f"1.{asof.FEATURES_VERSION}"
LABELS = ("target", "audience")
METRIC: str = "ndcg10"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {candidate.NAME: candidate for candidate in (SASRec, Ease, ItemKNN, Popularity)}
BLEND = RankingBlend
PERSONAL, CONTENT, POPULAR = "personal", "content", "popular"
TOP_K, MAX_TOP_K = 10, 100
CONTENT_ROWS = 4_000
NEW_DECAY = 0.7
"""weight of a purchase one visit earlier in what new products are compared with"""


class Settings(splits.TimeSettings):
    """Business facts of recommendation."""

    horizon_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """length of the label window, in days"""
    protocol: Literal["temporal", "leave_one_out"] = "temporal"
    """how history and target are told apart; leave_one_out needs an order but no clock"""
    products_matching: str | None = None
    """regular expression that a product id has to match from its beginning or, without ^, anywhere; default: all"""
    exclude_owned: bool = True
    """recommend only what the customer never bought; false where people buy the same again"""
    history_length: Annotated[int, Field(ge=1, le=100_000)] = 4_096
    """newest products of a history that are kept"""
    new_product_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """a product is new so long after its launch, in days"""

    @field_validator("train_as_of")
    @classmethod
    def _no_training_dates(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("got training dates, expected none: histories are read up to validation_as_of and as_of")
        return value

    @field_validator("products_matching")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                pc.match_substring_regex(pa.array([""]), value)
            except pa.ArrowInvalid as error:
                raise ValueError(f"got {value!r}, expected a regular expression (RE2): {error}") from None
        return value

    @property
    def uses_time(self) -> bool:
        """leave_one_out splits by place in the sequence."""
        return self.protocol == "temporal"


class Request(EntityRequest):
    """Body of POST /v1/recommend."""

    num_products: int = Field(TOP_K, ge=1, le=MAX_TOP_K, description="how many products")
    exclude: list[str] = Field(default_factory=list, max_length=10_000, description="product ids not to show")


class Prediction(BaseModel):
    """One customer's products, best first."""

    entity_id: str
    as_of: datetime | None
    products: list[str]
    scores: list[float]
    source: Literal["personal", "content", "popular"]
    new_products: list[str]
    reasons: list[str] | None = None


class Response(BaseModel):
    """Answer of POST /v1/recommend."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """Transactions with products; attributes serve customers without purchases and new products."""
    useful = {
        "transactions": ("num_units", "net_amount"),
        "products": ("name", "category", "brand", "launched_at", "active"),
        "customers": ("country", "region", "industry", "segment"),
    }
    return Needs(required={"transactions": ("entity_id", "occurred_at", "product_id")}, useful=useful)


def dates(settings: Settings, span: tuple[datetime, datetime]) -> Snapshots:
    """Training rows are the histories before the validation date, for the refit those before the test date.

    A fit takes each customer's newest row and no target, so no label window has to end before anything: horizon 0.
    """
    found = splits.snapshots(settings.model_copy(update={"num_snapshots": 1, "train_as_of": None}), span)
    assert found.validation is not None
    assert found.test is not None
    return replace(found, train=(found.validation, found.test), horizon_days=0)


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per known customer (leave_one_out with labels: one for each part), oldest purchases first.

    entity_id, as_of, part; labels `target` list<string> and `audience` (active | lapsed | cold); `history`
    list<string>, `history_days_before` list<float32>, `exclude_owned` bool, `new_products` list<string>, and text
    attributes customer_*.
    """
    population = asof.known(tables, as_of)
    bought = baskets.purchases(tables, population, settings.products_matching)
    length, distinct = settings.history_length, settings.exclude_owned
    if settings.protocol == "leave_one_out":
        rows = baskets.leave_one_out_rows(bought, labels=labels, length=length, distinct=distinct)
    elif as_of is None:
        raise DataError(
            "recommendation: got data without time, expected transactions with a clock; map occurred_at to a time,"
            " or set protocol: leave_one_out"
        )
    else:
        rows = baskets.as_of_rows(
            bought, population, as_of, horizon_days=settings.horizon_days if labels else None,
            lookback_days=settings.lookback_days, length=length, distinct=distinct,
        )  # fmt: skip
    entities = rows["entity_id"].combine_chunks()
    part = rows["part"] if "part" in rows.column_names else splits.part(entities)
    head = {
        "entity_id": entities,
        "as_of": pa.repeat(pa.scalar(as_of, schema.TIME), len(entities)),
        "part": part,
    }
    body = {name: rows[name] for name in rows.column_names if name not in head}
    told = {"new_products": _new_products(rows, tables.get("products"), as_of, settings)}
    if "customers" in tables:
        found = attributes(entities, tables["customers"], None)
        told |= {name: values for name, values in found.items() if isinstance(values, pa.StringArray)}
    return pa.table({**head, **body, **told}).combine_chunks()


def _new_products(rows: pa.Table, products: pa.Table | None, as_of: datetime | None, settings: Settings) -> pa.Array:
    """(N,) list<string>: new products like those each customer bought; empty without products, dates or launches."""
    if products is None or as_of is None:
        return pa.array([[]] * rows.num_rows, pa.list_(pa.string()))
    known = histories.Catalogue.named(products["product_id"].to_pylist())
    bought = histories.encode(rows, known).matrix(len(known), NEW_DECAY)
    return pa.array(
        content.new_products(products, bought, as_of, new_days=settings.new_product_days), pa.list_(pa.string())
    )


def _rows_with_target(examples: pa.Table, audience: Sequence[str]) -> np.ndarray:
    """Positions of the rows of these audiences that have something to be found."""
    lengths = pc.fill_null(pc.list_value_length(histories.column_of(examples, "target")), 0)
    asked = pc.is_in(histories.column_of(examples, "audience"), value_set=pa.array(audience, pa.string()))
    return np.flatnonzero(pc.and_(pc.greater(lengths, 0), asked).to_numpy())


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """hr10, ndcg10, recall10, mrr10 over customers who bought in the lookback and buy something to be found; rows.

    predictions: "products" (N, 10), or "hits" (N, 10) where a training loop tells only which of them are right.
    NotEnoughDataError when there is no such customer.
    """
    rows = _rows_with_target(examples, (ACTIVE,))
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


def blend(models: Mapping[str, Recommender], validation: pa.Table) -> RankingBlend | None:
    """The best weighted sum of the families' reciprocal ranks."""
    rows = _rows_with_target(validation, (ACTIVE,))
    if len(rows) > ranking.BLEND_ROWS:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[: ranking.BLEND_ROWS])
    part = validation.take(pa.array(rows))
    truth = part["target"].to_pylist()
    figures = {name: score(part, model.predict(part))[METRIC] for name, model in models.items()}
    return ranking.best_blend(models, figures, part, lambda products: metrics.ranking_rows(products, truth)["ndcg"])


def finalize(model: Recommender, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """{"lifts": …}: what customers' attributes say about their first purchases; empty unless it helps on validation.

    Tried on validation customers as if nothing were known of their purchases.
    """
    rows = _rows_with_target(validation, (ACTIVE, LAPSED, COLD))[:CONTENT_ROWS]
    found = content.lifts(train)
    if not found["columns"] or not len(rows):
        return {"lifts": {}}
    part = validation.take(pa.array(rows))
    truth, catalogue = part["target"].to_pylist(), model.catalogue

    def reached(lifted: Mapping[str, Any]) -> float:
        answer = ranking.rank(lambda block: content.cold_scores(block, catalogue, lifted)[0], catalogue, part)
        return float(metrics.ranking_rows(answer["products"], truth)["ndcg"].mean())

    return {"lifts": found if reached(found) > reached({}) else {}}


def predict(
    model: Recommender,
    decision: Mapping[str, Any],
    examples: pa.Table,
    *,
    explain: bool = False,
    num_products: int = TOP_K,
    exclude: Sequence[str] = (),
) -> pa.Table:
    """entity_id, as_of, products and scores (lists, best first), source, new_products, reasons (null without explain).

    Scores are comparable within a row only. A list is shorter than num_products when fewer products are left.
    """
    catalogue = model.catalogue
    known = np.diff(catalogue.codes(histories.column_of(examples, "history"))[0]) > 0
    source = np.full(examples.num_rows, PERSONAL, dtype=object)
    products = np.full((examples.num_rows, num_products), None, dtype=object)
    scores = np.full((examples.num_rows, num_products), np.nan)
    informed = content.cold_scores(examples.filter(pa.array(~known)), catalogue, decision["lifts"])[1]
    source[~known] = np.where(informed, CONTENT, POPULAR)
    for mask, scorer in (
        (known, model.scores),
        (~known, lambda block: content.cold_scores(block, catalogue, decision["lifts"])[0]),
    ):
        if mask.any():
            part = examples.filter(pa.array(mask))
            best = ranking.rank(scorer, catalogue, part, top_k=num_products, exclude=exclude)
            products[mask], scores[mask] = best["products"], best["scores"]
    shown = [[product for product in row if product is not None] for row in products]
    kept = [values[: len(row)].tolist() for values, row in zip(scores, shown, strict=True)]
    new = [[p for p in row if p not in exclude] for row in examples["new_products"].to_pylist()]
    return pa.table(
        {
            "entity_id": examples["entity_id"],
            "as_of": examples["as_of"],
            "products": pa.array(shown, pa.list_(pa.string())),
            "scores": pa.array(kept, pa.list_(pa.float64())),
            "source": pa.array(source, pa.string()),
            "new_products": pa.array(new, pa.list_(pa.string())),
            "reasons": pa.array(
                _reasons(model, examples, shown, source) if explain else [None] * examples.num_rows,
                pa.list_(pa.string()),
            ),
        }
    )


def _reasons(model: Recommender, examples: pa.Table, shown: list[list[str]], source: np.ndarray) -> list[list[str]]:
    """A few words for each product."""
    words = {CONTENT: "bought by similar customers", POPULAR: "popular now", PERSONAL: "fits what was bought"}
    because = model.because(examples, shown) if hasattr(model, "because") else [[[] for _ in row] for row in shown]
    return [
        [f"bought with {' and '.join(owned)}" if owned else words[kind] for owned in row]
        for row, kind in zip(because, source, strict=True)
    ]


def evaluate(model: Recommender, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures with an interval and the coverage, apart for lapsed customers and those without purchases."""
    answers = predict(model, decision, test)
    ranked = np.full((test.num_rows, TOP_K), None, dtype=object)
    for row, products in enumerate(answers["products"].to_pylist()):
        ranked[row, : len(products)] = products
    truth = test["target"].to_pylist()
    items = set(model.catalogue.items.tolist()).union(*(target or () for target in truth))
    rows = _rows_with_target(test, (ACTIVE,))
    by_row = metrics.ranking_rows(ranked[rows], [truth[i] for i in rows]) if len(rows) else {}
    return {
        **score(test, {"products": ranked}),
        "ndcg10_interval": metrics.bootstrap_ci(metrics.mean_figure(by_row["ndcg"]), len(rows)),
        "cov10": metrics.coverage(ranked[rows], len(items)),
        "num_items": len(items),
        "lapsed": _figures(ranked, truth, _rows_with_target(test, (LAPSED,))),
        "cold": _figures(ranked, truth, _rows_with_target(test, (COLD,))),
        "sources": {str(pair["values"]): pair["counts"] for pair in pc.value_counts(answers["source"]).to_pylist()},
    }


def _figures(ranked: np.ndarray, truth: list[list[str]], rows: np.ndarray) -> dict[str, float | int | None]:
    """hr10 and ndcg10 of these rows; null without any."""
    if not len(rows):
        return {"rows": 0, "hr10": None, "ndcg10": None}
    found = metrics.ranking_rows(ranked[rows], [truth[i] for i in rows])
    return {"rows": len(rows), "hr10": float(found["hr"].mean()), "ndcg10": float(found["ndcg"].mean())}
