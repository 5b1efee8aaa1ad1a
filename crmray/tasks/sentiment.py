"""Sentiment: whether what a customer wrote is negative, neutral or positive, and what the dissatisfied speak of.

Labels. `rating`: the rating that came with the text or its case (at most negative_to: negative, at least positive_from:
positive, between: neutral). `attribute:<column>`: a column of the interactions that says negative, neutral or positive.
`outcome:<name>`: a given outcome of the customer, below 0, 0 or above 0.

Each row is one interaction that a customer wrote; answers are found by the interaction's id. `score` = P(positive) -
P(negative); its course over a customer's interactions feeds the other tasks (data/asof_sentiment).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from crmray.data import asof_texts
from crmray.data.asof_texts import TextSettings, dates
from crmray.errors import DataError
from crmray.evaluate import aspects, judge, kinds
from crmray.models import text_calibration, text_encoder
from crmray.models.labels import class_scores
from crmray.models.text_classes import ClassBlend, Majority, best_blend
from crmray.models.text_cnn import TextCNN
from crmray.models.text_tfidf import TfidfLogistic, TfidfSVC
from crmray.tasks.contract import Fitted, Needs
from crmray.tasks.text_request import TextRequest

__all__ = ["dates"]

NAME, ROUTE, ENTITY = "sentiment", "/v1/sentiment", "interaction"
FEATURES_VERSION = "2"
LABELS = ("label",)
METRIC: str = "macro_f1"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {candidate.NAME: candidate for candidate in (TextCNN, TfidfLogistic, TfidfSVC, Majority)}
BLEND = ClassBlend
CLASSES = ("negative", "neutral", "positive")


class Settings(TextSettings):
    """Business facts of sentiment."""

    label: Annotated[str, Field(pattern=r"^(rating|attribute:.+|outcome:.+)$")] = "rating"
    """what the sentiment is learned from: rating | attribute:<column of interactions> | outcome:<name>"""
    negative_to: float = 2.0
    """highest rating that is negative"""
    positive_from: float = 4.0
    """lowest rating that is positive"""

    @model_validator(mode="after")
    def _apart(self) -> Settings:
        if not self.negative_to < self.positive_from:
            raise ValueError(
                f"got negative_to {self.negative_to:g} and positive_from {self.positive_from:g}, expected the first to"
                " be less"
            )
        return self


class Request(TextRequest):
    """Body of POST /v1/sentiment."""


class Prediction(BaseModel):
    """What one text says."""

    entity_id: str
    as_of: datetime | None
    label: Literal["negative", "neutral", "positive"]
    confidence: float
    score: float
    negative: float
    neutral: float
    positive: float


class Response(BaseModel):
    """Answer of POST /v1/sentiment."""

    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    """Texts and their label; who wrote them and under which subject helps."""
    columns = ["entity_id", "occurred_at", "text"]
    required: dict[str, tuple[str, ...]] = {}
    if settings.label == "rating":
        columns.append("rating")
    elif settings.label.startswith("attribute:"):
        columns.append(settings.label.removeprefix("attribute:"))
    else:
        required["outcomes"] = ("entity_id", "name", "value")
    required["interactions"] = tuple(columns)
    return Needs(required=required, useful={"interactions": ("interaction_id", "direction", "subject", "channel")})


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per interaction that a customer wrote: keys, label, customer_id, text, text_embedding with an encoder.

    label: string, one of CLASSES; null without `labels`. See data/asof_texts for which rows belong to a date.
    """
    until = asof_texts.known_by(as_of, settings)
    rows = asof_texts.rows(tables, as_of, settings, _label_of(tables, until, settings) if labels else None)
    return text_encoder.embedded(rows.drop_columns(["place"]), settings.encoder)


def _label_of(
    tables: Mapping[str, pa.Table], until: pa.Scalar | None, settings: Settings
) -> Callable[[pa.Table], pa.Array]:
    """Interactions -> their class, null where it is not known, or not before `until`."""
    kind, _, name = settings.label.partition(":")
    if kind == "attribute":
        return lambda table: _named(asof_texts.attribute(name)(table), name)
    if kind == "outcome":
        return asof_texts.outcome(name, tables["outcomes"], until, partial(_signed, low=-1e-9, high=1e-9))
    return partial(_rated, until=until, low=settings.negative_to, high=settings.positive_from)


def _rated(table: pa.Table, *, until: pa.Scalar | None, low: float, high: float) -> pa.Array:
    """Class of the rating, which is given when a case is closed."""
    rating = table["rating"]
    if until is not None and "closed_at" in table.column_names:
        rating = pc.if_else(pc.less(table["closed_at"], until).fill_null(True), rating, None)
    return _signed(rating.combine_chunks(), low=low, high=high)


def _signed(values: pa.Array, *, low: float, high: float) -> pa.Array:
    """Class of each number: at most low negative, at least high positive; null stays."""
    code = pc.add(pc.cast(pc.greater(values, low), pa.int8()), pc.cast(pc.greater_equal(values, high), pa.int8()))
    return pa.array(CLASSES).take(code)


def _named(values: pa.Array, name: str) -> pa.Array:
    """The classes that an attribute names, in any case."""
    values = pc.utf8_lower(values)
    unknown = pc.unique(values.filter(pc.invert(pc.is_in(values, value_set=pa.array([*CLASSES, None], pa.string())))))
    if len(unknown):
        raise DataError(
            f"table interactions: column {name!r} holds {len(unknown)} values other than {', '.join(CLASSES)}; expected"
            " only these: map another column, or derive one"
        )
    return values


score = kinds.class_figures


def blend(models: Mapping[str, Fitted], validation: pa.Table) -> Fitted | None:
    """The average of the best two or three families, where validation prefers it to the best single one."""
    return best_blend(models, validation, lambda told: score(validation, told)[METRIC])


def fixed(settings: Settings) -> dict[str, Any]:
    """The encoder of the org file is that of the network too."""
    return {f"{TextCNN.NAME}.encoder": settings.encoder} if settings.encoder else {}


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """What calibrates the probabilities, from validation rows."""
    label, probability, _ = kinds.coded(validation, model.predict(validation))
    return {"calibration": text_calibration.fit(label, probability)}


def predict(model: Fitted, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False) -> pa.Table:
    """entity_id, as_of, label, confidence, score (-1..1), and the calibrated probability of each of CLASSES."""
    probability = _probability(model, decision, examples)
    said = probability.argmax(1)
    return pa.table(
        {
            "entity_id": examples["entity_id"],
            "as_of": examples["as_of"],
            "label": pa.array(CLASSES).take(pa.array(said)),
            "confidence": probability[np.arange(len(said)), said],
            "score": probability[:, 2] - probability[:, 0],
            **{name: probability[:, k] for k, name in enumerate(CLASSES)},
        }
    )


def _probability(model: Fitted, decision: Mapping[str, Any], examples: pa.Table) -> np.ndarray:
    """float64 (N, 3), calibrated; 0 for a class that the model does not know."""
    classes, probability = class_scores(model.predict(examples))
    known = text_calibration.calibrated(probability, decision["calibration"])
    whole = np.zeros((len(known), len(CLASSES)))
    whole[:, [CLASSES.index(name) for name in classes]] = known
    return whole


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures of the calibrated probabilities, and `aspects`: what the dissatisfied speak of."""
    probability = _probability(model, decision, test)
    label = pc.index_in(test["label"], value_set=pa.array(CLASSES)).to_numpy().astype(np.int64)
    negative = probability.argmax(1) == 0
    satisfaction = probability[:, 2] - probability[:, 0]
    texts, customers = test["text"].to_pylist(), test["customer_id"].to_pylist()
    return {
        **judge.classes(label, probability, CLASSES),
        "aspects": aspects.of_texts(texts, customers, negative, satisfaction),
    }


def files(decision: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, bytes]:
    """aspects.csv: the aspects for people."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(("aspect", "texts", "customers", "mean_score", "log_odds_z", "phrases"))
    for one in figures["aspects"]:
        writer.writerow((*list(one.values())[:-1], "; ".join(one["phrases"])))
    return {"aspects.csv": made.getvalue().encode()}
