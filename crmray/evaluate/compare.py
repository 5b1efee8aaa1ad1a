"""Two models on the same rows: paired bootstrap of the difference between their figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from crmray.errors import NotEnoughDataError
from crmray.evaluate.metrics import LEVEL, Figure, interval_of, resampled_weights


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Challenger against champion on one figure."""

    champion: float
    """Figure of the champion."""
    challenger: float
    """Figure of the challenger."""
    gain: float
    """Challenger's advantage: positive is better, whatever the figure's direction."""
    low: float
    """Lower end of the interval of the gain."""
    high: float
    """Upper end."""
    level: float
    """Of the interval, 0..1."""
    p_value: float
    """Two-sided, from the share of resamples on the other side of 0."""
    rows: int
    """Rows that both were scored on."""
    verdict: Literal["better", "worse", "no difference"]
    """Whether the interval lies above 0, below 0, or holds it."""

    def to_json(self) -> dict[str, Any]:
        """As a dict for reports and the ledger."""
        return asdict(self)


def paired_bootstrap(
    champion: Figure,
    challenger: Figure,
    num_rows: int,
    *,
    mode: Literal["max", "min"] = "max",
    num_resamples: int = 1000,
) -> Comparison:
    """Draw the same rows for both and look at the gain (Efron and Tibshirani 1993).

    NotEnoughDataError when no resample holds both classes.
    """
    sign = 1.0 if mode == "max" else -1.0
    drawn = resampled_weights(num_rows, num_resamples)
    gains = np.array([sign * (challenger(weights) - champion(weights)) for weights in drawn])
    gains = gains[np.isfinite(gains)]
    if not len(gains):
        raise NotEnoughDataError(f"got {num_rows} rows of one class, expected both to compare two models")
    low, high = interval_of(gains)
    tail = min(int((gains <= 0).sum()), int((gains >= 0).sum()))
    every = np.ones(num_rows)
    before, after = champion(every), challenger(every)
    return Comparison(
        champion=before,
        challenger=after,
        gain=sign * (after - before),
        low=low,
        high=high,
        level=LEVEL,
        p_value=min(1.0, 2.0 * (tail + 1) / (len(gains) + 1)),
        rows=num_rows,
        verdict="better" if low > 0 else "worse" if high < 0 else "no difference",
    )
