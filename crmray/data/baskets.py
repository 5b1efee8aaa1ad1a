"""Purchases of one shard as product histories and targets: the rows of the recommendation task.

A purchase is a transaction row with a product that `asof_purchases.is_purchase`: returns and free gifts are none. With
`distinct`, targets are products that a customer never bought before, and a sequence for leave-one-out holds each
product once, at its first purchase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.asof_purchases import is_purchase
from crmray.data.asof_rows import DAY_US, micros_of
from crmray.data.splits import PARTS, micros

ACTIVE, LAPSED, COLD = "active", "lapsed", "cold"
"""audience: bought in the lookback; before it only; never"""
MAX_VIEWED = 100
MIN_SEQUENCE = 3
"""items of a customer from which on leave-one-out evaluates"""


@dataclass(frozen=True, kw_only=True)
class Purchases:
    """Purchase rows, sorted by customer, then time, then order in the source."""

    entities: np.ndarray
    """(E,) sorted customer ids, those without a purchase among them"""
    products: np.ndarray
    """(P,) sorted product ids"""
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
        return replace(self, entity=self.entity[index], product=self.product[index], time_us=self.time_us[index])

    def first(self) -> Purchases:
        """The first row of every (customer, product)."""
        return self.take(np.sort(np.unique(self.key, return_index=True)[1]))

    def from_end(self) -> np.ndarray:
        """(N,) distance of each row from its customer's newest, which is 0."""
        ends = np.searchsorted(self.entity, self.entity, side="right")
        return ends - 1 - np.arange(len(self.entity))

    def counts(self) -> np.ndarray:
        """(E,) rows of each customer."""
        return np.bincount(self.entity, minlength=len(self.entities))

    def newest_us(self) -> np.ndarray:
        """(E,) int64 time of each customer's newest row; the smallest number there is for those without any."""
        newest = np.full(len(self.entities), np.iinfo(np.int64).min)
        newest[self.entity] = self.time_us  # rows are in order of time: the last one stays
        return newest

    def lists(self, keep: np.ndarray) -> pa.ListArray:
        """Products of the customers at `keep` (E,) bool, as list<string>."""
        return self._listed(pa.array(self.products, pa.string()).take(pa.array(self.product[keep[self.entity]])), keep)

    def listed_days(self, days: np.ndarray, keep: np.ndarray) -> pa.ListArray:
        """(N,) days as list<float32>, listed as `lists` does."""
        return self._listed(pa.array(days[keep[self.entity]], pa.float32()), keep)

    def _listed(self, values: pa.Array, keep: np.ndarray) -> pa.ListArray:
        offsets = np.concatenate([[0], np.cumsum(self.counts()[keep])])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def purchases(tables: Mapping[str, pa.Table], population: pa.Array, products_matching: str | None) -> Purchases:
    """The purchase rows of a shard's `transactions`, of products whose id matches the regular expression.

    population: customers to be among `entities` whether they bought or not.
    """
    rows = tables["transactions"]
    bought = pc.and_(pc.is_valid(rows["product_id"]), pa.array(is_purchase(rows)))
    if products_matching:
        bought = pc.and_(bought, pc.fill_null(pc.match_substring_regex(rows["product_id"], products_matching), False))
    rows = rows.select(["entity_id", "product_id", "occurred_at"]).filter(bought)
    entities = np.array(sorted({*population.to_pylist(), *pc.unique(rows["entity_id"]).to_pylist()}), dtype=object)
    products = np.array(sorted(pc.unique(rows["product_id"]).to_pylist()), dtype=object)
    entity, product = _codes(rows["entity_id"], entities), _codes(rows["product_id"], products)
    time_us = micros_of(rows["occurred_at"])
    order = np.lexsort((time_us, entity))
    return Purchases(
        entities=entities, products=products, entity=entity[order], product=product[order], time_us=time_us[order]
    )


def viewed(engagement: pa.Table | None, entities: pa.Array, as_of: datetime | None, lookback_days: float) -> pa.Array:
    """(N,) list<string>: the products that each customer looked at in the lookback, the MAX_VIEWED latest, oldest
    first; empty without a clock or products in `engagement` (sorted by customer and time)."""
    lists: list[list[str]] = [[] for _ in range(len(entities))]
    if engagement is None or as_of is None or "product_id" not in engagement.column_names:
        return pa.array(lists, pa.list_(pa.string()))
    time_us, end_us = micros_of(engagement["occurred_at"]), micros(as_of)
    seen = (time_us < end_us) & (time_us >= end_us - int(lookback_days * DAY_US))
    rows = engagement.select(["entity_id", "product_id"]).filter(
        pc.and_(pa.array(seen), pc.is_valid(engagement["product_id"]))
    )
    places = pc.index_in(rows["entity_id"], value_set=entities).to_pylist()
    for place, product in zip(places, rows["product_id"].to_pylist(), strict=True):
        if place is not None:
            lists[place].append(product)
    return pa.array([found[-MAX_VIEWED:] for found in lists], pa.list_(pa.string()))


def _codes(values: pa.ChunkedArray, ids: np.ndarray) -> np.ndarray:
    return pc.index_in(values, value_set=pa.array(ids, pa.string())).to_numpy().astype(np.int64)


def as_of_rows(
    bought: Purchases,
    population: pa.Array,
    as_of: datetime,
    *,
    horizon_days: float | None,
    lookback_days: float,
    length: int,
    distinct: bool,
) -> pa.Table:
    """One row per customer of the population: history before `as_of`, and what they buy in the horizon after it.

    horizon_days: None for no labels. distinct: the target holds products that the customer never bought before. Targets
    are sorted by id.
    """
    as_of_us = micros(as_of)
    keep = np.isin(bought.entities, population.to_numpy(zero_copy_only=False))
    before = bought.take(bought.time_us < as_of_us)
    target, audience = None, None
    if horizon_days is not None:
        later = (bought.time_us >= as_of_us) & (bought.time_us < as_of_us + int(horizon_days * DAY_US))
        future = bought.take(later).first()
        if distinct:
            future = future.take(~np.isin(future.key, before.key))
        target = future.take(np.lexsort((future.product, future.entity))).lists(keep)
        active = before.newest_us() >= as_of_us - int(lookback_days * DAY_US)
        audience = np.select([active, before.counts() > 0], [ACTIVE, LAPSED], COLD)[keep]
    kept = before.take(before.from_end() < length)
    return _table(kept, (as_of_us - kept.time_us) / DAY_US, keep, target, audience, distinct)


def leave_one_out_rows(bought: Purchases, *, labels: bool, length: int, distinct: bool) -> pa.Table:
    """Rows with their `part`: "train" without the last two items of a customer who has three or more (with all items of
    the others), "validation" with the last but one as target, "test" with the last.

    `history_days_before` counts back from the newest entry of the row's own history. Without labels: one row per
    customer with all items, and no part.
    """
    ordered = bought.first() if distinct else bought
    count, from_end = ordered.counts(), ordered.from_end()
    if not labels:
        return _sequence(ordered, np.ones(len(count), bool), None, length, distinct)
    evaluated = count >= MIN_SEQUENCE
    held_out = evaluated[ordered.entity]
    found = [_sequence(ordered.take(~held_out | (from_end >= 2)), count > 0, None, length, distinct)]
    for newest in (1, 0):
        target = ordered.take(held_out & (from_end == newest))
        found.append(_sequence(ordered.take(held_out & (from_end > newest)), evaluated, target, length, distinct))
    named = zip(found, PARTS, strict=True)
    return pa.concat_tables([rows.append_column("part", pa.repeat(part, rows.num_rows)) for rows, part in named])


def _sequence(rows: Purchases, keep: np.ndarray, target: Purchases | None, length: int, distinct: bool) -> pa.Table:
    kept = rows.take(rows.from_end() < length)
    days_before = (kept.newest_us()[kept.entity] - kept.time_us) / DAY_US
    audience = None if target is None else np.full(int(keep.sum()), ACTIVE)
    return _table(kept, days_before, keep, None if target is None else target.lists(keep), audience, distinct)


def _table(
    rows: Purchases,
    days_before: np.ndarray,
    keep: np.ndarray,
    target: pa.ListArray | None,
    audience: np.ndarray | None,
    distinct: bool,
) -> pa.Table:
    num_rows = int(keep.sum())
    none = {"target": pa.nulls(num_rows, pa.list_(pa.string())), "audience": pa.nulls(num_rows, pa.string())}
    return pa.table(
        {
            "entity_id": pa.array(rows.entities[keep], pa.string()),
            "target": none["target"] if target is None else target,
            "audience": none["audience"] if audience is None else pa.array(audience, pa.string()),
            "history": rows.lists(keep),
            "history_days_before": rows.listed_days(days_before, keep),
            "exclude_owned": pa.array(np.full(num_rows, distinct), pa.bool_()),
        }
    )
