"""A prediction of the user's own: any yes/no, number or class about customers, leads or products.

    tasks:
      custom.repeat_case:                    # about customers; custom.lead.<name> and custom.product.<name> about those
        population:                          # whom it is about; left out: everyone known at the date
          - {table: interactions, where: {channel: case}, days: 180}
        outcome: {table: interactions, where: {channel: case}, at_least: 2}
        horizon_days: 60

An org file may define several, each with its own name, route (/v1/custom/<name>, /v1/custom/lead/<name>), examples,
bundles and champion: `named` makes a task of each. `custom` alone is one about customers, too. What an outcome may be:
data/definitions.py.

METRIC is `skill`, the figure by which each kind is judged: the AUC for yes and no, Spearman's rank correlation for
numbers, macro-F1 for classes (evaluate/kinds.py). It compares candidates for one outcome, not outcomes of different
kinds. All other figures of the kind stand beside it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationInfo, model_validator

from crmray import schema
from crmray.data import asof, asof_leads, asof_products, definitions, measures, splits
from crmray.data.definitions import EVENTS, OWN_TABLES, Entity, Outcome, Segment
from crmray.data.names import Names
from crmray.errors import ConfigError, did_you_mean
from crmray.evaluate import kinds, reasons
from crmray.evaluate.calibration import BAND_MEANING
from crmray.evaluate.decide import Decided
from crmray.models.blend import Blend
from crmray.models.boosting import LightGBM
from crmray.models.labels import LABEL, Kind
from crmray.models.linear import Linear
from crmray.models.one_rule import OneRule
from crmray.models.tabular_net import TabularNet
from crmray.models.trees import DecisionTree, RandomForest
from crmray.tasks import churn, leads
from crmray.tasks.contract import REASONS, EntityRequest, Fitted, Needs

NAME, ROUTE, ENTITY = "custom", "/v1/custom", "customer"
FEATURES_VERSION = f"1.{asof.FEATURES_VERSION}.{asof_leads.FEATURES_VERSION}.{asof_products.FEATURES_VERSION}"
LABELS = (LABEL,)
METRIC: str = kinds.SKILL
MODE: Literal["max", "min"] = "max"
CANDIDATES = {
    candidate.NAME: candidate for candidate in (TabularNet, Linear, DecisionTree, RandomForest, LightGBM, OneRule)
}
BLEND = Blend
NUM_REASONS = 3
PRODUCT_GROUPS: dict[str, tuple[str, ...]] = {"sales of the product": ("sold_", "recency_", "trend_sold_")}
GROUPS: dict[Entity, dict[str, tuple[str, ...]]] = {
    "customer": churn.GROUPS, "lead": leads.GROUPS, "product": PRODUCT_GROUPS,
}  # fmt: skip
"""entity -> words for reasons -> beginnings of feature names; attributes stand for themselves"""
OWN_NAME = re.compile(
    r"^custom(?:\.(lead|product))?\.(?=.{1,20}$)(?!(?:customer|lead|product)$)([a-z][a-z0-9]*(?:_[a-z0-9]+)*)$"
)
"""at most 20 characters: a field of Salesforce is named by it"""


class Definition(splits.TimeSettings, Decided):
    """A prediction of one's own, about whatever entity."""

    entity: Entity
    """whom it is about; follows from the task's name"""
    population: list[Segment] = Field(default_factory=list)
    """all of these hold; default: everyone known at the date"""
    outcome: Outcome = Outcome(table="transactions")
    """what is predicted; default: whether there is a transaction within the horizon"""

    @model_validator(mode="after")
    def _fits_the_entity(self, info: ValidationInfo) -> Definition:
        if self.outcome.table and "outcome" not in self.model_fields_set and self.entity == "lead":
            raise ValueError("outcome: got none, expected what is predicted of leads: {table: …} or {attribute: …}")
        if self.outcome.table:
            definitions.check_table(self.entity, self.outcome.table, own=False)
        for segment in self.population:
            definitions.check_table(self.entity, segment.table, own=True)
            if not self.uses_time and segment.table != OWN_TABLES[self.entity]:
                raise ValueError(
                    f"population: got table {segment.table} with an outcome without time, expected "
                    f"{OWN_TABLES[self.entity]} only"
                )
            if segment.days is not None and not (self.uses_time and schema.table(segment.table).time):
                raise ValueError(
                    f"population: got days {segment.days} with table {segment.table}, expected none: its rows have no "
                    "date here that days could count from"
                )
            if segment.table == "products" and "active" in segment.where and self.uses_time:
                raise ValueError(
                    "population: got column active of products, expected one that was known at past dates: whether a "
                    "product is sold today tells what came later; take those sold lately (table transactions with days)"
                )
        if self.entity == "product" and self.outcome.measure not in ("exists", "none", "count", "sum"):
            raise ValueError(
                f"outcome.measure: got {self.outcome.measure} for entity product, expected exists, none, count or sum: "
                "what happens to products is counted by the day"
            )
        if info.context is not None:
            self._refuse_unknown(info.context)
        self.outcome.kind_for(self.entity)
        return self

    def _refuse_unknown(self, names: Names) -> None:
        """ValueError for a column that the org does not have."""
        outcome = self.outcome
        if outcome.table:
            names.refuse_unknown("outcome", outcome.table, [*outcome.where, *filter(None, [outcome.column])])
        if outcome.attribute:
            names.refuse_unknown("outcome.attribute", OWN_TABLES[self.entity], [outcome.attribute])
        for segment in self.population:
            names.refuse_unknown("population", segment.table, segment.where)

    @property
    def uses_time(self) -> bool:
        """False for an attribute, which has no date."""
        return not self.outcome.attribute

    @property
    def kind(self) -> Kind:
        """yes_no, number or class."""
        return self.outcome.kind_for(self.entity)


class Settings(Definition):
    """A prediction of one's own about customers."""

    entity: Literal["customer"] = "customer"


class LeadSettings(Definition):
    """A prediction of one's own about leads."""

    entity: Literal["lead"] = "lead"


class ProductSettings(Definition):
    """A prediction of one's own about products."""

    entity: Literal["product"] = "product"


SETTINGS: dict[str, type[Definition]] = {"customer": Settings, "lead": LeadSettings, "product": ProductSettings}


class Request(EntityRequest):
    """Body of POST /v1/custom/<name>."""

    threshold: float | None = Field(
        None, ge=0, le=1, description="of yes and no: probability from which on the answer is yes; default: as chosen"
    )


class Prediction(BaseModel):
    """One answer; what the kind of outcome does not have is null."""

    entity_id: str
    as_of: datetime | None
    answer: str | None = Field(None, description="yes or no, or the most probable class")
    probability: float | None = Field(None, description="of yes, or of that class")
    band: Literal["low", "medium", "high"] | None = Field(None, description=f"of yes and no; {BAND_MEANING}")
    number: float | None = Field(None, description="of an outcome that is a number")
    number_low: float | None = Field(None, description="lower end of the 80 % interval")
    number_high: float | None = Field(None, description="upper end of the 80 % interval")
    reasons: list[str] | None = Field(None, description=REASONS)


class Response(BaseModel):
    """Answer of POST /v1/custom/<name>."""

    version: str
    predictions: list[Prediction]


class Named:
    """One of several predictions of an org: this module under a name, a route and an entity of its own."""

    def __init__(self, name: str):
        found = OWN_NAME.match(name)
        if found is None:
            raise ConfigError(
                f"got task {name!r}, expected custom.<name>, custom.lead.<name> or custom.product.<name>, the name of "
                "at most 20 lower-case letters, digits and single _"
            )
        entity = found[1] or "customer"
        self.NAME, self.ROUTE, self.ENTITY = name, f"/v1/{name.replace('.', '/')}", entity
        self.Settings = SETTINGS[entity]
        self.__name__, self.__doc__ = f"{__name__}:{name}", __doc__
        if entity == "product":
            self.gather, self.combine = gather_products, combine_products

    def __getattr__(self, attribute: str) -> Any:
        return getattr(sys.modules[__name__], attribute)

    def __reduce__(self) -> tuple[type[Named], tuple[str]]:
        return Named, (self.NAME,)


def named(name: str) -> Named:
    """The task of that name, such as custom.repeat_case. ConfigError for a name that cannot be one."""
    return Named(name)


def needs(settings: Definition) -> Needs:
    """What population and outcome need; everything else that is known of the entity helps."""
    outcome, own = settings.outcome, OWN_TABLES[settings.entity]
    required: dict[str, tuple[str, ...]] = {}
    if outcome.table:
        required[outcome.table] = definitions.columns_of(
            outcome.table, EVENTS[settings.entity][outcome.table], outcome.column, *outcome.where
        )
    elif outcome.given:
        required["outcomes"] = definitions.columns_of("outcomes")
    else:
        required[own] = definitions.columns_of(own, outcome.attribute)
    for segment in settings.population:
        columns = definitions.columns_of(segment.table, *segment.where)
        required[segment.table] = tuple(dict.fromkeys([*required.get(segment.table, ()), *columns]))
    if settings.entity == "lead":
        required.setdefault(own, definitions.columns_of(own))
    events = ("transactions",) if settings.entity == "product" else tuple(EVENTS[settings.entity])
    useful: dict[str, tuple[str, ...]] = dict.fromkeys([*events, own, "products"], ())
    return Needs(required=required, useful=useful)


# -- examples ----------------------------------------------------------------------------------------------------------


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Definition, *, labels: bool) -> pa.Table:
    """One row per entity of the population at as_of: keys, `label`, features.

    label: int8, float64 or string by the kind, null without `labels`. With `labels` those are left out whose outcome is
    not known. Features read rows strictly before as_of.
    """
    entities = _population(tables, as_of, settings)
    label = pa.nulls(len(entities), definitions.label_type(settings.kind))
    if labels:
        label = _label(tables, as_of, settings, entities)
        known = label.is_valid()
        entities, label = entities.filter(known), label.filter(known)
    frame: Callable[..., pa.Table] = {
        "customer": asof.frame, "lead": asof_leads.frame, "product": asof_products.frame,
    }[settings.entity]  # fmt: skip
    days = {"lookback_days": settings.lookback_days, "horizon_days": settings.horizon_days}
    rows = frame(tables, as_of, entities=entities, **days)
    if settings.outcome.attribute:
        told = f"{settings.entity}_{settings.outcome.attribute}"
        rows = rows.drop_columns([name for name in (told,) if name in rows.column_names])
    mapped = measures.mapped_part(settings.outcome, tables["outcomes"], entities) if "outcomes" in tables else None
    return splits.with_labels(rows, {LABEL: label}, mapped)


def _population(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Definition) -> pa.Array:
    """Entities (N,), sorted."""
    if settings.entity == "lead":
        entities = asof_leads.open_leads(tables["leads"], as_of, settings.lookback_days)
    else:
        entities = (asof if settings.entity == "customer" else asof_products).known(tables, as_of)
    inside = np.ones(len(entities), bool)
    for number, segment in enumerate(settings.population):
        place = f"segment_{number}"
        rows, ids, num = _rows_of(tables, settings, segment.table, segment.where, place, "population", before=as_of)
        inside &= measures.in_segment(segment, rows, ids, entities, as_of, num=num)
    return entities.filter(pa.array(inside))


def _rows_of(
    tables: Mapping[str, pa.Table], settings: Definition, table: str, where: Mapping[str, Any], place: str, key: str,
    *, before: datetime | None,
) -> tuple[pa.Table, str, str]:  # fmt: skip
    """The rows chosen by what was known before a moment, the column with the entity's id, and the one that says how
    many rows a row stands for."""
    if place in tables:  # counted by day, over all shards
        return tables[place], "entity_id", "num_lines"
    if table in tables:
        tables = {**tables, table: measures.known_before(tables[table], table, before)}
    ids = EVENTS[settings.entity].get(table, schema.table(table).entity)
    return measures.chosen(tables, table, where, key), ids, ""


def _label(
    tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Definition, entities: pa.Array
) -> pa.Array:
    """(N,) label, null where it is not known."""
    outcome = settings.outcome
    if outcome.given:
        return measures.given(outcome, tables["outcomes"], entities, as_of, settings.horizon_days)
    if outcome.attribute:
        rows, ids, _ = _rows_of(tables, settings, OWN_TABLES[settings.entity], {}, "", "outcome", before=None)
        if outcome.attribute not in rows.column_names:
            raise ConfigError(
                f"outcome.attribute: got {outcome.attribute!r}, expected a column of {OWN_TABLES[settings.entity]} "
                f"with a value: {', '.join(rows.column_names)}{did_you_mean(outcome.attribute, rows.column_names)}"
            )
        values = rows[outcome.attribute].combine_chunks().take(pc.index_in(entities, rows[ids].combine_chunks()))
        return measures.as_label(values, settings.kind, f"outcome.attribute {outcome.attribute!r}")
    assert as_of is not None
    end = as_of + timedelta(days=settings.horizon_days)
    rows, ids, num = _rows_of(tables, settings, outcome.table, outcome.where, "outcome", "outcome", before=end)
    return measures.measured(outcome, rows, ids, entities, as_of, end, settings.kind, num=num)


def gather_products(tables: Mapping[str, pa.Table], settings: Definition) -> dict[str, pa.Table]:
    """What one shard's customers bought of each product, by day, and how often population and outcome were met."""
    found = {name: rows for name, rows in tables.items() if name in ("products", "outcomes")}
    if "transactions" in tables:
        found["sold"] = asof_products.sold(tables["transactions"])
    outcome = settings.outcome
    if outcome.table:
        rows = measures.chosen(tables, outcome.table, outcome.where, "outcome")
        sums = {outcome.column: pc.fill_null(rows[outcome.column].cast(pa.float64()), 0.0)} if outcome.column else {}
        found["outcome"] = asof_products.daily(rows, "product_id", "occurred_at", sums)
    for number, segment in enumerate(settings.population):
        if segment.table != "products":
            rows = measures.chosen(tables, segment.table, segment.where, "population")
            found[f"segment_{number}"] = asof_products.daily(rows, "product_id", "occurred_at", {})
    return found


def combine_products(parts: Sequence[Mapping[str, pa.Table]], settings: Definition) -> dict[str, pa.Table]:
    """All shards' parts together; the catalogue is the same in every shard, given labels are of one shard each."""
    whole = {name: rows for name, rows in parts[0].items() if name == "products"}
    for name in dict.fromkeys(name for part in parts for name in part if name != "products"):
        rows = [part[name] for part in parts if name in part]
        whole[name] = pa.concat_tables(rows) if name == "outcomes" else asof_products.together(rows)
    return whole


# -- figures and answers -----------------------------------------------------------------------------------------------


def fixed(settings: Definition) -> dict[str, Any]:
    """The candidates are told what kind of label the definition has."""
    return {} if settings.kind == "yes_no" else {f"{name}.kind": settings.kind for name in CANDIDATES}


score, blend, shipped = kinds.score, kinds.blend, kinds.shipped


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Definition) -> dict[str, Any]:
    """What kinds.decision fits on validation, and what reasons compare with, from training rows."""
    decided = kinds.decision(model, train, validation, settings.threshold)
    return {**decided, **reasons.basis(train, GROUPS[settings.entity], LABELS)}


def predict(
    model: Fitted,
    decision: Mapping[str, Any],
    examples: pa.Table,
    *,
    explain: bool = False,
    threshold: float | None = None,
) -> pa.Table:
    """entity_id, as_of and the columns of Prediction; those that the kind does not have are null."""
    columns = kinds.answers(model, decision, examples, threshold=threshold)
    told: list[Any] = [None] * examples.num_rows
    if explain:
        told = kinds.explain(model, decision, examples, columns["answer"], top=NUM_REASONS)
    keys = {"entity_id": examples["entity_id"], "as_of": examples["as_of"]}
    return pa.table({**keys, **columns, "reasons": pa.array(told, pa.list_(pa.string()))})


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Definition) -> dict[str, Any]:
    """Test figures with intervals and curves: judge.binary, judge.amount with the coverage of the interval, or
    judge.classes."""
    return kinds.judged(model, decision, test, kinds.answers(model, decision, test))
