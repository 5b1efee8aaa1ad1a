"""An average of forecasters, quantile by quantile (Vincentization: Ratcliff 1979), as one more contender.

What forecasts a total well need not forecast a product well: each level has members of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.models.blend import Members
from crmray.models.forecast_panel import COLUMNS

Metric = Callable[[pa.Table, Mapping[str, np.ndarray]], float]
"""the selection figure of rows and their forecasts, less is better"""


@dataclass(frozen=True, kw_only=True)
class ForecastBlend(Members):
    """The plain average of each level's members; averages of ordered quantiles are in order."""

    of_level: Mapping[str, Sequence[str]]
    """Level -> the members that are averaged; all of them for a level that is not named."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Quantiles, each (N, H)."""
        levels = np.array(examples["level"].to_pylist(), dtype=object)
        asked = {name: np.flatnonzero(self._wanted(levels, name)) for name in self.members}
        sums: dict[str, np.ndarray] = {}
        for name, rows in asked.items():
            told = self.members[name].predict(examples.take(pa.array(rows))) if len(rows) else {}
            for column, values in told.items():
                total = sums.setdefault(column, np.zeros((len(levels), values.shape[1])))
                total[rows] += values / self._count(levels[rows])[:, None]
        return sums

    def _wanted(self, levels: np.ndarray, name: str) -> np.ndarray:
        return np.array([name in self.of_level.get(level, self.members) for level in levels], bool)

    def _count(self, levels: np.ndarray) -> np.ndarray:
        return np.array([len(self.of_level.get(level, self.members)) for level in levels])


def best_blend(models: Mapping[str, Any], examples: pa.Table, metric: Metric, *, most: int = 3) -> ForecastBlend | None:
    """For each level the best forecaster, and up to `most` of those that better the average of what was chosen.

    examples: rows with labels. Forward selection (Caruana et al. 2004): what errs in another way than the best adds
    more than the second best. Levels in which nothing can be measured (nothing was sold) take all members. None for one
    and the same forecaster everywhere: that is no blend.
    """
    told = {name: model.predict(examples) for name, model in models.items()}
    levels = np.array(examples["level"].to_pylist(), dtype=object)
    sold = np.array([any(values) for values in examples["label"].to_pylist()], bool)
    of_level = {}
    for level in sorted(set(levels[sold])):
        rows = np.flatnonzero(levels == level)
        own = {name: {column: values[rows] for column, values in one.items()} for name, one in told.items()}
        of_level[level] = _best(own, partial(metric, examples.take(pa.array(rows))), most)
    used = sorted({name for names in of_level.values() for name in names})
    if len(used) < 2:
        return None
    return ForecastBlend(members={name: models[name] for name in used}, of_level=of_level)


def _best(
    told: Mapping[str, Mapping[str, np.ndarray]], metric: Callable[[Mapping[str, np.ndarray]], float], most: int
) -> list[str]:
    """The forecasters chosen one after another, each the one with which the average is best, while it gets better."""
    chosen: list[str] = []
    best = np.inf
    while len(chosen) < min(most, len(told)):
        figures = {}
        for name in sorted(set(told) - set(chosen)):
            names = [*chosen, name]
            average = {column: np.mean([told[one][column] for one in names], axis=0) for column in COLUMNS}
            figures[name] = metric(average)
        name = min(figures, key=lambda one: figures[one])
        if figures[name] >= best:
            break
        chosen, best = [*chosen, name], figures[name]
    return chosen
