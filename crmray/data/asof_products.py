"""As-of features of products: what was sold of each product strictly before a date.

Transactions are sharded by customer, so what a product sold is counted shard by shard and day by day (`daily`) and
added up (`together`) before `frame` makes the rows. Features by prefix: product_<attribute>, sold_ recency_ trend_.
Numbers are float32 or float64 with null for "not known", categoricals are strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import asof, asof_contacts, splits
from crmray.data.asof_rows import DAY_US, View, trend, windows
from crmray.data.splits import micros
from crmray.errors import DataError

FEATURES_VERSION = "1"
"""raised when the meaning of a column changes"""
SOLD = ("num_lines", "num_units", "net_amount")
"""what is counted of the transactions of a product and day"""


def daily(rows: pa.Table, key: str, time: str, sums: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """entity_id, occurred_at (midnight UTC), num_lines and the sums, one row for each entity of `key` and day."""
    days = pc.floor_temporal(rows[time], unit="day")
    table = pa.table({"entity_id": rows[key].cast(pa.string()), "occurred_at": days, "num_lines": _ones(rows), **sums})
    return together([table.filter(pc.is_valid(table["entity_id"]))])


def _ones(rows: pa.Table) -> pa.Array:
    return pa.array(np.ones(rows.num_rows), pa.float64())


def together(parts: Sequence[pa.Table]) -> pa.Table:
    """Several results of `daily`, added up and sorted."""
    every = pa.concat_tables(parts)
    names = every.column_names[2:]
    added = every.group_by(["entity_id", "occurred_at"], use_threads=False).aggregate([(name, "sum") for name in names])
    added = added.select(["entity_id", "occurred_at", *(f"{name}_sum" for name in names)])
    keys = [("entity_id", "ascending"), ("occurred_at", "ascending")]
    return added.rename_columns(every.column_names).sort_by(keys)


def sold(transactions: pa.Table) -> pa.Table:
    """`daily` sales of one shard: SOLD by product and day."""
    columns = {name: pc.fill_null(transactions[name].cast(pa.float64()), 0.0) if name in transactions.column_names
               else _ones(transactions) for name in SOLD[1:]}  # fmt: skip
    return daily(transactions, "product_id", "occurred_at", columns)


def known(tables: Mapping[str, pa.Table], as_of: datetime | None) -> pa.Array:
    """Sorted ids of the products of the catalogue (launched before as_of, where known) and of those sold before it."""
    found = []
    if "products" in tables:
        products = tables["products"]
        ids = products["product_id"]
        if as_of is not None and "launched_at" in products.column_names:
            ids = ids.filter(pc.fill_null(pc.less(products["launched_at"], pa.scalar(as_of, schema.TIME)), True))
        found.append(pc.unique(ids))
    if as_of is not None and "sold" in tables:
        before = pc.less(tables["sold"]["occurred_at"], pa.scalar(as_of, schema.TIME))
        found.append(pc.unique(tables["sold"]["entity_id"].filter(before)))
    return asof.distinct(pa.concat_arrays(found)) if found else pa.array([], pa.string())


def frame(
    tables: Mapping[str, pa.Table], as_of: datetime | None, *, lookback_days: int, horizon_days: int, entities: pa.Array
) -> pa.Table:
    """One row per product: entity_id (its product_id), as_of, part, the features. Without as_of only the attributes.

    tables: products, and `sold` as `together` gives it. entities: sorted, distinct. DataError for an as_of that is not
    midnight UTC: sales are known by the day.
    """
    as_of_us = None if as_of is None else micros(as_of)
    if as_of_us is not None and as_of_us % DAY_US:
        raise DataError(f"got as_of {as_of}, expected midnight UTC: what products sold is counted by the day")
    columns: dict = {}
    if "products" in tables:
        # Whether a product is still sold today tells what came after a past date.
        hidden = ("name",) if as_of_us is None else ("name", "active")
        products = tables["products"].select([n for n in tables["products"].column_names if n not in hidden])
        shown = products.rename_columns(["entity_id" if n == "product_id" else n for n in products.column_names])
        columns |= {_feature(n): v for n, v in asof_contacts.attributes(entities, shown, as_of_us).items()}
    if as_of_us is not None and "sold" in tables:
        view = View(entities=entities, as_of_us=as_of_us, lookback_days=lookback_days, horizon_days=horizon_days)
        columns |= _sales(view, tables["sold"])
    told = {name: asof.arrow(values) for name, values in columns.items()}
    return pa.table({**splits.keys(entities, as_of), **told})


def _feature(name: str) -> str:
    return f"product_{name.removeprefix('customer_')}"


def _sales(view: View, table: pa.Table) -> dict:
    rows, limits = view.rows(table, "occurred_at", SOLD), windows(view.lookback_days)
    columns: dict = {}
    for name in SOLD:
        sums = rows.sums(limits, rows.number(name))
        word = "amount" if name == "net_amount" else name
        columns |= {f"sold_{word}_{limit:g}d": sums[:, w] for w, limit in enumerate(limits)}
        if len(limits) > 1:
            columns[f"trend_sold_{word}"] = trend(sums[:, 0], sums[:, 1] - sums[:, 0])
    newest, oldest = rows.last(rows.days), rows.first(rows.days)
    return {**columns, "recency_days": newest, "sold_first_days": oldest}
