"""Raw rows appended as they are: Arrow tables in the shape of the demo org's objects, straight into DuckDB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from crmray.salesforce.sandbox.metadata import SQL_TYPES, ObjectType
from crmray.salesforce.sandbox.org import Org


def load(org: Org, tables: Mapping[str, Iterable[pa.Table]]) -> dict[str, int]:
    """Object -> rows appended; ValueError for a column that its object does not have."""
    rows = dict.fromkeys(tables, 0)
    for name, parts in tables.items():
        spec = org.object(name)
        for part in parts:
            with org.transaction():
                _append(org, spec, part)
            rows[name] += part.num_rows
    return rows


def _append(org: Org, spec: ObjectType, table: pa.Table) -> None:
    """One table: its columns cast, the rest filled in."""
    given = _given(spec, table)
    selected = {name: _cast(spec, name) for name in given}
    for name, sql in _missing(org, spec, given, table.num_rows).items():
        selected[name] = sql
    names = ", ".join(f'"{name}"' for name in selected)
    sql = f'INSERT INTO "{spec.name}" ({names}) SELECT {", ".join(selected.values())} FROM staged'
    org.rows(sql, staged=table)
    latest = "SystemModstamp" if "SystemModstamp" in selected else "CreatedDate"
    if latest in given:
        org.raise_stamp(org.rows(f'SELECT max("{latest}")::TIMESTAMP FROM staged', staged=table)[0][0])


def _given(spec: ObjectType, table: pa.Table) -> list[str]:
    """Columns of the table that the object stores; relationship and derived ones apart."""
    names = []
    for name in table.column_names:
        one = spec.get(name)
        if one is not None and one.stored:
            names.append(one.name)
        elif one is None and "." not in name and name != "SystemModstamp":
            raise ValueError(f"{spec.name}: got column {name!r}, expected one of its fields")
    return names


def _cast(spec: ObjectType, name: str) -> str:
    one = spec.get(name)
    assert one is not None
    return f'"{name}"::{SQL_TYPES[one.type]}'


def _missing(org: Org, spec: ObjectType, given: list[str], count: int) -> dict[str, str]:
    """SQL for stored fields that the table lacks but every row has."""
    moment = '"SystemModstamp"' if "SystemModstamp" in given else '"CreatedDate"'
    values = {
        "LastModifiedDate": f"{moment}::TIMESTAMP",
        "SystemModstamp": f"{moment}::TIMESTAMP",
        "IsDeleted": "false",
    }
    values |= dict.fromkeys(("CreatedById", "LastModifiedById", "OwnerId"), f"'{org.user_id}'")
    found = {}
    for one in spec.fields:
        if one.name in given or not one.stored:
            continue
        if one.name in values:
            found[one.name] = values[one.name]
        elif one.auto_number:
            first = org.take_numbers(f"number {spec.name}", count)
            found[one.name] = f"lpad(({first - 1} + row_number() OVER ())::VARCHAR, 8, '0')"
        elif one.type == "boolean":
            found[one.name] = "true" if one.default else "false"
    return found
