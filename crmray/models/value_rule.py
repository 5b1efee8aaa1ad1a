"""The rule of thumb for customer value: what somebody bought in the lookback goes on at the same pace."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from crmray.errors import NotEnoughDataError
from crmray.models.columns import numbers_of
from crmray.models.tabular import check_positive, file_of, to_json
from crmray.models.value_targets import longest_window, targets_of

NET, ORDERS = ("spend_net_", "_amount"), ("frequency_orders_", "")
"""how the columns of net spend and of orders by window begin and end"""


@dataclass(frozen=True, kw_only=True)
class RunRate:
    """Net spend and orders of the longest window times horizon / window; orders are Poisson. Nothing is learned."""

    NAME: ClassVar[str] = "run_rate"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    horizon_days: int = 90
    """Length of the label window; the task sets it to its own."""

    def __post_init__(self):
        check_positive(horizon_days=self.horizon_days)

    @classmethod
    def applies(cls, columns: Collection[str]) -> str | None:
        """Why it cannot run on examples with these columns, or None."""
        missing = [name for name in (NET, ORDERS) if longest_window(columns, *name) is None]
        return f"the examples have no column {missing[0][0]}<days>d{missing[0][1]}" if missing else None

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> RunRateModel:
        """Find the windows; the labels are only checked."""
        targets_of(train)
        net, orders = (longest_window(train.column_names, *name) for name in (NET, ORDERS))
        if net is None or orders is None:
            raise NotEnoughDataError(f"{self.NAME}: {self.applies(train.column_names)}")
        return RunRateModel(
            net=net[0], net_share=self.horizon_days / net[1], orders=orders[0],
            orders_share=self.horizon_days / orders[1],
        )  # fmt: skip

    @staticmethod
    def load(files: Mapping[str, bytes]) -> RunRateModel:
        """The model that `save` wrote."""
        return RunRateModel(**json.loads(file_of(files, "run_rate.json")))


@dataclass(frozen=True, kw_only=True)
class RunRateModel:
    """The rule with its columns."""

    net: str
    """Column of net spend."""
    net_share: float
    """Horizon / window of that column."""
    orders: str
    """Column of orders."""
    orders_share: float
    """Horizon / window of that column."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """OUTPUTS; a missing value counts as no orders."""
        spend = np.maximum(np.nan_to_num(numbers_of(examples, self.net)), 0.0) * self.net_share
        purchases = np.maximum(np.nan_to_num(numbers_of(examples, self.orders)), 0.0) * self.orders_share
        return {"p_purchase": -np.expm1(-purchases), "purchases": purchases, "spend": spend}

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"run_rate.json": to_json(asdict(self))}
