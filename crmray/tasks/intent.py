"""Inquiry intent: which kind of request a case or mail is, and what was answered to the most similar solved one.

Label: the reason that the org gives its cases (`reason`), or another column of the interactions (`attribute:<column>`);
its classes come from the data. Below a confidence chosen on validation the answer is “don't know”: intent is null. The
suggested answer is the org's own reply to the solved inquiry of the same intent whose words are most alike; the bundle
holds the replies, redacted and without greeting, end and numbers, with the ids of whom they went to, so that forgetting
one of them retires it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from crmray import log
from crmray.data import asof_texts
from crmray.data.asof_texts import TextSettings, dates
from crmray.evaluate import judge, kinds
from crmray.models import text_calibration, text_encoder, text_replies
from crmray.models.labels import class_scores
from crmray.models.text_classes import ClassBlend, Majority, best_blend
from crmray.models.text_cnn import TextCNN
from crmray.models.text_tfidf import TfidfLogistic, TfidfSVC
from crmray.tasks.contract import Fitted, Needs
from crmray.tasks.text_request import TextRequest

__all__ = ["dates"]

NAME, ROUTE, ENTITY = "intent", "/v1/intent", "interaction"
FEATURES_VERSION = "3"
LABELS = ("label",)
METRIC: str = "macro_f1"
MODE: Literal["max", "min"] = "max"
CANDIDATES = {candidate.NAME: candidate for candidate in (TextCNN, TfidfLogistic, TfidfSVC, Majority)}
BLEND = ClassBlend
NUM_ALTERNATIVES = 3
LEAST_ANSWERED = 20
"""validation rows above a threshold that say something about it"""
LEAST_SIMILARITY = 0.1
"""cosine of the words of two texts, below which an answer to the one says nothing to the other"""


class Settings(TextSettings):
    """Business facts of the intent."""

    label: Annotated[str, Field(pattern=r"^(reason|attribute:.+)$")] = "reason"
    """what an inquiry's kind is: reason | attribute:<column of interactions>"""
    least_accuracy: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """share of the answered inquiries whose intent has to be right; the others get “don't know”"""
    answered_within_days: Annotated[int, Field(ge=1, le=365)] = 14
    """days after an inquiry in which an outbound text is its answer"""


class Request(TextRequest):
    """Body of POST /v1/intent."""


class Alternative(BaseModel):
    """One possible kind of request."""

    intent: str
    probability: float


class Prediction(BaseModel):
    """What one text asks for."""

    entity_id: str
    as_of: datetime | None
    intent: str | None
    confidence: float
    alternatives: list[Alternative]
    suggested_answer: str | None
    similarity: float | None


class Response(BaseModel):
    """Answer of POST /v1/intent."""

    version: str
    predictions: list[Prediction]


def _column(settings: Settings) -> str:
    return settings.label.removeprefix("attribute:")


def needs(settings: Settings) -> Needs:
    """Texts and their kind; subject, direction and when a case was closed help."""
    return Needs(
        required={"interactions": ("entity_id", "occurred_at", "text", _column(settings))},
        useful={"interactions": ("interaction_id", "direction", "subject", "channel", "closed_at")},
    )


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per interaction that a customer wrote: keys, label, customer_id, text, text_answer and its id
    text_answer_id, and text_embedding with an encoder.

    label: string, null without `labels`; text_answer: the org's reply before as_of, null where the inquiry is not
    solved by then. See data/asof_texts for which rows belong to a date.
    """
    table = tables["interactions"]
    label_of = asof_texts.attribute(_column(settings)) if labels else None
    rows = asof_texts.rows(tables, as_of, settings, label_of)
    answer, answer_id = asof_texts.replies(table, rows["place"].to_numpy(), as_of, settings.answered_within_days)
    rows = rows.drop_columns(["place"]).append_column("text_answer", answer).append_column("text_answer_id", answer_id)
    return text_encoder.embedded(rows, settings.encoder)


score = kinds.class_figures


def blend(models: Mapping[str, Fitted], validation: pa.Table) -> Fitted | None:
    """The average of the best two or three families, where validation prefers it to the best single one."""
    return best_blend(models, validation, lambda told: score(validation, told)[METRIC])


def fixed(settings: Settings) -> dict[str, Any]:
    """The encoder of the org file is that of the network too."""
    return {f"{TextCNN.NAME}.encoder": settings.encoder} if settings.encoder else {}


def finalize(model: Fitted, train: pa.Table, validation: pa.Table, settings: Settings) -> dict[str, Any]:
    """The calibration and the least confidence from validation rows; solved inquiries with their answers from training
    rows."""
    label, probability, _ = kinds.coded(validation, model.predict(validation))
    calibration = text_calibration.fit(label, probability)
    calibrated = text_calibration.calibrated(probability, calibration)
    right, confidence = calibrated.argmax(1) == label, calibrated.max(1)
    return {
        "calibration": calibration,
        "least_confidence": _least_confidence(right, confidence, settings.least_accuracy),
        "solved": text_replies.solved(train),
    }


def without(decision: Mapping[str, Any], people: Collection[str]) -> dict[str, Any]:
    """The decision but for the solved inquiries of these customers, who may not be profiled."""
    return {**decision, "solved": text_replies.without(decision["solved"], people)}


def _least_confidence(right: np.ndarray, confidence: np.ndarray, least_accuracy: float) -> float:
    """The lowest confidence at and above which so large a share of the rows is right; 1 where there is none."""
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(confidence[order]) < 0, True)  # rows of one confidence are answered together
    enough = (share >= least_accuracy) & last & (np.arange(len(order)) + 1 >= min(LEAST_ANSWERED, len(order)))
    if not enough.any():
        log.warn("intent.never_sure", least_accuracy=least_accuracy, accuracy=round(float(right.mean()), 4))
        return 1.0
    return float(confidence[order][np.flatnonzero(enough)[-1]])


def predict(model: Fitted, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False) -> pa.Table:
    """entity_id, as_of, intent (null: don't know), confidence, alternatives, suggested_answer, similarity.

    alternatives: list<struct<intent, probability>>, the most probable first; suggested_answer is null where the intent
    is, and where no solved inquiry is alike.
    """
    classes, probability = class_scores(model.predict(examples))
    probability = text_calibration.calibrated(probability, decision["calibration"])
    order = np.argsort(-probability, axis=1, kind="stable")[:, :NUM_ALTERNATIVES]
    likely, names = np.take_along_axis(probability, order, axis=1), np.array(classes, object)[order]
    intent, answer, similarity = _said(decision, examples, classes, probability)
    told = [
        [{"intent": name, "probability": float(p)} for name, p in zip(*pair, strict=True)]
        for pair in zip(names, likely, strict=True)
    ]
    alternative = pa.struct({"intent": pa.string(), "probability": pa.float64()})
    return pa.table(
        {
            "entity_id": examples["entity_id"],
            "as_of": examples["as_of"],
            "intent": pa.array(intent, pa.string()),
            "confidence": likely[:, 0],
            "alternatives": pa.array(told, pa.list_(alternative)),
            "suggested_answer": pa.array(answer, pa.string()),
            "similarity": pa.array(similarity, pa.float64(), from_pandas=True),
        }
    )


def _said(
    decision: Mapping[str, Any], examples: pa.Table, classes: Sequence[str], probability: np.ndarray
) -> tuple[np.ndarray, list[str | None], np.ndarray]:
    """Of each row from calibrated probabilities (N, K) the intent, None below the least confidence; the suggested
    answer; its similarity."""
    intent = np.array(classes, object)[probability.argmax(1)]
    intent[probability.max(1) < decision["least_confidence"]] = None
    return intent, *text_replies.nearest(decision["solved"], examples["text"].to_pylist(), intent, LEAST_SIMILARITY)


def evaluate(model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Settings) -> dict[str, Any]:
    """Test figures of the calibrated probabilities, and `answered`: how often it is sure, and right then."""
    label, raw, classes = kinds.coded(test, model.predict(test))
    probability = text_calibration.calibrated(raw, decision["calibration"])
    intent, suggested, _ = _said(decision, test, classes, probability)
    right, sure = probability.argmax(1) == label, np.array([one is not None for one in intent], bool)
    return {
        **judge.classes(label, probability, classes),
        "answered": {
            "share": float(sure.mean()),
            "accuracy": float(right[sure].mean()) if sure.any() else None,
            "least_confidence": decision["least_confidence"],
            "share_with_suggested_answer": float(np.mean([one is not None for one in suggested])),
        },
    }
