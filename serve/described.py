"""Somebody described in a request: JSON rows of canonical tables become the Arrow tables that `task.examples` reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.errors import did_you_mean
from serve.errors import Refused, kind_of

INLINE_ID = "inline"
"""entity_id of somebody who is not in the data"""
_FUTURE = timedelta(days=1)
"""how far an event may lie ahead of this machine's clock"""


def tables_of(
    rows: Mapping[str, list[dict[str, Any]]], schemas: Mapping[str, pa.Schema], *, field: str, entity_id: str
) -> dict[str, pa.Table]:
    """Arrow tables with the org's columns from JSON rows; every table of `schemas` is there, perhaps empty.

    field: where the rows stand in the body, for the message. 422 names the table, row and column that is wrong.
    """
    for name in rows:
        if name not in schemas or not schema.TABLES[name].sharded:
            known = sorted(key for key in schemas if schema.TABLES[key].sharded)
            expected = f"one of those the model was trained on: {', '.join(known)}{did_you_mean(name, known)}"
            raise _wrong(f"{field}.{name}", f"got table {name!r}, expected {expected}")
    return {
        name: _table(name, rows.get(name, []), columns, f"{field}.{name}", entity_id)
        for name, columns in schemas.items()
        if schema.TABLES[name].sharded
    }


def _table(name: str, rows: list[dict[str, Any]], columns: pa.Schema, field: str, entity_id: str) -> pa.Table:
    spec = schema.TABLES[name]
    allowed = {column for column in columns.names if column != spec.entity}
    for number, row in enumerate(rows):
        for column in row:
            if column not in allowed:
                expected = f"one of: {', '.join(sorted(allowed))}{did_you_mean(column, sorted(allowed))}"
                raise _wrong(f"{field}.{number}.{column}", f"got column {column!r}, expected {expected}")
    arrays: list[pa.Array] = []
    for target in columns:
        if target.name == spec.entity:
            arrays.append(pa.array([entity_id] * len(rows), target.type))
            continue
        required = target.name in spec.required
        values = [
            _value(row.get(target.name), target.type, f"{field}.{number}.{target.name}", required)
            for number, row in enumerate(rows)
        ]
        arrays.append(pa.array(values, target.type))
    return in_order(name, pa.table(arrays, names=columns.names))


def in_order(name: str, rows: pa.Table) -> pa.Table:
    """Rows of one entity by time, as they lie in the lake."""
    time = schema.TABLES[name].time
    return rows.sort_by(time) if time in rows.column_names and rows.num_rows > 1 else rows


def _value(value: Any, type_: pa.DataType, field: str, required: bool) -> Any:
    """A JSON value as what Arrow takes for the type; 422 when it is another kind of value."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if value is None:
        if required:
            raise _wrong(field, "is missing, expected a value")
        return None
    if pa.types.is_timestamp(type_):
        return _time(value, field)
    if pa.types.is_boolean(type_):
        return _of(bool, value, field, "true or false")
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return _text(_of(str, value, field, "text"), field)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(field, f"got {kind_of(value)}, expected a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(field, "got a number that is not finite, expected a finite one")
    if pa.types.is_integer(type_):
        if value != int(value) or abs(value) >= 2**63:
            raise _wrong(field, "got a number with a fraction, or a longer one, expected a whole number of 64 bits")
        return int(value)
    if abs(value) > 1e300:
        raise _wrong(field, "got a number beyond 1e300, expected a smaller one")
    return float(value)


def _of(kind: type, value: Any, field: str, expected: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(field, f"got {kind_of(value)}, expected {expected}")
    return value


def _text(value: str, field: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(field, "got text with half a surrogate pair, expected valid Unicode") from None
    return value


def _time(value: Any, field: str) -> datetime:
    expected = "an ISO 8601 time such as 2026-10-01T12:00:00Z"
    if not isinstance(value, str):
        raise _wrong(field, f"got {kind_of(value)}, expected {expected}")
    try:
        time = datetime.fromisoformat(value)
        time = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise _wrong(field, f"got text that is no such time, expected {expected}") from None
    if time > datetime.now(timezone.utc) + _FUTURE:
        raise _wrong(field, "got a time that is yet to come, expected one that is past")
    return time


def date_of(tables: Mapping[str, pa.Table], as_of: datetime | None) -> datetime | None:
    """The date of a description: that of the data, or just after its newest event where that is later."""
    if as_of is None:
        return None
    latest = as_of
    for name, table in tables.items():
        time = schema.TABLES[name].time
        if time in table.column_names and table.num_rows and schema.TABLES[name].sharded:
            newest = pc.max(table[time]).as_py()
            if newest is not None and newest >= latest:
                latest = newest + timedelta(microseconds=1)
    return latest


def _wrong(field: str, message: str) -> Refused:
    return Refused(422, "invalid_field", f"{field}: {message}", field=field)
