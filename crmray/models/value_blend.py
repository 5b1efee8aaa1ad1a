"""The plain average of several models of customer value, each brought to the same totals first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.models.blend import Members, Metric, best_together
from crmray.models.value_targets import OUTPUTS, targets_of

MOST_MEMBERS = 4


@dataclass(frozen=True, kw_only=True)
class ValueBlend(Members):
    """Average of the members' outputs; purchases and spend after each member's factor."""

    factors: Mapping[str, Mapping[str, float]]
    """Member -> output -> what it is multiplied by, so that its total on validation is the true one."""

    def __post_init__(self):
        if set(self.members) != set(self.factors) or not self.members:
            raise ValueError(
                f"got members {sorted(self.members)} and factors of {sorted(self.factors)}, expected one each"
            )

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """OUTPUTS."""
        return average({name: member.predict(examples) for name, member in self.members.items()}, self.factors)


def average(
    outputs: Mapping[str, Mapping[str, np.ndarray]], factors: Mapping[str, Mapping[str, float]]
) -> dict[str, np.ndarray]:
    """Mean over members of output times factor, float64 (N,) each."""
    return {
        name: np.mean([own[name] * factors[member].get(name, 1.0) for member, own in outputs.items()], axis=0)
        for name in OUTPUTS
    }


def best_blend(models: Mapping[str, Any], validation: pa.Table, score: Metric) -> ValueBlend | None:
    """The average of the best two (or three, … MOST_MEMBERS) models, if validation prefers it to the best single one.

    `models` holds the best of each family by name.
    """
    targets = targets_of(validation, part="validation")
    truth = {"purchases": targets.purchases.sum(), "spend": targets.spend.sum()}
    outputs = {name: model.predict(validation) for name, model in models.items()}
    totals = {name: {key: float(own[key].sum()) for key in truth} for name, own in outputs.items()}
    usable = [name for name in outputs if min(totals[name].values()) > 0]
    factors = {name: {key: float(truth[key]) / totals[name][key] for key in truth} for name in usable}

    def together(names: list[str]) -> float:
        return score(average({name: outputs[name] for name in names}, factors))

    names = best_together({name: score(outputs[name]) for name in usable}, together, MOST_MEMBERS)
    if not names:
        return None
    return ValueBlend(members={name: models[name] for name in names}, factors={name: factors[name] for name in names})
