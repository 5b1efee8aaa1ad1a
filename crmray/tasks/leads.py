"""Lead scoring: how likely an open lead is to convert within the horizon, and why.

Two labels. `converted`: a lead that is open at as_of (created in the lookback, not converted before) is converted in
[as_of, as_of + horizon_days). `outcome:<name>`: a given label of the outcomes table, 0 or 1, whose entity_id is the
lead's id. With `split: part` the rows have no date: they are split by the mapped `split` column or by a hash, and the
features are the leads' attributes.

Leads are modified when they convert, so attributes are those known at as_of (data/asof_leads.py). What a lead is and
what comes of it drifts: candidates are compared out of time, and the report says which features moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from crmray.data import asof_leads, outcomes, splits
from crmray.evaluate import decide, drift, judge, reasons
from crmray.evaluate.calibration import BAND_MEANING
from crmray.models.blend import Blend
from crmray.models.boosting import RecentLightGBM
from crmray.models.labels import labels_of
from crmray.models.linear import RecentLogistic
from crmray.models.rates import SourceRate
from crmray.models.tabular_net import TabularNet
from crmray.models.trees import DecisionTree, RandomForest
from crmray.tasks.contract import REASONS, EntityRequest, Fitted, Needs

NAME, ROUTE, ENTITY = "leads", "/v1/lead-score", "lead"
FEATURES_VERSION = f"1.{asof_leads.FEATURES_VERSION}"
LABELS = ("label",)
METRIC: str = "auc"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {
    candidate.NAME: candidate
    for candidate in (TabularNet, RecentLogistic, DecisionTree, RandomForest, RecentLightGBM, SourceRate)
}
BLEND = Blend

GROUPS: dict[str, tuple[str, ...]] = {
    "age of the lead": ("lead_age_",),
    "where the lead comes from": ("lead_source",),
    "visits": ("visit_", "trend_visits"),
    "reaction to mail": ("mail_", "exposure_", "trend_mail"),
    "calls, mails and tasks": ("contact_", "trend_contacts"),
    "ratings": ("rating_",),
}
"""words for reasons -> beginnings of feature names; attributes stand for themselves"""


class Settings(splits.TimeSettings, decide.Decided):
    """Business facts of lead scoring."""

    label: Annotated[str, Field(pattern=r"^(converted|outcome:.+)$")] = "converted"
    """what is predicted: converted | outcome:<name>"""
    split: Literal["time", "part"] = "time"
    """by date, or by the mapped part of each outcome: for labels without a date"""
    num_snapshots: Annotated[int, Field(ge=1, le=120)] = 26
    """training dates whose label window ends before the validation date: many, since few leads convert at a time"""
    snapshot_every_days: Annotated[int, Field(ge=1, le=3650)] = 14
    """distance of two training dates, in days"""

    @model_validator(mode="after")
    def _part_needs_outcomes(self) -> Settings:
        if self.split == "part" and self.label == "converted":
            raise ValueError("split: got part with label converted, expected outcome:<name>: a conversion has a date")
        return self

    @property
    def uses_time(self) -> bool:
        """False where rows are split by part."""
        return self.split == "time"


class Request(EntityRequest):
    """Body of POST /v1/lead-score: exactly one of `id`, `ids`, `lead`."""

    SUBJECTS = ("id", "ids", "lead")

    customer: None = Field(None, exclude=True, description="not used: a lead is described under `lead`")
    lead: dict[str, Any] | None = Field(
        None, description="a lead not in the data: columns of the leads table; created_at is now where it is left out"
    )
    events: dict[str, list[dict[str, Any]]] | None = Field(
        None, description="with `lead`: canonical table -> rows of its visits, mails and calls"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="probability from which on will_convert is true; default: chosen on validation"
    )

    @model_validator(mode="after")
    def _events_of_a_lead(self) -> Request:
        if self.events is not None and self.lead is None:
            raise ValueError("events: got events without lead, expected them with a lead, or recent_events with one id")
        return self

    @property
    def described(self) -> dict[str, list[dict[str, Any]]] | None:
        """The lead and its events as rows of canonical tables."""
        if self.lead is None:
            return None
        created = {"created_at": datetime.now(timezone.utc).isoformat()}
        return {**(self.events or {}), "leads": [{**created, **self.lead}]}

    def options(self) -> dict[str, Any]:
        """What `predict` takes beside the rows."""
        return {"threshold": self.threshold}


class Prediction(BaseModel):
    """One lead's score."""

    entity_id: str
    as_of: datetime | None
    probability: float = Field(description="of converting within the horizon, calibrated")
    band: Literal["low", "medium", "high"] = Field(description=BAND_MEANING)
    will_convert: bool = Field(description="whether the probability is at least the threshold")
    reasons: list[str] | None = Field(None, description=REASONS)


class Response(BaseModel):
    """Answer of POST /v1/lead-score."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """The leads, and what the label needs; events of the lead before it converts help."""
    required: dict[str, tuple[str, ...]] = {"leads": ("lead_id", "created_at")}
    if settings.label == "converted":
        required = {"leads": ("lead_id", "created_at", "converted_at")}
    else:
        required |= {"outcomes": ("entity_id", "name", "value")}
    useful = {
        "leads": ("source", "industry", "country", "status", "modified_at"),
        "engagement": ("kind", "seconds"),
        "interactions": ("channel", "direction", "rating", "text", "closed_at"),
        "exposures": (),
    }
    return Needs(required=required, useful=useful)


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per lead of the population at as_of: keys, `label`, features.

    label: int8, 1 = converted, null without `labels`. Features read rows strictly before as_of.
    """
    entities, label, mapped = _population(tables, as_of, settings, labels)
    rows = asof_leads.frame(
        tables, as_of, lookback_days=settings.lookback_days, horizon_days=settings.horizon_days, entities=entities
    )
    values = pa.array(label.astype(np.int8)) if label is not None else pa.nulls(len(entities), pa.int8())
    return splits.with_labels(rows, {LABELS[0]: values}, mapped)


def _population(
    tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, labels: bool
) -> tuple[pa.Array, np.ndarray | None, pa.Array | None]:
    """Leads (sorted), their labels (N,) bool, their mapped part where given."""
    leads = tables["leads"]
    entities = asof_leads.open_leads(leads, as_of, settings.lookback_days)
    if not labels:
        return entities, None, None
    if settings.label == "converted":
        assert as_of is not None
        return entities, asof_leads.converted_in(leads, entities, as_of, settings.horizon_days), None
    name = settings.label.removeprefix("outcome:")
    given, label, mapped = outcomes.yes_no(tables["outcomes"], name, as_of, settings.horizon_days)
    known = pc.is_in(given, value_set=entities)
    part = None if mapped is None else mapped.filter(known)
    return given.filter(known), label[known.to_numpy(zero_copy_only=False)], part


score, blend, shipped = decide.score, decide.blend, decide.shipped


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """Calibration, threshold and bands from validation; what is typical, and how the features lie, in training."""
    profile = drift.profile(train, LABELS)
    return {
        **decide.fit(model, train, validation, settings.threshold),
        **reasons.basis(train, GROUPS, LABELS),
        "drift": {
            "profile": profile,
            "rate": {"train": float(labels_of(train).mean()), "validation": float(labels_of(validation).mean())},
            "validation": drift.summary(profile, validation),
        },
    }


def predict(
    model: Fitted,
    decision: Mapping[str, Any],
    examples: pa.Table,
    *,
    explain: bool = False,
    threshold: float | None = None,
) -> pa.Table:
    """entity_id, as_of, probability (calibrated), band, will_convert, reasons (list<string>, null without `explain`).

    threshold: instead of the one chosen on validation.
    """
    return decide.answers(model, decision, examples, "will_convert", explain=explain, threshold=threshold)


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures of the calibrated probabilities: decide.judged, by segment too, and how far rows drifted."""
    before = decision["drift"]
    return {
        **decide.judged(decision, predict(model, decision, test), test, judge.segments(test, LABELS)),
        "drift": {
            "rate": {**before["rate"], "test": float(labels_of(test).mean())},
            "validation": before["validation"],
            "test": drift.summary(before["profile"], test),
        },
    }
