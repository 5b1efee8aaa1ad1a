"""Campaign response: who is moved by an offer, from a randomised campaign, and who should be left alone.

A row is a customer in one of two arms. With dates, those exposed from as_of on, with what came within outcome_days of
the exposure; features lie strictly before as_of. With `split: part` the exposures and their
given labels have no date, and the features are the customers' attributes.

What is predicted is the uplift: the probability of the outcome with the offer less that without it. That can be learned
only where chance decided who got the offer, so a campaign whose arms can be told from the features is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from crmray import log
from crmray.data import asof, asof_exposures, outcomes, splits
from crmray.errors import DataError
from crmray.evaluate import calibration, metrics, reasons
from crmray.evaluate import uplift as figures
from crmray.models.labels import labels_of
from crmray.models.linear import Logistic
from crmray.models.uplift import (
    TREATED,
    ClassTransformation,
    ResponseModel,
    SLearner,
    TLearner,
    TreatAll,
    XLearner,
)  # fmt: skip
from crmray.tasks.contract import REASONS, EntityRequest, Fitted, Needs

NAME, ROUTE, ENTITY = "response", "/v1/response", "customer"
FEATURES_VERSION = f"1.{asof.FEATURES_VERSION}"
LABELS = ("label", TREATED)
METRIC: str = "qini"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {
    candidate.NAME: candidate
    for candidate in (SLearner, TLearner, XLearner, ClassTransformation, ResponseModel, TreatAll)
}
BANDS = ("persuadable", "sure thing", "lost cause", "do not disturb")
REFUSED_AUC, DOUBTED_AUC = 0.55, 0.5
"""lower end of the interval of the AUC with which the arm is told from the features: above the first the campaign was
not randomised, above the second it may not have been"""


class Settings(splits.TimeSettings):
    """Business facts of campaign response."""

    horizon_days: Annotated[int, Field(ge=2, le=3650)] = 28
    """days from as_of on in which customers are exposed, and their outcome_days, together"""
    outcome_days: Annotated[int, Field(ge=1, le=3650)] = 7
    """days from the exposure on in which the outcome counts"""
    outcome: Annotated[str, Field(pattern=r"^(purchase|visit|open|click|outcome:.+)$")] = "purchase"
    """what the offer is for: purchase | visit | open | click | outcome:<name>"""
    campaign: str | None = None
    """campaign_id of the experiment; default: all campaigns whose exposures have an arm"""
    treated_arms: tuple[str, ...] = ("treatment",)
    """names of the arms that got the offer"""
    control_arms: tuple[str, ...] = ("control",)
    """names of the arms that did not, by chance"""
    split: Literal["time", "part"] = "time"
    """by date, or by the mapped part of each outcome: for labels without a date"""
    worth: Annotated[float, Field(ge=0, lt=1)] | None = None
    """uplift from which on an offer pays (its cost / what a response brings); default: half of the average effect"""
    if_not_random: Literal["refuse", "warn"] = "refuse"
    """what happens when the arm can be told from the features"""

    @model_validator(mode="after")
    def _windows(self) -> Settings:
        if self.outcome_days >= self.horizon_days:
            raise ValueError(
                f"outcome_days: got {self.outcome_days} with horizon_days {self.horizon_days}, expected fewer: the "
                "rest is the time in which customers are exposed"
            )
        if self.split == "part" and not self.outcome.startswith("outcome:"):
            raise ValueError(f"split: got part with outcome {self.outcome}, expected outcome:<name>")
        return self

    @property
    def uses_time(self) -> bool:
        """False where rows are split by part."""
        return self.split == "time"

    @property
    def exposure_days(self) -> int:
        """Days from as_of on whose exposures make one experiment."""
        return self.horizon_days - self.outcome_days


class Request(EntityRequest):
    """Body of POST /v1/response."""

    worth: float | None = Field(
        None, ge=0, lt=1, description="uplift from which on the offer pays; default: that of the org file"
    )


class Prediction(BaseModel):
    """What the offer does to one customer."""

    entity_id: str
    as_of: datetime | None
    uplift: float = Field(description="p_treated - p_control: what the offer adds")
    p_treated: float = Field(description="probability of a response with the offer")
    p_control: float = Field(description="the same without it")
    band: Literal["persuadable", "sure thing", "lost cause", "do not disturb"] = Field(
        description="persuadable: the uplift is at least `worth`; do not disturb: it is below 0; of the others sure "
        "thing and lost cause: p_control at least, or less than, the average without the offer"
    )
    leave_alone: bool = Field(description="whether the offer is expected to do harm")
    reasons: list[str] | None = Field(None, description=f"{REASONS}; the score is the uplift")


class Response(BaseModel):
    """Answer of POST /v1/response."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """The arms, and where the outcome stands; everything else that is known of a customer helps."""
    required: dict[str, tuple[str, ...]] = {"exposures": ("entity_id", "campaign_id", "occurred_at", "arm")}
    if settings.outcome == "purchase":
        required["transactions"] = ("entity_id", "occurred_at")
    elif settings.outcome in asof_exposures.VISITS:
        required["engagement"] = ("entity_id", "occurred_at", "kind")
    else:
        required["outcomes"] = ("entity_id", "name", "value")
    return Needs(required=required, useful=asof.USEFUL)


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per customer: keys, `label` and `label_treated` (int8 0/1, null without `labels`), features before as_of.

    With `labels` the customers that were exposed from as_of on, else all that are known.
    """
    if labels:
        entities, label, treated, mapped = _experiment(tables, as_of, settings)
    else:
        entities, label, treated, mapped = asof.known(tables, as_of), None, None, None
    rows = asof.frame(
        tables, as_of, lookback_days=settings.lookback_days, horizon_days=settings.horizon_days, entities=entities
    )
    columns = {
        name: pa.nulls(len(entities), pa.int8()) if values is None else pa.array(values.astype(np.int8))
        for name, values in zip(LABELS, (label, treated), strict=True)
    }
    return splits.with_labels(rows, columns, mapped)


def _experiment(
    tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings
) -> tuple[pa.Array, np.ndarray, np.ndarray, pa.Array | None]:
    """Customers (sorted), outcome (N,) bool, treated (N,) bool, mapped part where given."""
    entities, treated, exposed_us = asof_exposures.first_exposures(
        tables["exposures"], as_of, settings.exposure_days, campaign=settings.campaign,
        treated=settings.treated_arms, control=settings.control_arms,
    )  # fmt: skip
    if as_of is not None:
        found = asof_exposures.responded(tables, settings.outcome, entities, exposed_us, settings.outcome_days)
        return entities, found, treated, None
    name = settings.outcome.removeprefix("outcome:")
    given, label, mapped = outcomes.yes_no(tables["outcomes"], name, None, settings.horizon_days)
    both = pc.is_in(given, value_set=entities)
    given, label = given.filter(both), label[both.to_numpy(zero_copy_only=False)]
    row = pc.index_in(given, value_set=entities).to_numpy(zero_copy_only=False)
    return given, label, treated[row], None if mapped is None else mapped.filter(both)


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """qini (area per treated customer), the average effect, the control arm's rate."""
    label, treated = labels_of(examples), labels_of(examples, TREATED)
    effect = figures.average_effect(treated, label)
    area = figures.qini_area(treated, label, predictions["uplift"])
    rate = float(label[treated == 0].mean())
    return {"qini": area, "average_effect": effect, "rate_control": rate, "rows": len(label)}


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """How scores become uplifts and probabilities, what an offer must bring, and whether the campaign was randomised.

    DataError when it was not, unless the settings say to warn.
    """
    label, treated = labels_of(validation), labels_of(validation, TREATED)
    drawn = _randomisation(train, validation, settings)
    raw = model.predict(validation)
    line = figures.effect_line(treated, label, raw["uplift"])
    effect = figures.average_effect(treated, label)
    return {
        "randomisation": drawn,
        "line": line,
        "calibration": calibration.fit(label[treated == 0], np.clip(raw["p_control"][treated == 0], 0.0, 1.0)),
        "worth": max(effect, 0.0) / 2 if settings.worth is None else settings.worth,
        "rate_control": float(label[treated == 0].mean()),
        "average_effect": effect,
        **reasons.basis(train, {}, LABELS),
    }


def _randomisation(train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """How well the arm of validation rows is told from their features, and the largest differences of the arms."""
    treated = labels_of(train, TREATED)
    rows = train.set_column(train.schema.get_field_index("label"), "label", pa.array(treated))
    propensity = Logistic(C=0.1).fit(rows, None, seed=0).predict(validation)["score"]
    told = dict(figures.assignment(labels_of(validation, TREATED), propensity))
    told["differences"] = figures.balance(train, treated, LABELS)
    what = (
        f"the arm of {validation.num_rows} validation rows can be told from their features (AUC {told['auc']:.3f},"
        f" interval {told['low']:.3f} to {told['high']:.3f}), expected about 0.5, as where chance decides"
    )
    if told["low"] > REFUSED_AUC and settings.if_not_random == "refuse":
        raise DataError(
            f"task {NAME}: {what}; uplift cannot be learned from a campaign that was not randomised: name one that was"
            " (campaign, treated_arms, control_arms), or set if_not_random: warn"
        )
    told["randomised"] = bool(told["low"] <= DOUBTED_AUC)
    if not told["randomised"]:
        log.warn("response.not_randomised", why=what)
    return told


def predict(
    model: Fitted,
    decision: Mapping[str, Any],
    examples: pa.Table,
    *,
    explain: bool = False,
    worth: float | None = None,
) -> pa.Table:
    """entity_id, as_of, uplift, p_treated, p_control, band, leave_alone, reasons (null without `explain`).

    leave_alone: the offer is expected to do harm. worth: uplift from which on it pays, instead of the decision's.
    """

    def uplifts(rows: pa.Table) -> np.ndarray:
        return _uplift(decision, model.predict(rows)["uplift"])

    raw = model.predict(examples)
    p_control = calibration.apply(decision["calibration"], np.clip(raw["p_control"], 0.0, 1.0))
    uplift = np.clip(_uplift(decision, raw["uplift"]), -p_control, 1.0 - p_control)
    told: list[list[str]] | list[None] = [None] * examples.num_rows
    if explain:
        told = reasons.explain(uplifts, examples, decision["reference"], decision["groups"])
    return pa.table(
        {
            "entity_id": examples["entity_id"],
            "as_of": examples["as_of"],
            "uplift": pa.array(uplift, pa.float64()),
            "p_treated": pa.array(p_control + uplift, pa.float64()),
            "p_control": pa.array(p_control, pa.float64()),
            "band": pa.array(_bands(decision, uplift, p_control, worth), pa.string()),
            "leave_alone": pa.array(uplift < 0),
            "reasons": pa.array(told, pa.list_(pa.string())),
        }
    )


def _uplift(decision: Mapping[str, Any], raw: np.ndarray) -> np.ndarray:
    return decision["line"]["intercept"] + decision["line"]["slope"] * raw


def _bands(decision: Mapping[str, Any], uplift: np.ndarray, p_control: np.ndarray, worth: float | None) -> np.ndarray:
    """Harmed by it; worth it; else, by what they do without it, sure things (more than most) and lost causes."""
    least = decision["worth"] if worth is None else worth
    names = np.where(p_control >= decision["rate_control"], "sure thing", "lost cause").astype(object)
    names[uplift >= max(least, 0.0)] = "persuadable"
    names[uplift < 0] = "do not disturb"
    return names


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Qini area with interval and curve, uplift by decile, what was observed in each band, balance of the arms."""
    label, treated = labels_of(test), labels_of(test, TREATED)
    raw = model.predict(test)
    answers = predict(model, decision, test)
    band = answers["band"].to_numpy(zero_copy_only=False)
    uplift = answers["uplift"].to_numpy()
    alone = answers["leave_alone"].to_numpy(zero_copy_only=False)
    p_control = answers["p_control"].to_numpy()[treated == 0]
    return {
        **score(test, raw),
        "qini_interval": figures.intervals(treated, label, raw["uplift"]),
        "ece_control": metrics.expected_calibration_error(label[treated == 0], p_control),
        "deciles": figures.by_decile(treated, label, uplift),
        "curves": {"qini": figures.qini_curve(treated, label, raw["uplift"])},
        "bands": {name: _observed(treated, label, uplift, band == name) for name in BANDS},
        "leave_alone": _observed(treated, label, uplift, alone),
        "randomisation": decision["randomisation"],
    }


def _observed(treated: np.ndarray, label: np.ndarray, uplift: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Rows, the mean uplift given to them and the difference of the arms that came (null where an arm has none)."""
    arms = [label[mask & (treated == arm)] for arm in (1, 0)]
    seen = float(arms[0].mean() - arms[1].mean()) if len(arms[0]) and len(arms[1]) else None
    rows = int(mask.sum())
    return {"rows": rows, "mean_uplift": float(uplift[mask].mean()) if rows else None, "observed_uplift": seen}
