"""From a model's score to an answer of yes or no: a calibrated probability, and from which one on it is yes: by F1, by
what mistakes cost, or by how many one can take care of.

A threshold is one of the observed probabilities of validation rows; positive = probability >= threshold. N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from crmray.config import Part
from crmray.evaluate import calibration, judge, metrics, reasons
from crmray.evaluate.metrics import checked, f1_threshold
from crmray.models.blend import Blend, best_blend
from crmray.models.labels import labels_of, sampled
from crmray.models.recent import newest

MAX_LEVEL_ROWS = 20_000
"""training rows by which a model's level is told"""


class Cost(Part):
    """What one mistake costs, in any one unit."""

    false_positive: Annotated[float, Field(gt=0)]
    """acting on a row that needed nothing: the call, the discount"""
    false_negative: Annotated[float, Field(gt=0)]
    """leaving a row alone that needed it: the customer lost"""


class ByCost(Part):
    """The threshold with the least cost on validation."""

    cost: Cost
    """of the two kinds of mistake"""


class ByCapacity(Part):
    """The threshold from which on so many rows lie."""

    capacity: Annotated[int, Field(ge=1)]
    """rows of one date that can be acted on, as in "we can call 500 customers a week" """


How = Literal["f1"] | ByCost | ByCapacity


class Decided(Part):
    """What a task with a yes/no answer adds to its Settings."""

    threshold: How = "f1"
    """f1, or cost: {false_positive: 1, false_negative: 5}, or capacity: 500"""

    @field_validator("threshold", mode="before")
    @classmethod
    def _one_message(cls, value: Any) -> Any:
        return _rule(value)


def threshold(label: np.ndarray, probability: np.ndarray, how: How | Mapping[str, Any] = "f1") -> float:
    """The threshold for labels (N,) of 0 and 1 and probabilities (N,) of validation rows.

    f1: the score with the highest F1. cost: the score with the least total cost, just above the highest score where
    acting on nobody costs least. capacity: the lowest score with at most so many rows at or above it (the rows being
    as many as one decides on at a time); the highest score where already its ties are more. Of equal ones the
    highest. ValueError for a `how` that is none of these.
    """
    label, probability = checked(label, probability)
    rule = _rule(how)
    if isinstance(rule, ByCost):
        return _cheapest(label, probability, rule.cost)
    if isinstance(rule, ByCapacity):
        values, rows = np.unique(-probability, return_counts=True)  # highest first
        fits = int((np.cumsum(rows) <= rule.capacity).sum())
        return float(-values[max(fits - 1, 0)])
    return f1_threshold(label, probability)


def _rule(how: Any) -> How:
    try:
        return TypeAdapter(How).validate_python(how)
    except ValidationError:  # pydantic would tell what is wrong with each of the three
        raise ValueError(
            f"got {how!r}, expected f1, {{cost: {{false_positive: 1, false_negative: 5}}}} with numbers above 0, or "
            "{capacity: 500} with a whole number"
        ) from None


def _cheapest(label: np.ndarray, probability: np.ndarray, cost: Cost) -> float:
    values, group = np.unique(-probability, return_inverse=True)  # highest first
    hits = np.cumsum(np.bincount(group, label))
    false_alarms = np.cumsum(np.bincount(group, 1.0 - label))
    totals = cost.false_positive * false_alarms + cost.false_negative * (label.sum() - hits)
    nobody = cost.false_negative * label.sum()
    if nobody <= totals.min():
        return float(np.nextafter(-values[0], np.inf))
    return float(-values[np.argmin(totals)])


# -- what tasks with a yes/no answer keep of a model, and say with it --------------------------------------------------


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """auc, ap, logloss, brier of a candidate's scores."""
    return metrics.binary(labels_of(examples), predictions["score"])


def blend(models: Mapping[str, Any], validation: pa.Table) -> Blend | None:
    """The average of the best few families, where validation prefers its AUC to the best single one's."""
    label = labels_of(validation)
    return best_blend(models, validation, lambda told: metrics.auc(label, told["score"]))


def fit(model: Any, train: pa.Table, validation: pa.Table, how: Any = "f1") -> dict[str, Any]:
    """calibration, threshold and bands of the scores of validation rows, as JSON; calibration_refitted: of the model
    when it is fitted again with these rows.

    train: the rows that the model, or each member of a blend, was given to be fitted on.
    """
    label, scores = labels_of(validation), model.predict(validation)["score"]
    curve = calibration.fit(label, scores)
    mapped = curve["method"] != "none"
    after = calibration.refitted(curve, scores, _own_level(model, train, validation)) if mapped else curve
    probability = calibration.apply(curve, scores)
    chosen = threshold(label, probability, how)
    bands = calibration.fit_bands(label, probability, high=chosen)
    return {"calibration": curve, "calibration_refitted": after, "threshold": chosen, "bands": bands}


def _own_level(model: Any, train: pa.Table, validation: pa.Table) -> float:
    """calibration.own_level of the validation rows, of a blend the average of its members': each may have been fitted
    on other rows. A model that used the newest of `train` alone says of how many."""
    if hasattr(model, "members"):
        return sum(model.weights[name] * _own_level(one, train, validation) for name, one in model.members.items())
    rows = newest(train, getattr(model, "newest_share", 1.0))
    own = sampled(rows, MAX_LEVEL_ROWS, seed=0)
    held = model.predict(validation)["score"]
    return calibration.own_level(labels_of(own), model.predict(own)["score"], held)


def shipped(model: Any, decision: Mapping[str, Any], validation: pa.Table) -> dict[str, Any]:
    """The decision for the model that was fitted again with the validation rows: see calibration.refitted."""
    return {**decision, "calibration": decision["calibration_refitted"]}


def probabilities(model: Any, decision: Mapping[str, Any], rows: pa.Table) -> np.ndarray:
    """(N,) calibrated."""
    return calibration.apply(decision["calibration"], model.predict(rows)["score"])


def answers(
    model: Any, decision: Mapping[str, Any], examples: pa.Table, said: str, *, explain: bool, threshold: float | None
) -> pa.Table:
    """entity_id, as_of, probability, band, `said` (bool), reasons (list<string>, null without `explain`).

    decision: of `fit`, with what `reasons.basis` gives. threshold: instead of the decision's.
    """
    probability = probabilities(model, decision, examples)
    told: list[list[str]] | list[None] = [None] * examples.num_rows
    if explain:
        told = reasons.explain(
            lambda rows: probabilities(model, decision, rows), examples, decision["reference"], decision["groups"]
        )
    return pa.table(
        {
            "entity_id": examples["entity_id"],
            "as_of": examples["as_of"],
            "probability": pa.array(probability, pa.float64()),
            "band": pa.array(calibration.bands(probability, decision["bands"]), pa.string()),
            said: pa.array(probability >= (decision["threshold"] if threshold is None else threshold)),
            "reasons": pa.array(told, pa.list_(pa.string())),
        }
    )


def judged(
    decision: Mapping[str, Any], said: pa.Table, test: pa.Table, groups: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """judge.binary of what `answers` said of the test rows, and its auc_interval; judge.bands by band.

    groups: name -> mask (N,) of rows to look at apart.
    """
    label, probability = labels_of(test), said["probability"].to_numpy()
    figures = judge.binary(label, probability, decision["threshold"], groups=groups)
    by_band = judge.bands(label, probability, said["band"].to_numpy(zero_copy_only=False), calibration.BANDS)
    return {**figures, "auc_interval": figures["intervals"]["auc"], "bands": by_band}
