"""From which probability on the answer is yes: by F1, by what mistakes cost, or by how many one can take care of.

A threshold is one of the observed scores of validation rows; positive = score >= threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from crmray.config import Part
from crmray.evaluate.metrics import checked, f1_threshold


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
