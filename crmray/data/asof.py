"""As-of features: what is known of each customer strictly before a date.

`frame` makes one row per customer from the canonical tables of one shard. Everything is numpy and Arrow over whole
columns, no loop over customers. A column of the result depends on which tables are given and on their columns, never on
their rows, so all shards of an org give the same columns when they are given the same tables.

Feature families by prefix, in days before as_of and in the org's currency:
    tenure_ recency_ frequency_ spend_ gap_ trend_ basket_ product_ price_ season_ return_     purchases
    visit_ mail_ contact_ rating_ exposure_ change_ subscription_ customer_<attribute>         the other tables
Numbers are float32 with null for "not known", categoricals are strings, `is_young` is a bool: less history than the
lookback.

Attributes of the customers table are taken as they stand in it: data/asof_attributes.py puts there what stood at as_of.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import asof_contacts, asof_purchases, history, sequences, splits
from crmray.data.asof_purchases import is_purchase
from crmray.data.asof_rows import View, micros_of
from crmray.data.splits import micros

FEATURES_VERSION = "2"
"""raised when the meaning of a column changes"""
_TIMES = {
    "transactions": "occurred_at", "interactions": "occurred_at", "engagement": "occurred_at",
    "exposures": "occurred_at", "changes": "occurred_at", "subscriptions": "started_at",
}  # fmt: skip
"""event table -> the column that says when a row became known"""
USEFUL: dict[str, tuple[str, ...]] = {
    "transactions": ("order_id", "product_id", "num_units", "net_amount", "channel"),
    "products": ("category", "price_amount"),
    "engagement": ("kind", "seconds"),
    "interactions": ("channel", "direction", "rating", "text", "closed_at"),
    "exposures": (),
    "subscriptions": ("ended_at", "plan", "monthly_amount"),
    "changes": (),
    "customers": ("created_at",),
}
"""tables and columns of which `frame` makes features where the org has them"""


def distinct(entities: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Distinct entity ids, sorted."""
    found = pc.unique(entities).drop_null()
    return found.take(pc.sort_indices(found))


def known(tables: Mapping[str, pa.Table], as_of: datetime | None) -> pa.Array:
    """Customers with a row before as_of in any table, or in the customers table (created before as_of, where known)."""
    found = []
    for name, time in _TIMES.items():
        if name in tables and as_of is not None:
            before = pc.less(tables[name][time], pa.scalar(as_of, schema.TIME))
            if name == "changes" and "object" in tables[name].column_names:  # a lead has a history too
                before = pc.and_(before, pc.not_equal(tables[name]["object"], "Lead"))
            found.append(pc.unique(tables[name]["entity_id"].filter(before)))
    if "customers" in tables:
        ids, customers = tables["customers"]["entity_id"], tables["customers"]
        if as_of is not None and "created_at" in customers.column_names:
            ids = ids.filter(pc.fill_null(pc.less(customers["created_at"], pa.scalar(as_of, schema.TIME)), True))
        found.append(pc.unique(ids))
    return distinct(pa.concat_arrays(found)) if found else pa.array([], pa.string())


def purchases_between(tables: Mapping[str, pa.Table], start: datetime, end: datetime) -> pa.Table:
    """Purchase rows in [start, end)."""
    transactions = tables["transactions"]
    times = transactions["occurred_at"]
    inside = pc.and_(
        pc.greater_equal(times, pa.scalar(start, schema.TIME)), pc.less(times, pa.scalar(end, schema.TIME))
    )
    rows = transactions.filter(inside)
    return rows.filter(pa.array(is_purchase(rows)))


def buyers(tables: Mapping[str, pa.Table], as_of: datetime, lookback_days: int) -> pa.Array:
    """Customers with a purchase in the lookback_days before as_of, sorted."""
    return distinct(purchases_between(tables, as_of - timedelta(days=lookback_days), as_of)["entity_id"])


def later_amount(tables: Mapping[str, pa.Table], entities: pa.Array, as_of: datetime, horizon_days: int) -> pa.Array:
    """(N,) float64 net amount, returns included, in [as_of, as_of + horizon_days): a label, never a feature."""
    start_us, end_us = micros(as_of), micros(as_of + timedelta(days=horizon_days))
    transactions = tables["transactions"]
    code = pc.index_in(transactions["entity_id"], value_set=entities).fill_null(-1).to_numpy()
    times_us = micros_of(transactions["occurred_at"])
    mask = (code >= 0) & (times_us >= start_us) & (times_us < end_us)
    amount = np.nan_to_num(transactions["net_amount"].to_numpy()[mask])
    return pa.array(np.bincount(code[mask], amount, minlength=len(entities)).astype(np.float64))


def frame(
    tables: Mapping[str, pa.Table],
    as_of: datetime | None,
    *,
    lookback_days: int,
    horizon_days: int,
    entities: pa.Array | None = None,
    events: bool = False,
) -> pa.Table:
    """One row per customer: entity_id, as_of, part, is_young, the features, and with `events` the event lists.

    tables: canonical tables that the org has, this shard's rows. entities: sorted, distinct; default: all known ones.
    Without as_of only the customers' attributes are given, and is_young is false.
    """
    entities = known(tables, as_of) if entities is None else entities
    columns: dict = {}
    young = np.zeros(len(entities), bool)
    as_of_us = None if as_of is None else micros(as_of)
    if as_of is not None and as_of_us is not None:
        if "interactions" in tables:
            tables = {**tables, "interactions": history.until_closed(tables["interactions"], as_of)}
        seen = View(entities=entities, as_of_us=as_of_us, lookback_days=lookback_days, horizon_days=horizon_days)
        columns, runs = _behaviour(seen, tables)
        if events:
            columns |= sequences.lists(seen, runs)
        young = _first_seen_days(seen, tables) < lookback_days
    if "customers" in tables:
        columns |= asof_contacts.attributes(entities, tables["customers"], as_of_us)
    head = {**splits.keys(entities, as_of), "is_young": young}
    return pa.table(head | {name: arrow(values) for name, values in columns.items()})


def _behaviour(seen: View, tables: Mapping[str, pa.Table]) -> tuple[dict, list[sequences.Events]]:
    """Features of all event tables, and the events themselves."""
    columns: dict = {}
    runs = sequences.of_tables(seen, tables)
    if "transactions" in tables:
        lines = seen.rows(tables["transactions"], "occurred_at", asof_purchases.COLUMNS)
        bought = asof_purchases.orders(lines, is_purchase(lines.table))
        returned = asof_purchases.orders(lines, asof_purchases.is_return(lines))
        columns |= asof_purchases.features(seen, lines, bought, returned, tables.get("products"))
        runs = [*sequences.of_orders(bought, returned), *runs]
    if "engagement" in tables:
        columns |= asof_contacts.engagement(seen, tables["engagement"])
    if "interactions" in tables:
        columns |= asof_contacts.interactions(seen, tables["interactions"])
    if "subscriptions" in tables:
        columns |= asof_contacts.subscriptions(seen, tables["subscriptions"])
    for name, prefix in (("exposures", "exposure"), ("changes", "change")):
        if name in tables:
            columns |= asof_contacts.counted(seen, tables[name], prefix)
    return columns, runs


def _first_seen_days(seen: View, tables: Mapping[str, pa.Table]) -> np.ndarray:
    """(N,) days since the customer's first row in any table or its creation; 0 where there is none."""
    days = np.zeros(seen.n)
    for name, time in _TIMES.items():
        if name in tables:
            rows = seen.rows(tables[name], time)
            days = np.fmax(days, rows.first(rows.days))
    customers = tables.get("customers")
    if customers is not None and "created_at" in customers.column_names:
        at = pc.index_in(seen.entities, value_set=customers["entity_id"].combine_chunks())
        created = pa.chunked_array([customers["created_at"].combine_chunks().take(at)])
        days = np.fmax(days, seen.days_before(created))
    return days


def arrow(values: np.ndarray | pa.Array) -> pa.Array:
    """float32 with null for NaN; Arrow arrays stay."""
    return pa.array(values.astype(np.float32), from_pandas=True) if isinstance(values, np.ndarray) else values


def conform(table: pa.Table, to: pa.Schema) -> pa.Table:
    """The columns of `to`, in its order and types: absent ones as nulls, unknown ones left out."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in to
    ]
    return pa.table(columns, schema=to)
