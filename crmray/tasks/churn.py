"""Churn: which customers will not come back within the horizon, and why.

Three labels. `no_purchase`, the non-contractual case: a customer with a purchase in the lookback makes none in
[as_of, as_of + horizon_days). `cancelled`, the contractual case: a customer with a running subscription at as_of has
none at the end of the horizon (a change of plan is no cancellation). `outcome:<name>`: a given label of the outcomes
table, 0 or 1; without as_of it has no time, rows are split by part, and the features are the customers' attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from crmray import schema
from crmray.data import asof, outcomes, splits
from crmray.evaluate import decide, judge, reasons
from crmray.evaluate.calibration import BAND_MEANING
from crmray.evaluate.decide import Decided
from crmray.models.blend import Blend
from crmray.models.boosting import LightGBM
from crmray.models.linear import Logistic
from crmray.models.lstm import LSTM
from crmray.models.tabular import Recency
from crmray.models.trees import DecisionTree, RandomForest
from crmray.tasks.contract import REASONS, EntityRequest, Fitted, Needs

NAME, ROUTE, ENTITY = "churn", "/v1/churn", "customer"
FEATURES_VERSION = f"1.{asof.FEATURES_VERSION}"
LABELS = ("label",)
METRIC: str = "auc"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {
    candidate.NAME: candidate for candidate in (LSTM, Logistic, DecisionTree, RandomForest, LightGBM, Recency)
}
BLEND = Blend
AFTER = ("sentiment",)

GROUPS: dict[str, tuple[str, ...]] = {
    "time since the last purchase, beside the usual gap": ("recency_", "gap_"),
    "how often they buy": ("frequency_", "season_orders"),
    "how much they spend": ("spend_", "season_spend", "basket_", "price_"),
    "rising or falling activity": ("trend_",),
    "returns": ("return_",),
    "range of products": ("product_",),
    "visits": ("visit_",),
    "reaction to mail": ("mail_", "exposure_"),
    "contacts and cases": ("contact_",),
    "ratings": ("rating_",),
    "what they wrote": ("sentiment_",),
    "subscription": ("subscription_",),
    "changes to the record": ("change_",),
    "time as a customer": ("tenure_", "is_young"),
}
"""words for reasons -> beginnings of feature names; attributes, and the sequence of events, stand for themselves"""


class Settings(splits.TimeSettings, Decided):
    """Business facts of churn."""

    label: Annotated[str, Field(pattern=r"^(no_purchase|cancelled|outcome:.+)$")] = "no_purchase"
    """what churn is: no_purchase | cancelled | outcome:<name>"""


class Request(EntityRequest):
    """Body of POST /v1/churn."""

    threshold: float | None = Field(
        None, ge=0, le=1, description="probability from which on will_churn is true; default: as chosen on validation"
    )


class Prediction(BaseModel):
    """One customer's risk."""

    entity_id: str
    as_of: datetime | None
    probability: float = Field(description="of leaving within the horizon, calibrated")
    band: Literal["low", "medium", "high"] = Field(description=BAND_MEANING)
    will_churn: bool = Field(description="whether the probability is at least the threshold")
    reasons: list[str] | None = Field(None, description=REASONS)


class Response(BaseModel):
    """Answer of POST /v1/churn."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """What the label needs; everything else that is known of a customer helps."""
    required: dict[str, tuple[str, ...]]
    if settings.label == "no_purchase":
        required = {"transactions": ("entity_id", "occurred_at")}
    elif settings.label == "cancelled":
        required = {"subscriptions": ("entity_id", "subscription_id", "started_at", "ended_at")}
    else:
        required = {"outcomes": ("entity_id", "name", "value")}
    return Needs(required=required, useful=asof.USEFUL)


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per customer of the population at as_of: keys, `label`, features, and event lists where there is time.

    label: int8, 1 = churned, null without `labels`. Features read rows strictly before as_of.
    """
    if settings.label == "no_purchase":
        entities, label, mapped = _no_purchase(tables, as_of, settings)
    elif settings.label == "cancelled":
        entities, label, mapped = _cancelled(tables, as_of, settings)
    elif labels:
        name = settings.label.removeprefix("outcome:")
        entities, label, mapped = outcomes.yes_no(tables["outcomes"], name, as_of, settings.horizon_days)
    else:
        entities, label, mapped = asof.known(tables, as_of), None, None
    rows = asof.frame(
        tables, as_of, lookback_days=settings.lookback_days, horizon_days=settings.horizon_days, entities=entities,
        events=as_of is not None,
    )  # fmt: skip
    values = pa.array(label.astype(np.int8)) if labels and label is not None else pa.nulls(len(entities), pa.int8())
    return splits.with_labels(rows, {LABELS[0]: values}, mapped)


_Population = tuple[pa.Array, np.ndarray | None, pa.Array | None]
"""customers (sorted), their labels (N,) bool, their mapped part where given"""


def _no_purchase(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings) -> _Population:
    assert as_of is not None
    entities = asof.buyers(tables, as_of, settings.lookback_days)
    end = as_of + timedelta(days=settings.horizon_days)
    later = pc.unique(asof.purchases_between(tables, as_of, end)["entity_id"])
    return entities, ~pc.is_in(entities, value_set=later).to_numpy(zero_copy_only=False), None


def _cancelled(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings) -> _Population:
    assert as_of is not None
    entities = _subscribers(tables["subscriptions"], as_of)
    stayed = _subscribers(tables["subscriptions"], as_of + timedelta(days=settings.horizon_days))
    return entities, ~pc.is_in(entities, value_set=stayed).to_numpy(zero_copy_only=False), None


def _subscribers(subscriptions: pa.Table, at: datetime) -> pa.Array:
    """Customers with a subscription that began before a moment and had not ended before it."""
    moment = pa.scalar(at, schema.TIME)
    begun = pc.less(subscriptions["started_at"], moment)
    running = pc.fill_null(pc.greater_equal(subscriptions["ended_at"], moment), True)
    return asof.distinct(subscriptions["entity_id"].filter(pc.and_(begun, running)))


score, blend, shipped = decide.score, decide.blend, decide.shipped


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """Calibration, threshold and bands from validation rows; what reasons compare with, from training rows."""
    return {**decide.fit(model, train, validation, settings.threshold), **reasons.basis(train, GROUPS, LABELS)}


def predict(
    model: Fitted,
    decision: Mapping[str, Any],
    examples: pa.Table,
    *,
    explain: bool = False,
    threshold: float | None = None,
) -> pa.Table:
    """entity_id, as_of, probability (calibrated), band, will_churn, reasons (list<string>, null without `explain`)."""
    return decide.answers(model, decision, examples, "will_churn", explain=explain, threshold=threshold)


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures of the calibrated probabilities: decide.judged, with the young customers and segments apart."""
    groups = {"younger than the lookback": test["is_young"].to_numpy(), **judge.segments(test, LABELS)}
    return decide.judged(decision, predict(model, decision, test), test, groups)
