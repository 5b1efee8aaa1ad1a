"""Recommendation: which products each customer buys next.

Protocols. `temporal`: history before as_of, the target is what is bought in [as_of, as_of + horizon_days) and, with
exclude_owned, never before. Every fit sees all customers' whole history before the date of what it is compared on.
`leave_one_out`: the last item of a sequence is the test, the last but one the validation, and no clock is needed. All
products are ranked, never a sample of them.

Answers say where they come from (`source`): personal, from the customer's purchases; content, from the attributes of a
customer without any; popular, for one of whom nothing is known; similar, to a product. New products stand apart in
`new_products`. The same model says what goes with one product (`similar_to`) and how well one product fits each
customer (`for_product`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, field_validator

from crmray import schema
from crmray.data import asof, baskets, product_facts, splits
from crmray.data.asof_contacts import attributes
from crmray.data.baskets import ACTIVE, COLD, LAPSED
from crmray.data.product_facts import Facts
from crmray.data.splits import Snapshots
from crmray.errors import DataError
from crmray.evaluate import metrics, next_items
from crmray.models import content, histories, ranking, recommending
from crmray.models.content_based import DESCRIBED, ContentBased
from crmray.models.ease import Ease
from crmray.models.factorization import ALS
from crmray.models.markov import Markov
from crmray.models.neighbours import ItemKNN, Popularity
from crmray.models.ranking import Recommender
from crmray.models.ranking_blend import BLEND_ROWS, RankingBlend, best_blend
from crmray.models.rules import Rules
from crmray.models.sasrec import SASRec
from crmray.models.user_neighbours import UserKNN
from crmray.tasks.contract import EntityRequest, Needs

NAME, ROUTE, ENTITY = "recommendation", "/v1/recommend", "customer"
FEATURES_VERSION = f"3.{asof.FEATURES_VERSION}"
LABELS = ("target", "audience")
METRIC: str = "ndcg10"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {
    candidate.NAME: candidate for candidate in (SASRec, Markov, Ease, ItemKNN, UserKNN, ALS, ContentBased, Popularity)
}
BLEND = RankingBlend
TOP_K, MAX_TOP_K = next_items.TOP_K, 100
CONTENT_ROWS = 4_000
LONG_AGO = "1970-01-02T00:00:00Z"
"""moment of the purchase that stands for a product: before any other"""
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
    exclude_products: list[str] = Field(default_factory=list, max_length=100_000)
    """product ids that are never recommended"""
    stock_column: str | None = None
    """column of the products table: shown is only what is true or above 0 there; inactive products never are"""
    max_per_category: Annotated[int, Field(ge=1)] | None = None
    """products of one category in a list, at most; default: any number"""
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: the best products; towards 1: products more unlike each other"""

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

    SUBJECTS: ClassVar[tuple[str, ...]] = (*EntityRequest.SUBJECTS, "similar_to")

    similar_to: str | None = Field(None, max_length=255, description="a product id: what goes with it")
    num_products: int = Field(TOP_K, ge=1, le=MAX_TOP_K, description="how many products")
    exclude: list[str] = Field(default_factory=list, max_length=10_000, description="product ids not to show")
    max_per_category: int | None = Field(None, ge=1, description="products of one category, at most")
    diversity: float | None = Field(None, ge=0, le=1, description="0: the best; towards 1: the more unlike each other")
    for_product: str | None = Field(
        None, max_length=255, description="a product id: its `place` among what each customer may be shown"
    )

    @property
    def described(self) -> dict[str, list[dict[str, Any]]] | None:
        """For a product: somebody who bought it, and nothing else."""
        if self.similar_to is None:
            return self.customer
        return {"transactions": [{"product_id": self.similar_to, "occurred_at": LONG_AGO}]}

    def options(self) -> dict[str, Any]:
        """What `predict` takes beside the rows."""
        return {**super().options(), "similar_to": self.similar_to}


class Prediction(BaseModel):
    """One customer's products (or those that go with one), best first."""

    entity_id: str = Field(description="of the customer; with `similar_to` the product")
    as_of: datetime | None
    products: list[str]
    scores: list[float]
    source: Literal["personal", "content", "popular", "similar"] = Field(
        description="from the customer's purchases, attributes of the customer, what everybody buys, or the product"
    )
    new_products: list[str]
    place: int | None = Field(
        None, description="of the product asked about, by score from 1; null where it may not be shown or is not known"
    )
    reasons: list[str] | None = Field(None, description="one for each of `products`; null unless `explain` is true")


class Response(BaseModel):
    """Answer of POST /v1/recommend."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """Transactions with products; attributes serve customers without purchases and new products."""
    useful = {
        "transactions": ("num_units", "net_amount"),
        "products": ("name", "category", "brand", "launched_at", "active"),
        "engagement": ("product_id",),
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
    body["viewed"] = baskets.viewed(tables.get("engagement"), entities, as_of, settings.lookback_days)
    if "customers" in tables:
        found = attributes(entities, tables["customers"], None)
        body |= {name: values for name, values in found.items() if isinstance(values, pa.StringArray)}
    table = product_facts.attach(
        pa.table({**head, **body}), tables.get("products"), matching=settings.products_matching,
        stock_column=settings.stock_column, is_now=not labels,
    )  # fmt: skip
    told = _about_products(table, as_of, settings)
    return pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **told}).replace_schema_metadata(
        table.schema.metadata
    ).combine_chunks()  # fmt: skip


def _about_products(rows: pa.Table, as_of: datetime | None, settings: Settings) -> dict[str, pa.Array]:
    """`new_products` list<string>: those like what each customer bought, without dates or launches none; where products
    have texts also `described_share` float32, of the history's products, null without any."""
    facts = Facts.of(rows)
    bought = histories.encode(rows, histories.Catalogue.named(list(facts.place_of)))
    new: list[list[str]] = [[] for _ in range(rows.num_rows)]
    if as_of is not None:
        days, weights = settings.new_product_days, bought.matrix(len(facts), NEW_DECAY)
        new = content.new_products(facts, weights, as_of, new_days=days)
    told = {"new_products": pa.array(new, pa.list_(pa.string()))}
    if facts.texts:
        size = histories.flatten(rows["history"])[0]
        size = size[1:] - size[:-1]
        share = np.divide(bought.lengths, size, out=np.zeros(len(size)), where=size > 0)
        told[DESCRIBED] = pa.array(share.astype(np.float32), mask=size == 0)
    return told


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """hr10, ndcg10, recall10, mrr10, rows: see `next_items.score`."""
    return next_items.score(examples, predictions)


def blend(models: Mapping[str, Recommender], validation: pa.Table) -> RankingBlend | None:
    """The best weighted sum of the families' reciprocal ranks."""
    rows = next_items.rows_with_target(validation, (ACTIVE,))
    if len(rows) > BLEND_ROWS:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:BLEND_ROWS])
    part = validation.take(pa.array(rows))
    truth = part["target"].to_pylist()
    figures = {name: score(part, model.predict(part))[METRIC] for name, model in models.items()}
    return best_blend(models, figures, part, lambda products: metrics.ranking_rows(products, truth)["ndcg"])


def finalize(model: Recommender, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """{"lifts": …}: what customers' attributes say about their first purchases, empty unless it helps on validation.

    Tried on validation customers as if nothing were known of their purchases. {"rules": …}: of the settings.
    """
    rules = Rules(
        exclude=tuple(settings.exclude_products), max_per_category=settings.max_per_category,
        diversity=settings.diversity,
    )  # fmt: skip
    rules.check(Facts.of(train))
    decision: dict[str, Any] = {"lifts": {}, "rules": asdict(rules)}
    rows = next_items.rows_with_target(validation, (ACTIVE, LAPSED, COLD))[:CONTENT_ROWS]
    found = content.lifts(train)
    if not found["columns"] or not len(rows):
        return decision
    part = validation.take(pa.array(rows))
    truth, catalogue = part["target"].to_pylist(), model.catalogue

    def reached(lifted: Mapping[str, Any]) -> float:
        answer = ranking.rank(lambda block: content.cold_scores(block, catalogue, lifted), catalogue, part)
        return float(metrics.ranking_rows(answer["products"], truth)["ndcg"].mean())

    return {**decision, "lifts": found if reached(found) > reached({}) else {}}


def predict(
    model: Recommender,
    decision: Mapping[str, Any],
    examples: pa.Table,
    *,
    explain: bool = False,
    num_products: int = TOP_K,
    similar_to: str | None = None,
    for_product: str | None = None,
    **options: Any,
) -> pa.Table:
    """entity_id (that product with similar_to), as_of, products and scores (lists, best first), source, new_products,
    reasons (null without explain); with for_product its `place` (int64, from 1) by score among the products that each
    customer may be shown, before max_per_category and diversity choose a list from them; null where it may not be shown
    itself (owned, excluded, out of stock), and of a product that nobody bought before the fit.

    options: exclude, max_per_category, diversity, as in Request. Scores are comparable within a row only. A list is
    shorter than num_products when fewer products are left. DataError for an unknown product, and for a rule that needs
    what is not known of products.
    """
    return recommending.answer(
        model, decision, examples, explain=explain, num_products=num_products, similar_to=similar_to,
        for_product=for_product, options=options,
    )  # fmt: skip


def customers_for(
    model: Recommender, decision: Mapping[str, Any], examples: pa.Table, product: str, *, num_customers: int = 100
) -> pa.Table:
    """entity_id and place of the customers whom the product fits best: it stands highest among all products that they
    may be shown. Left out is who may not be shown it: who owns it, unless people buy the same again; everybody where it
    is excluded or out of stock. DataError for an unknown product."""
    try:
        answers = predict(model, decision, examples, num_products=1, for_product=product)
    except DataError as error:  # which names the option of a request
        raise DataError(str(error).removeprefix("for_product: ")) from None
    found = answers.select(["entity_id", "place"]).filter(pc.is_valid(answers["place"]))
    return found.sort_by([("place", "ascending"), ("entity_id", "ascending")]).slice(0, num_customers)


def evaluate(model: Recommender, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures with an interval and the coverage, apart for lapsed customers and those without purchases."""
    answers = predict(model, decision, test)
    ranked = next_items.ranking(answers["products"])
    truth = test["target"].to_pylist()
    items = set(model.catalogue.items.tolist()).union(*(target or () for target in truth))
    rows = next_items.rows_with_target(test, (ACTIVE,))
    by_row = metrics.ranking_rows(ranked[rows], [truth[i] for i in rows]) if len(rows) else {}
    return {
        **score(test, {"products": ranked}),
        "ndcg10_interval": metrics.bootstrap_ci(metrics.mean_figure(by_row["ndcg"]), len(rows)),
        "cov10": metrics.coverage(ranked[rows], len(items)),
        "num_items": len(items),
        "lapsed": next_items.figures(ranked, truth, next_items.rows_with_target(test, (LAPSED,))),
        "cold": next_items.figures(ranked, truth, next_items.rows_with_target(test, (COLD,))),
        "new_products": next_items.of_new_products(answers, test, settings.new_product_days),
        "targets_unknown": next_items.share_unknown(truth, model.catalogue.code_of),
        "sources": {str(pair["values"]): pair["counts"] for pair in pc.value_counts(answers["source"]).to_pylist()},
    }
