"""Rows as Salesforce sends them, to Arrow with the types that its describe tells: CSV of the Bulk API as a stream of
tables of bounded size, records of the REST API at once.

Salesforce has no empty strings: what is empty is null. Dates become midnight UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from crmray.errors import SchemaError
from crmray.schema import TIME

BLOCK_BYTES = 4 << 20
"""of CSV parsed at once; a record is shorter (a long text area holds 131,072 characters)"""
TABLE_BYTES = 8 << 20
"""of rows in memory for each page that is being read"""
_DATE = pa.timestamp("us")
_TYPES = {
    "boolean": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "double": pa.float64(), "currency": pa.float64(),
    "percent": pa.float64(), "datetime": TIME, "date": _DATE,
}  # fmt: skip


def type_of(salesforce_type: str) -> pa.DataType:
    """Arrow type of a column in raw/: bool, int64, float64, timestamp[us, UTC] or string."""
    type_ = _TYPES.get(salesforce_type, pa.string())
    return TIME if type_ == _DATE else type_


def schema_of(fields: Sequence[str], types: Mapping[str, str]) -> pa.Schema:
    """Arrow schema of rows with these fields. types: SOQL path -> Salesforce's type."""
    return pa.schema([(field, type_of(types[field])) for field in fields])


def from_csv(name: str, stream: Any, fields: Sequence[str], types: Mapping[str, str]) -> Iterator[pa.Table]:
    """Tables of about TABLE_BYTES from one page of Bulk results, columns named and ordered as `fields`.

    name: of the object, for messages; stream: a readable binary file, whose errors pass through. SchemaError when the
    header differs from `fields` or a value is not of its type.
    """
    parsed = {field: _TYPES.get(types[field], pa.string()) for field in fields}
    waiting: list[pa.RecordBatch] = []
    num_bytes = 0
    try:
        reader = pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=parsed,
                null_values=[""],
                true_values=["true"],
                false_values=["false"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        if reader.schema.names != list(fields):
            odd = sorted(set(fields) ^ set(reader.schema.names)) or ["the order of columns"]
            raise SchemaError(f"object {name}: got a page that differs in {odd[0]}, expected the columns asked for")
        for batch in reader:
            waiting.append(batch)
            num_bytes += batch.nbytes
            if num_bytes >= TABLE_BYTES:
                yield _with_zones(pa.Table.from_batches(waiting))
                waiting, num_bytes = [], 0
    except pa.ArrowInvalid as error:
        raise SchemaError(_unreadable(name, fields, types, str(error))) from None
    if waiting:
        yield _with_zones(pa.Table.from_batches(waiting))


def _unreadable(name: str, fields: Sequence[str], types: Mapping[str, str], message: str) -> str:
    """What pyarrow says, without the value that it shows."""
    found = re.search(r"CSV column #(\d+)", message)
    if found and int(found[1]) < len(fields):
        field = fields[int(found[1])]
        return (
            f"object {name}: {field}: got a value that is no {types[field]}, expected what describe tells; pull again"
        )
    return f"object {name}: got a page that is no CSV with {len(fields)} columns, expected one; pull again"


def _with_zones(table: pa.Table) -> pa.Table:
    """Dates as timestamps in UTC; the same values, so no work."""
    for index, field in enumerate(table.schema):
        if field.type == _DATE:
            table = table.set_column(index, field.name, table.column(index).cast(TIME))
    return table


def from_records(
    name: str, records: Sequence[Mapping[str, Any]], fields: Sequence[str], types: Mapping[str, str]
) -> pa.Table:
    """One table from flattened REST records; a field that a record lacks is null. SchemaError for a wrong type."""
    columns = {}
    for field in fields:
        values = [record.get(field) for record in records]
        type_ = _TYPES.get(types[field], pa.string())
        if pa.types.is_string(type_):  # the values of a history have the type of the field that changed
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        try:
            if pa.types.is_timestamp(type_):
                columns[field] = pc.cast(pa.array(values, pa.string()), type_)
            else:
                columns[field] = pa.array(values, type_)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise SchemaError(
                f"object {name}: {field}: got a value that is no {types[field]}, expected its type; pull again"
            ) from None
        if pa.types.is_string(type_):
            columns[field] = pc.if_else(pc.equal(columns[field], ""), pa.scalar(None, type_), columns[field])
    return _with_zones(pa.table(columns))
