"""A shop of tea and wine by hand: what its customers buy, in days from one date, and the rows that this gives."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa

from crmray import schema
from crmray.tasks import recommendation
from crmray.tasks.recommendation import Settings

AS_OF = datetime(2024, 6, 1, tzinfo=timezone.utc)
SETTINGS = Settings(horizon_days=30, lookback_days=100)


def tables(lines: list[tuple], **others: pa.Table) -> dict[str, pa.Table]:
    """lines: (customer, days from AS_OF, product, units, amount)."""
    names = ("entity_id", "occurred_at", "product_id", "num_units", "net_amount")
    lines = [(who, AS_OF + timedelta(days=day), what, units, amount) for who, day, what, units, amount in lines]
    columns = dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))
    found = schema.check("transactions", pa.table(columns)).select(list(names))
    return {"transactions": found.sort_by([("entity_id", "ascending"), ("occurred_at", "ascending")]), **others}


def by_customer(rows: pa.Table) -> dict[str, dict]:
    return {row["entity_id"]: row for row in rows.to_pylist()}


def org() -> dict[str, pa.Table]:
    """British customers buy tea, French ones wine; both buy bread. A new tea was launched lately."""
    rng = np.random.default_rng(0)
    lines, people = [], []
    for number in range(60):
        who, country = f"c{number:02d}", "UK" if number % 2 else "FR"
        own = [f"tea{i}" for i in range(4)] if country == "UK" else [f"wine{i}" for i in range(4)]
        for day, what in zip((-60, -45, -12, 3, 8), [*rng.permutation(own), "bread"], strict=True):
            lines.append((who, day, str(what), 1.0, 2.0))
        people.append((who, country))
    people += [("new-uk", "UK"), ("new-xx", None)]
    customers = schema.check(
        "customers", pa.table({"entity_id": [p[0] for p in people], "country": [p[1] for p in people]})
    )
    ids = ["bread", "tea0", "tea1", "tea2", "tea3", "wine0", "wine1", "wine2", "wine3", "tea9", "tea-old", "tea-off"]
    launched = [AS_OF - timedelta(days=5 if i in ("tea9", "tea-off") else 900) for i in ids]
    products = pa.table(
        {
            "product_id": ids,
            "name": [f"{i.rstrip('0123456789')} no {i}" for i in ids],
            "launched_at": pa.array(launched, schema.TIME),
            "active": [i != "tea-off" for i in ids],
        }
    )
    return tables(
        lines, customers=customers.select(["entity_id", "country"]), products=schema.check("products", products)
    )


def now(tables: dict[str, pa.Table], settings: Settings = SETTINGS) -> pa.Table:
    """The rows of the present."""
    return recommendation.examples(tables, AS_OF, settings, labels=False)


def with_lines(there: dict[str, pa.Table], *lines: tuple) -> dict[str, pa.Table]:
    """The same and further lines, as `tables` takes them."""
    both = pa.concat_tables([there["transactions"], tables(list(lines))["transactions"]])
    return {**there, "transactions": both.sort_by([("entity_id", "ascending"), ("occurred_at", "ascending")])}


def with_products(there: dict[str, pa.Table], **columns: Callable[[str], object]) -> dict[str, pa.Table]:
    """The same with these columns of its products, each by a function of the product's id."""
    products = there["products"]
    for name, of in columns.items():
        values = [of(product) for product in products["product_id"].to_pylist()]
        place = products.schema.get_field_index(name)
        if place < 0:
            products = products.append_column(name, pa.array(values))
        else:
            products = products.set_column(place, name, pa.array(values, products.schema.field(name).type))
    return {**there, "products": products}
