"""Weekly sales by hand: transactions in days from a Monday, the rows of a week, and rows of given histories."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pyarrow as pa

from crmray import schema
from crmray.tasks import forecast

MONDAY = datetime(2024, 1, 1, tzinfo=timezone.utc)
"""a Monday"""


def sold(*lines: tuple[str, int, str, float], regions: dict[str, str] | None = None) -> dict[str, pa.Table]:
    """Transactions (customer, day since MONDAY, product, amount), products a… of category Tea, others of Pots."""
    customer, day, product, amount = zip(*lines, strict=True)
    names = sorted(set(product))
    tables = {
        "transactions": pa.table(
            {
                "entity_id": customer,
                "occurred_at": pa.array([MONDAY + timedelta(days=d) for d in day], schema.TIME),
                "product_id": product,
                "net_amount": pa.array(amount, pa.float64()),
            }
        ),
        "products": pa.table({"product_id": names, "category": ["Tea" if n < "b" else "Pots" for n in names]}),
    }
    if regions:
        tables["customers"] = pa.table({"entity_id": list(regions), "region": list(regions.values())})
    return tables


def rows_of(tables: dict[str, pa.Table], week: int, *, labels: bool = True, **settings) -> pa.Table:
    """The examples of a week counted from MONDAY."""
    own = forecast.Settings(**{"horizon_weeks": 2, **settings})
    whole = forecast.combine([forecast.gather(tables, own)], own)
    return forecast.examples(whole, MONDAY + timedelta(weeks=week), own, labels=labels)


def panel_rows(
    histories: list[list[float | None]], labels: list[list[float]] | None = None, horizon: int = 2
) -> pa.Table:
    """Rows of one level with these histories."""
    lists = pa.list_(pa.float64())
    ones = [[1.0] * horizon] * len(histories)
    return pa.table(
        {
            "entity_id": [f"product:{i}" for i in range(len(histories))],
            "as_of": pa.array([MONDAY] * len(histories), schema.TIME),
            "label": pa.array(labels, lists) if labels else pa.nulls(len(histories), lists),
            "label_weight": pa.array(ones, lists) if labels else pa.nulls(len(histories), lists),
            "level": ["product"] * len(histories),
            "history": pa.array(histories, lists),
            "parents": pa.array([[]] * len(histories), pa.list_(pa.string())),
        }
    )


def of(rows: pa.Table, name: str) -> dict:
    found = rows.filter(pa.array([value == name for value in rows["entity_id"].to_pylist()])).to_pylist()
    assert len(found) == 1
    return found[0]
