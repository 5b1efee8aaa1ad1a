"""Customer value: what a customer will buy and spend within the horizon, and be worth over a lifetime.

Population and dates are those of churn (a purchase in the lookback), from the same as-of frame. One model gives
P(purchase), the number of purchases and the net spend, so they cannot contradict each other: purchases >= P, spend > 0
exactly where P > 0, the customer's band follows from the spend. P is 1 - the probability of churn by inactivity, from
the same rows and the same label; where churn has a champion, the report says how close the two are.

Lifetime value is the expected spend of the horizon, carried on with the retention that the data show and the season of
the year, discounted: see `crmray.models.value_season.lifetime_factor`. Its limits: spend, not margin; one retention for
all customers, so it orders them as the spend does; no growth beyond today's customers; a lookback of few horizons
understates the retention (`value_season.retention`): give it a year.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from crmray.data import asof, splits
from crmray.errors import NotEnoughDataError
from crmray.evaluate import amounts, judge, metrics, reasons
from crmray.models import value_answer
from crmray.models.value_bgnbd import BGNBD
from crmray.models.value_blend import ValueBlend, best_blend
from crmray.models.value_boosting import SpendLightGBM
from crmray.models.value_rule import RunRate
from crmray.models.value_season import BY_MONTH, MONTHS, YEAR_DAYS
from crmray.models.value_targets import LABELS, OUTPUTS, PURCHASES, SPEND, longest_window
from crmray.models.value_transformer import ValueTransformer
from crmray.tasks.contract import REASONS, EntityRequest, Fitted, Needs

NAME, ROUTE, ENTITY = "value", "/v1/value", "customer"
FEATURES_VERSION = f"1.{asof.FEATURES_VERSION}"
METRIC: str = "ranking"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {candidate.NAME: candidate for candidate in (ValueTransformer, SpendLightGBM, BGNBD, RunRate)}
BLEND = ValueBlend
BANDS = {"top": 0.9, "high": 0.7, "medium": 0.3, "low": 0.0}
"""band -> share of the validation customers below it"""
NUM_REASONS, NUM_DECILES = 3, 10
APART = 0.1
"""difference of two probabilities that is worth telling"""
FEW_ORDERS = 4
"""orders in the lookback up to which a customer counts as an occasional one in the report"""

GROUPS: dict[str, tuple[str, ...]] = {
    "how much they spend": ("spend_", "season_spend", "basket_", "price_"),
    "how often they buy": ("frequency_", "season_orders", BY_MONTH),
    "time since the last purchase, beside the usual gap": ("recency_", "gap_"),
    "rising or falling activity": ("trend_",),
    "returns": ("return_",),
    "range of products": ("product_",),
    "visits": ("visit_",),
    "reaction to mail": ("mail_", "exposure_"),
    "contacts and cases": ("contact_",),
    "ratings": ("rating_",),
    "subscription": ("subscription_",),
    "changes to the record": ("change_",),
    "time as a customer": ("tenure_", "is_young"),
}
"""words for reasons -> beginnings of feature names; attributes, and the sequence of events, stand for themselves"""


class Settings(splits.TimeSettings):
    """Business facts of customer value."""

    discount_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """by which a year later is worth less, in lifetime value"""
    lifetime_days: Annotated[int, Field(ge=1, le=3650)] = 1095
    """days after as_of that lifetime value counts"""


class Request(EntityRequest):
    """Body of POST /v1/value."""


class Prediction(BaseModel):
    """What one customer is expected to buy within the horizon, and to be worth."""

    entity_id: str
    as_of: datetime
    p_purchase: float = Field(description="probability of at least one order; 1 - churn by inactivity")
    purchases: float = Field(description="expected orders")
    spend: float = Field(description="expected net spend, returns taken off, in the org's currency")
    lifetime_value: float = Field(description="discounted expected net spend over lifetime_days")
    percentile: float = Field(description="per cent of customers with no more expected spend")
    band: Literal["low", "medium", "high", "top"] = Field(
        description="by expected spend among all customers: top tenth, next fifth (high), middle (medium), last three "
        "tenths (low)"
    )
    reasons: list[str] | None = Field(None, description=f"{REASONS}; the score is the share of customers passed, 0..1")


class Response(BaseModel):
    """Answer of POST /v1/value."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """Transactions with amounts; everything else that is known of a customer helps."""
    return Needs(required={"transactions": ("entity_id", "occurred_at", "net_amount")}, useful=asof.USEFUL)


def fixed(settings: Settings) -> dict[str, Any]:
    """The horizon, for the candidates that look at the past alone."""
    return {f"{family.NAME}.horizon_days": settings.horizon_days for family in (BGNBD, RunRate)}


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per customer with a purchase in the lookback: keys, labels, features, event lists, `orders_by_month`.

    label_spend float64: net spend in [as_of, as_of + horizon_days), returns taken off, 0 at least, and 0 without an
    order. label_purchases float64: orders. Both null without `labels`. Features read rows strictly before as_of.
    """
    assert as_of is not None
    entities = asof.buyers(tables, as_of, settings.lookback_days)
    rows = asof.frame(
        tables, as_of, lookback_days=settings.lookback_days, horizon_days=settings.horizon_days, entities=entities,
        events=True,
    )  # fmt: skip
    rows = rows.append_column(BY_MONTH, _by_month(tables, entities, as_of))
    found: list[pa.Array] = [pa.nulls(len(entities), pa.float64())] * 2
    if labels:
        owner, _ = _orders(tables, entities, as_of, as_of + timedelta(days=settings.horizon_days))
        purchases = np.bincount(owner, minlength=len(entities)).astype(np.float64)
        net = asof.later_amount(tables, entities, as_of, settings.horizon_days).to_numpy()
        found = [pa.array(np.where(purchases > 0, np.maximum(net, 0.0), 0.0)), pa.array(purchases)]
    return splits.with_labels(rows, dict(zip((SPEND, PURCHASES), found, strict=True)))


def _orders(
    tables: Mapping[str, pa.Table], entities: pa.Array, start: datetime, end: datetime
) -> tuple[np.ndarray, np.ndarray]:
    """Customer (index) and calendar month (0..11) of the orders in [start, end): rows of one order_id, or of one moment
    where there is none, are one order."""
    lines = asof.purchases_between(tables, start, end)
    moment = lines["occurred_at"].cast(pa.int64()).cast(pa.string())
    key = pc.coalesce(lines["order_id"].cast(pa.string()), moment) if "order_id" in lines.column_names else moment
    orders = pa.table({"owner": pc.index_in(lines["entity_id"], value_set=entities), "key": key,
                       "moment": lines["occurred_at"]})  # fmt: skip
    orders = orders.filter(pc.is_valid(orders["owner"])).group_by(["owner", "key"]).aggregate([("moment", "min")])
    return orders["owner"].to_numpy().astype(np.int64), pc.month(orders["moment_min"]).to_numpy() - 1


def _by_month(tables: Mapping[str, pa.Table], entities: pa.Array, as_of: datetime) -> pa.Array:
    """(N,) lists of 12: orders by calendar month in the 365 days before as_of."""
    owner, month = _orders(tables, entities, as_of - timedelta(days=YEAR_DAYS), as_of)
    counts = np.bincount(owner * MONTHS + month, minlength=len(entities) * MONTHS).astype(np.float32)
    return pa.ListArray.from_arrays(np.arange(len(entities) + 1, dtype=np.int32) * MONTHS, counts)


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """ranking (mean of normalised Gini and Spearman), and the figures of `amounts.amount`, for the spend.

    NotEnoughDataError where the spend ranks nobody: the same of all rows, or nothing in total.
    """
    return _ranked(amounts.amount(examples[SPEND].to_numpy(), predictions["spend"]))


def _ranked(figures: Mapping[str, Any]) -> dict[str, Any]:
    if "ngini" not in figures:  # amounts.amount leaves out what these amounts do not define
        raise NotEnoughDataError(
            f"got spend of {figures['mean_truth']:g} on average that ranks none of {figures['rows']} customers, "
            "expected amounts that differ and add up to more than 0; choose a longer horizon_days"
        )
    return {METRIC: (figures["ngini"] + figures["spearman"]) / 2, **figures}


def blend(models: Mapping[str, Fitted], validation: pa.Table) -> Fitted | None:
    """The average of the best few families, where validation prefers it to the best single one."""
    return best_blend(models, validation, lambda outputs: score(validation, outputs)[METRIC])


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """Calibration, season, retention and percentiles from validation rows; what reasons compare with."""
    state = value_answer.fit(
        model.predict(validation), train, validation, horizon_days=settings.horizon_days,
        lookback_days=settings.lookback_days,
    )  # fmt: skip
    lifetime = {"lifetime_days": settings.lifetime_days, "discount_rate": settings.discount_rate}
    return {**state, **lifetime, **reasons.basis(train, GROUPS, LABELS)}


def shipped(model: Fitted, decision: Mapping[str, Any], validation: pa.Table) -> dict[str, Any]:
    """The decision for the winner fitted again on all rows: more dates move its level, so its totals are set anew."""
    return value_answer.rescaled(decision, model.predict(validation), validation)


def predict(
    model: Fitted, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False, **options: Any
) -> pa.Table:
    """The columns of `Prediction`; reasons are null without `explain`."""

    def place(rows: pa.Table) -> np.ndarray:
        return value_answer.places(decision, value_answer.apply(decision, model.predict(rows), rows)["spend"])

    answer = value_answer.apply(decision, model.predict(examples), examples)
    lifetime = value_answer.lifetime_values(
        decision, answer["spend"], examples, lifetime_days=decision["lifetime_days"],
        discount_rate=decision["discount_rate"],
    )  # fmt: skip
    percentile = value_answer.places(decision, answer["spend"])
    told: list[list[str]] | list[None] = [None] * examples.num_rows
    if explain:
        told = reasons.explain(place, examples, decision["reference"], decision["groups"], NUM_REASONS)
    return pa.table(
        {
            "entity_id": examples["entity_id"],
            "as_of": examples["as_of"],
            **{name: pa.array(values, pa.float64()) for name, values in answer.items()},
            "lifetime_value": pa.array(lifetime, pa.float64()),
            "percentile": pa.array(100.0 * percentile, pa.float64()),
            "band": pa.array(_bands(percentile), pa.string()),
            "reasons": pa.array(told, pa.list_(pa.string())),
        }
    )


def _bands(places: np.ndarray) -> np.ndarray:
    """(N,) names of BANDS by place among the customers, 0..1."""
    names, starts = np.array(list(BANDS), object)[::-1], np.array(list(BANDS.values()))[::-1]
    return names[np.searchsorted(starts, places, side="right") - 1]


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures of the calibrated answers: ranking and totals of the spend, the number of purchases, the probability
    of any, by decile of expected spend and by kind of customer."""
    answers = {name: values.to_numpy(zero_copy_only=False)
               for name, values in zip(*_columns(predict(model, decision, test)), strict=True)}  # fmt: skip
    truth = {"spend": test[SPEND].to_numpy(), "purchases": test[PURCHASES].to_numpy()}
    truth["p_purchase"] = (truth["purchases"] > 0).astype(float)
    return {
        **_ranked(judge.amount(truth["spend"], answers["spend"])),
        "ece": metrics.expected_calibration_error(truth["p_purchase"], answers["p_purchase"]),
        "p_purchase": _probability(truth["p_purchase"], answers["p_purchase"]),
        "purchases": _count(truth["purchases"], answers["purchases"]),
        "totals": {name: _group(truth, answers, np.ones(test.num_rows, bool))[name] for name in truth},
        "deciles": _deciles(truth, answers),
        "groups": {name: _group(truth, answers, mask) for name, mask in _kinds(test, answers["band"]).items()},
        "retention": decision["retention"],
        "season": decision["season"],
    }


def beside_churn(own: pa.Table, theirs: pa.Table, settings: Settings, other: Any) -> dict[str, float] | None:
    """How p_purchase goes with 1 - the probability of churn; None where churn is not the lack of a purchase within the
    same horizon. The two come from models of their own on the same rows, so they agree closely, not to the digit."""
    if other.label != "no_purchase" or other.horizon_days != settings.horizon_days:
        return None
    p, stays = own["p_purchase"].to_numpy(), 1.0 - theirs["probability"].to_numpy()
    return {
        "spearman": amounts.spearman_figure(stays, p)(np.ones(len(p))),
        "mean_difference": float((p - stays).mean()),
        "mean_absolute_difference": float(np.abs(p - stays).mean()),
        "share_apart": float((np.abs(p - stays) > APART).mean()),
    }


def by_segment(own: pa.Table, theirs: pa.Table, settings: Settings, other: Any) -> dict[str, Any]:
    """What is expected of the customers of each segment, on average."""
    names = theirs["segment_name"].to_pylist()
    found = {}
    for name in sorted(set(names)):
        mask = pa.array([one == name for one in names])
        means = {key: float(pc.mean(own.filter(mask)[key]).as_py()) for key in (*OUTPUTS, "lifetime_value")}
        found[str(name)] = {"rows": int(pc.sum(mask).as_py()), **means}
    return {"segments": found}


AGREES = {"churn": beside_churn, "segmentation": by_segment}


def _columns(table: pa.Table) -> tuple[list[str], list[pa.ChunkedArray]]:
    names = ["p_purchase", "purchases", "spend", "lifetime_value", "band"]
    return names, [table[name] for name in names]


def _probability(bought: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """As metrics.binary where both classes are there; else what is defined with one."""
    if 0 < bought.sum() < len(bought):
        return metrics.binary(bought, p)
    return {"logloss": metrics.logloss(bought, p), "brier": metrics.brier(bought, p), "base_rate": float(bought.mean())}


def _count(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float] | None:
    """The figures of amounts for the number of purchases; None where all have the same."""
    return amounts.amount(truth, prediction) if np.ptp(truth) else None


def _group(truth: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """Rows, and for each output what came and what was expected, as totals and their ratio less 1 (bias)."""
    found: dict[str, Any] = {"rows": int(mask.sum())}
    for name, values in truth.items():
        came, expected = float(values[mask].sum()), float(answers[name][mask].sum())
        found[name] = {"came": came, "expected": expected, "bias": expected / came - 1.0 if came else None}
    return found


def _deciles(truth: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Tenths of the rows by expected spend, the highest first."""
    order = np.argsort(-answers["spend"], kind="stable")
    found = []
    for rows in np.array_split(order, NUM_DECILES):
        mask = np.zeros(len(order), bool)
        mask[rows] = True
        found.append(_group(truth, answers, mask))
    return found


def _kinds(test: pa.Table, band: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of the rows by kind of customer: band, new ones, and how often they bought in the lookback."""
    kinds = {f"band {name}": band == name for name in BANDS}
    kinds["young"] = test["is_young"].to_numpy(zero_copy_only=False)
    longest = longest_window(test.column_names, "frequency_orders_")
    if longest is not None:
        orders = test[longest[0]].to_numpy()
        kinds |= {
            "one order in the lookback": orders <= 1,
            f"2 to {FEW_ORDERS} orders": (orders > 1) & (orders <= FEW_ORDERS),
            f"more than {FEW_ORDERS} orders": orders > FEW_ORDERS,
        }
    return kinds
