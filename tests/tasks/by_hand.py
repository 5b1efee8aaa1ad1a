"""Small tables written by hand, their times in days from one date."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pyarrow as pa

from crmray import schema

AS_OF = datetime(2024, 1, 1, tzinfo=timezone.utc)


def at(days: float) -> datetime:
    """So many days after AS_OF."""
    return AS_OF + timedelta(days=days)


def table(name: str, columns: tuple[str, ...], *rows: tuple) -> pa.Table:
    """A canonical table of these columns, in the order of the rows."""
    cells = [list(values) for values in zip(*rows, strict=True)]
    return schema.check(name, pa.table(dict(zip(columns, cells, strict=True)))).select(list(columns))
