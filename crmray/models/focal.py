"""Focal loss (Lin et al. 2017) for a yes/no label, and the way back from what it is minimised by to a probability.

FL = -(1 - p_t)^gamma log p_t, with p_t the probability given to what came: easy rows weigh little, which helps where
one class is rare. What minimises it is no probability: q = P(yes) is recovered from its minimiser p by the closed form
of Charoenphakdee et al. (2021), with g = gamma: q = h(p) / (h(p) + h(1 - p)),
h(v) = v / ((1 - v)^g - g (1 - v)^(g - 1) v log v). It increases and leaves 0.5 alone, so ranks stay. Shapes: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from crmray.models.tabular import sigmoid

if TYPE_CHECKING:
    import lightgbm
    import torch

    Array = TypeVar("Array", np.ndarray, torch.Tensor)

EDGE = 1e-9
"""probabilities are kept this far from 0 and 1"""
LEAST_CURVATURE = 1e-6
"""of a row, in a Newton step: the loss is not convex"""


def recovered(probability: Array, gamma: float) -> Array:
    """P(yes), float64 (N,), from the minimiser of the focal loss, a sigmoid (N,): an array or a tensor."""
    double: Any = probability.astype(np.float64) if isinstance(probability, np.ndarray) else probability.double()
    p = double.clip(EDGE, 1.0 - EDGE)
    yes, no = _h(p, gamma), _h(1.0 - p, gamma)
    return yes / (yes + no)


def _h(v: Any, gamma: float) -> Any:
    log = np.log(v) if isinstance(v, np.ndarray) else v.log()
    return v / ((1.0 - v) ** gamma - gamma * (1.0 - v) ** (gamma - 1.0) * v * log)


def derivatives(logits: np.ndarray, labels: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative (N,) of the loss by the logit; the second is kept above LEAST_CURVATURE."""
    sign = 2.0 * labels - 1.0
    given = np.clip(0.5 * (1.0 + np.tanh(0.5 * sign * logits)), EDGE, 1.0 - EDGE)  # the sigmoid, without overflow
    rest, log = 1.0 - given, np.log(given)
    inner = gamma * given * log - rest
    first = sign * rest**gamma * inner
    second = given * rest**gamma * (rest * (gamma * log + gamma + 1.0) - gamma * inner)
    return first, np.maximum(second, LEAST_CURVATURE)


@dataclass(frozen=True, kw_only=True)
class Focal:
    """Focal loss as LightGBM takes a loss of one's own; its trees add up to a logit above `start`."""

    gamma: float
    """Exponent."""
    start: float
    """Logit before the first tree: LightGBM finds none for a loss that it does not know, and keeps none."""

    @classmethod
    def start_of(cls, labels: np.ndarray, gamma: float) -> Focal:
        """Starting from the log odds of the training labels (N,)."""
        return cls(gamma=gamma, start=float(np.log(labels.mean() / (1.0 - labels.mean()))))

    def objective(self, logits: np.ndarray, data: lightgbm.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian (N,)."""
        return derivatives(logits, np.asarray(data.get_label()), self.gamma)

    def logloss(self, logits: np.ndarray, data: lightgbm.Dataset) -> tuple[str, float, bool]:
        """Name, log-loss of the recovered probabilities, and that more is not better."""
        given = np.abs(1.0 - np.asarray(data.get_label()) - recovered(sigmoid(logits), self.gamma))
        return "binary_logloss", float(-np.log(np.clip(given, EDGE, None)).mean()), False
