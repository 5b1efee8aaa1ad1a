"""Customers and the history of a field by hand, in days from one date."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pyarrow as pa

from crmray import schema
from crmray.data.history import Field

START = datetime(2023, 1, 1, tzinfo=timezone.utc)
INDUSTRY = Field(column="industry", object="Account", field="Industry")


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def customers(*rows: dict) -> pa.Table:
    return schema.check("customers", pa.Table.from_pylist([{"created_at": day(0), **row} for row in rows]))


def changes(*rows: tuple, field: str = "Industry") -> pa.Table:
    """(entity_id, day, old, new)"""
    names = ("entity_id", "occurred_at", "old_value", "new_value")
    made = [dict(zip(names, row, strict=True)) for row in rows]
    made = [{**row, "occurred_at": day(row["occurred_at"]), "object": "Account", "field": field} for row in made]
    return schema.check("changes", pa.Table.from_pylist(made)) if made else schema.empty("changes")
