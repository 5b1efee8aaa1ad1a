"""Purchases of one shard as product histories and targets: the rows of the recommendation task.

A purchase is a transaction row with a product, positive units and a positive price or amount, where these are known:
returns and free gifts are none. Each product counts once per customer. In a history as of a date it stands at its last
purchase before the date; in a sequence for leave-one-out at its first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DAY_US = 86_400_000_000


@dataclass(frozen=True, kw_only=True)
class Purchases:
    """Purchase rows, sorted by customer, then time, then order in the source."""

    entities: np.ndarray
    """(E,) sorted customer ids, those without a purchase among them"""
    products: np.ndarray
    """(P,) product ids"""
    entity: np.ndarray
    """(N,) int64 position in `entities`"""
    product: np.ndarray
    """(N,) int64 position in `products`"""
    time_us: np.ndarray
    """(N,) int64 microseconds since the epoch"""

    @property
    def key(self) -> np.ndarray:
        """(N,) one number per (customer, product)."""
        return self.entity * max(1, len(self.products)) + self.product

    def take(self, index: np.ndarray) -> Purchases:
        """The rows at these positions (or where True)."""
        return Purchases(
            entities=self.entities, products=self.products,
            entity=self.entity[index], product=self.product[index], time_us=self.time_us[index],
        )  # fmt: skip

    def distinct(self, keep: str) -> Purchases:
        """One row per (customer, product): its "first" or its "last", in order."""
        key = self.key if keep == "first" else self.key[::-1]
        _, index = np.unique(key, return_index=True)
        return self.take(np.sort(index if keep == "first" else len(key) - 1 - index))

    def last(self, length: int) -> Purchases:
        """The newest `length` rows of every customer."""
        return self.take(self.from_end() < length)

    def from_end(self) -> np.ndarray:
        """(N,) distance of each row from its customer's newest, which is 0."""
        return self.offsets()[1:][self.entity] - 1 - np.arange(len(self.entity))

    def offsets(self) -> np.ndarray:
        """(E + 1,) where each customer's rows begin."""
        return np.searchsorted(self.entity, np.arange(len(self.entities) + 1))

    def lists(self, keep: np.ndarray) -> pa.ListArray:
        """Products of the customers at `keep` (bool per customer) as list<string>."""
        rows = self.take(keep[self.entity])
        lengths = np.bincount(rows.entity, minlength=len(self.entities))[keep]
        return pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
            pa.array(self.products, pa.string()).take(pa.array(rows.product)),
        )

    def list_values(self, values: np.ndarray, keep: np.ndarray) -> pa.ListArray:
        """One float32 per row, listed as `lists` does."""
        kept = keep[self.entity]
        lengths = np.bincount(self.entity[kept], minlength=len(self.entities))[keep]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(values[kept], pa.float32()))


def purchases(tables: Mapping[str, pa.Table], products_matching: str | None) -> Purchases:
    """The purchase rows of a shard's `transactions`, of products whose id matches the regular expression."""
    rows = tables["transactions"]
    bought = pc.is_valid(rows["product_id"])
    for column in ("num_units", "unit_price_amount", "net_amount"):
        bought = pc.and_(bought, pc.fill_null(pc.greater(rows[column], 0.0), True))
    if products_matching:
        bought = pc.and_(bought, pc.fill_null(pc.match_substring_regex(rows["product_id"], products_matching), False))
    rows = rows.select(["entity_id", "product_id", "occurred_at"]).filter(bought)
    known = tables["customers"]["entity_id"].to_pylist() if "customers" in tables else []
    entities = np.array(sorted({*known, *rows["entity_id"].unique().to_pylist()}), dtype=object)
    products = np.array(sorted(rows["product_id"].unique().to_pylist()), dtype=object)
    entity, product = _codes(rows["entity_id"], entities), _codes(rows["product_id"], products)
    time_us = rows["occurred_at"].cast(pa.int64()).to_numpy()
    order = np.lexsort((time_us, entity))
    return Purchases(
        entities=entities, products=products, entity=entity[order], product=product[order], time_us=time_us[order]
    )


def _codes(values: pa.ChunkedArray, ids: np.ndarray) -> np.ndarray:
    return pc.index_in(values, value_set=pa.array(ids, pa.string())).to_numpy().astype(np.int64)


def as_of_rows(
    bought: Purchases,
    created_us: np.ndarray,
    as_of: datetime,
    *,
    horizon_days: float | None,
    lookback_days: float,
    length: int,
    exclude_owned: bool,
) -> pa.Table:
    """One row per customer known at `as_of`: bought before it, or created before it (nan: always known).

    `horizon_days` None: no target. `created_us` is (E,) float64. `active`: bought in the `lookback_days` before `as_of`.
    """
    as_of_us = int(as_of.timestamp() * 1_000_000)
    past = bought.take(bought.time_us < as_of_us).distinct("last")
    num_bought = np.bincount(past.entity, minlength=len(bought.entities))
    keep = (num_bought > 0) | np.isnan(created_us) | (created_us < as_of_us)
    newest = np.full(len(bought.entities), np.iinfo(np.int64).min)
    np.maximum.at(newest, past.entity, past.time_us)
    active = newest >= as_of_us - int(lookback_days * DAY_US)
    target = None
    if horizon_days is not None:
        until_us = as_of_us + int(horizon_days * DAY_US)
        future = bought.take((bought.time_us >= as_of_us) & (bought.time_us < until_us)).distinct("first")
        if exclude_owned:
            future = future.take(~np.isin(future.key, past.key))
        target = future.lists(keep)
    kept = past.last(length)
    days_before = (as_of_us - kept.time_us) / DAY_US
    return _table(kept, days_before, keep, target=target, active=active[keep], exclude_owned=exclude_owned)


def leave_one_out_rows(bought: Purchases, *, labels: bool, length: int, exclude_owned: bool) -> dict[str, pa.Table]:
    """Rows by part: "train" without the last two items of a customer with three or more (all rows of the others),
    "validation" with the last but one as target, "test" with the last. Without labels: "now", everything.

    `history_days_before` counts back from the newest entry of the row's own history.
    """
    ordered = bought.distinct("first") if exclude_owned else bought
    count, from_end = np.bincount(ordered.entity, minlength=len(bought.entities)), ordered.from_end()
    everyone, evaluated = np.ones(len(count), bool), count >= 3
    if not labels:
        return {"now": _sequence(ordered, everyone, None, length, exclude_owned)}
    held_out = evaluated[ordered.entity]
    train = ordered.take(~held_out | (from_end >= 2))
    rows = {"train": _sequence(train, count > 0, None, length, exclude_owned)}
    for part, cut in (("validation", 1), ("test", 0)):
        target = ordered.take(held_out & (from_end == cut))
        rows[part] = _sequence(ordered.take(held_out & (from_end > cut)), evaluated, target, length, exclude_owned)
    return rows


def _sequence(
    rows: Purchases, keep: np.ndarray, target: Purchases | None, length: int, exclude_owned: bool
) -> pa.Table:
    kept = rows.last(length)
    newest = np.zeros(len(rows.entities), np.int64)
    newest[kept.entity] = kept.time_us
    days_before = (newest[kept.entity] - kept.time_us) / DAY_US
    lists = None if target is None else target.lists(keep)
    active = np.bincount(kept.entity, minlength=len(rows.entities))[keep] > 0
    return _table(kept, days_before, keep, target=lists, active=active, exclude_owned=exclude_owned)


def _table(
    rows: Purchases,
    days_before: np.ndarray,
    keep: np.ndarray,
    *,
    target: pa.ListArray | None,
    active: np.ndarray,
    exclude_owned: bool,
) -> pa.Table:
    num_rows = int(keep.sum())
    return pa.table(
        {
            "entity_id": pa.array(rows.entities[keep], pa.string()),
            "history": rows.lists(keep),
            "history_days_before": rows.list_values(days_before, keep),
            "active": pa.array(active, pa.bool_()),
            "exclude_owned": pa.array(np.full(num_rows, exclude_owned), pa.bool_()),
            "target": pa.nulls(num_rows, pa.list_(pa.string())) if target is None else target,
        }
    )


def created(customers: pa.Table, entities: Sequence[str]) -> np.ndarray:
    """(E,) float64 microseconds of `created_at`; nan where it is not known; inf for who is not among the customers."""
    index = pc.index_in(pa.array(entities, pa.string()), value_set=customers["entity_id"].combine_chunks())
    known = customers["created_at"].cast(pa.int64()).cast(pa.float64()).take(index)
    result = known.to_numpy().astype(np.float64).copy()
    result[pc.is_null(index).to_numpy(zero_copy_only=False)] = np.inf
    return result
