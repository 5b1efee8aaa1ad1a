"""What the candidates for customer value learn and answer: purchases and net spend in the horizon after as_of.

Every candidate's `predict` gives OUTPUTS, float64 (N,) each: the probability of a purchase, the expected number of
purchases (orders), and the expected net spend. The task calibrates them later.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crmray.errors import DataError, NotEnoughDataError, SchemaError
from crmray.models.columns import numbers_of

SPEND, PURCHASES = "label_spend", "label_purchases"
LABELS = (SPEND, PURCHASES)
OUTPUTS = ("p_purchase", "purchases", "spend")
MIN_BUYERS = 2


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Labels of N rows."""

    spend: np.ndarray
    """(N,) net spend in the horizon, 0 or more, in the org's currency"""
    purchases: np.ndarray
    """(N,) orders in the horizon"""

    @property
    def bought(self) -> np.ndarray:
        """(N,) bool: at least one order."""
        return self.purchases > 0

    @property
    def paid(self) -> np.ndarray:
        """(N,) bool: net spend above 0; not so where everything came back."""
        return self.spend > 0


def targets_of(table: pa.Table, *, part: str = "training") -> Targets:
    """The labels of the rows. SchemaError, or DataError for a value that is missing or below 0; NotEnoughDataError for
    fewer than MIN_BUYERS rows with a purchase and spend: nothing can be learned from them."""
    values = {}
    for name in LABELS:
        if name not in table.column_names:
            raise SchemaError(f"column {name!r} of the {part} rows is missing; expected it as a label")
        values[name] = numbers_of(table, name)
        wrong = ~(values[name] >= 0)  # NaN too
        if wrong.any():
            raise DataError(
                f"column {name!r} of the {part} rows: got {int(wrong.sum())} of {len(wrong)} rows without a value or "
                "below 0, expected 0 or more in each"
            )
    found = Targets(spend=values[SPEND], purchases=values[PURCHASES])
    buyers = int((found.bought & found.paid).sum())
    if buyers < MIN_BUYERS:
        raise NotEnoughDataError(
            f"got {buyers} of {table.num_rows} {part} rows with a purchase and net spend above 0 in the horizon, "
            f"expected at least {MIN_BUYERS}; bring more history or customers, or choose a longer horizon_days"
        )
    return found


def longest_window(columns: Collection[str], start: str, end: str = "") -> tuple[str, int] | None:
    """Of columns named <start><days>d<end> the one with the most days, and these; None where there is none."""
    found = [(int(match[1]), name) for name in columns if (match := re.fullmatch(f"{start}(\\d+)d{end}", name))]
    return (max(found)[1], max(found)[0]) if found else None
