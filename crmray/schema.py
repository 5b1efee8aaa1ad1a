"""The canonical tables: names, types, units, and the check at every boundary.

Times are timestamp[us, UTC]; money is in the org's currency and ends in `_amount`; counts begin with `num_`. A column
that a table does not name is an attribute: it travels with one of the types string, float64, int64, bool or timestamp.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import SchemaError, did_you_mean

TIME = pa.timestamp("us", tz="UTC")
_STR, _F64 = pa.string(), pa.float64()
KEYS = ("entity_id", "as_of", "part")
"""of a row of an examples table"""
ATTRIBUTE_TYPES = (_STR, _F64, pa.int64(), pa.bool_(), TIME)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One canonical table."""

    name: str
    """name in the lake"""
    fields: dict[str, pa.DataType]
    """column -> type"""
    required: tuple[str, ...]
    """columns that must be there and hold no null"""
    entity: str
    """column by whose hash rows are sharded and sorted first; the key of a table that is not sharded"""
    time: str | None = None
    """column by which rows are sorted second"""
    key: str | None = None
    """column that identifies a row, where mapped: rows that repeat it are duplicates"""
    sharded: bool = True
    """False: one file for all rows"""

    def __post_init__(self) -> None:
        known = {self.entity, *self.required, *filter(None, (self.time, self.key))}
        assert known <= set(self.fields), (self.name, known - set(self.fields))

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the named columns."""
        return pa.schema(
            [pa.field(name, type_, nullable=name not in self.required) for name, type_ in self.fields.items()]
        )


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            name="customers",
            fields={
                "entity_id": _STR, "created_at": TIME, "country": _STR, "region": _STR, "industry": _STR,
                "segment": _STR, "modified_at": TIME,
            },
            required=("entity_id",), entity="entity_id", key="entity_id",
        ),
        Table(
            name="products",
            fields={
                "product_id": _STR, "name": _STR, "category": _STR, "brand": _STR, "price_amount": _F64,
                "launched_at": TIME, "active": pa.bool_(),
            },
            required=("product_id",), entity="product_id", key="product_id", sharded=False,
        ),
        Table(
            name="transactions",
            fields={
                "entity_id": _STR, "occurred_at": TIME, "transaction_id": _STR, "order_id": _STR, "product_id": _STR,
                "num_units": _F64, "unit_price_amount": _F64, "net_amount": _F64, "channel": _STR,
            },
            required=("entity_id", "occurred_at"), entity="entity_id", time="occurred_at", key="transaction_id",
        ),
        Table(
            name="interactions",
            fields={
                "entity_id": _STR, "occurred_at": TIME, "interaction_id": _STR, "channel": _STR, "direction": _STR,
                "subject": _STR, "text": _STR, "reason": _STR, "rating": _F64, "status": _STR, "priority": _STR,
                "closed_at": TIME,
            },
            required=("entity_id", "occurred_at"), entity="entity_id", time="occurred_at", key="interaction_id",
        ),
        Table(
            name="engagement",
            fields={
                "entity_id": _STR, "occurred_at": TIME, "engagement_id": _STR, "kind": _STR, "campaign_id": _STR,
                "product_id": _STR, "seconds": _F64,
            },
            required=("entity_id", "occurred_at", "kind"), entity="entity_id", time="occurred_at", key="engagement_id",
        ),
        Table(
            name="campaigns",
            fields={"campaign_id": _STR, "name": _STR, "kind": _STR, "started_at": TIME, "ended_at": TIME},
            required=("campaign_id",), entity="campaign_id", key="campaign_id", sharded=False,
        ),
        Table(
            name="exposures",
            fields={"entity_id": _STR, "campaign_id": _STR, "occurred_at": TIME, "arm": _STR},
            required=("entity_id", "campaign_id", "occurred_at"), entity="entity_id", time="occurred_at",
        ),
        Table(
            name="subscriptions",
            fields={
                "entity_id": _STR, "subscription_id": _STR, "started_at": TIME, "ended_at": TIME, "plan": _STR,
                "monthly_amount": _F64,
            },
            required=("entity_id", "subscription_id", "started_at"), entity="entity_id", time="started_at",
            key="subscription_id",
        ),
        Table(
            name="leads",
            fields={
                "lead_id": _STR, "created_at": TIME, "source": _STR, "industry": _STR, "country": _STR, "status": _STR,
                "converted_at": TIME, "entity_id": _STR, "modified_at": TIME,
            },
            required=("lead_id", "created_at"), entity="lead_id", time="created_at", key="lead_id",
        ),
        Table(
            name="outcomes",
            fields={"entity_id": _STR, "as_of": TIME, "name": _STR, "value": _F64, "split": _STR},
            required=("entity_id", "name", "value"), entity="entity_id", time="as_of",
        ),
        Table(
            name="changes",
            fields={
                "entity_id": _STR, "object": _STR, "record_id": _STR, "field": _STR, "occurred_at": TIME,
                "old_value": _STR, "new_value": _STR,
            },
            required=("entity_id", "object", "field", "occurred_at"), entity="entity_id", time="occurred_at",
        ),
    )
}  # fmt: skip


def table(name: str) -> Table:
    """The canonical table of this name; SchemaError when there is none."""
    if name not in TABLES:
        raise SchemaError(f"got table {name!r}, expected one of {', '.join(TABLES)}{did_you_mean(name, TABLES)}")
    return TABLES[name]


def empty(name: str) -> pa.Table:
    """A table without rows, with the named columns."""
    return table(name).schema.empty_table()


def check(name: str, data: pa.Table) -> pa.Table:
    """Bring `data` to the canonical types, named columns first, attributes after them.

    Named columns that are absent and not required are added as nulls. Casts that would lose something, required columns
    that are absent or hold nulls, and attributes of other types raise SchemaError with the column's name.
    """
    spec = table(name)
    missing = [column for column in spec.required if column not in data.column_names]
    if missing:
        raise SchemaError(
            f"table {name}: column {missing[0]!r} is missing, expected {spec.required}, got {data.column_names}"
        )
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for column, type_ in spec.fields.items():
        if column not in data.column_names:
            columns[column] = pa.nulls(data.num_rows, type_)
            continue
        columns[column] = _cast(name, column, data[column], type_)
        if column in spec.required and columns[column].null_count:
            nulls = columns[column].null_count
            raise SchemaError(f"table {name}: column {column!r} holds {nulls} nulls, expected a value in every row")
    for column in data.column_names:
        if column not in spec.fields:
            columns[column] = _attribute(name, column, data[column])
    return pa.table(columns)


def _attribute(name: str, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Widen an attribute to the nearest of ATTRIBUTE_TYPES."""
    type_ = values.type
    if pa.types.is_dictionary(type_) or pa.types.is_large_string(type_) or pa.types.is_null(type_):
        return _cast(name, column, values, _STR)
    if pa.types.is_integer(type_):
        return _cast(name, column, values, pa.int64())
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return _cast(name, column, values, _F64)
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return _cast(name, column, values, TIME)
    if type_ in ATTRIBUTE_TYPES:
        return values
    raise SchemaError(
        f"table {name}: attribute {column!r} has type {type_}, expected one of {list(map(str, ATTRIBUTE_TYPES))}"
    )


def _cast(name: str, column: str, values: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    if values.type == type_:
        return values
    try:
        if type_ == TIME and pa.types.is_timestamp(values.type) and values.type.tz is None:
            values = pc.assume_timezone(values, "UTC")
        return values.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # whose message holds the value
        raise SchemaError(
            f"table {name}: column {column!r} has type {values.type} and a value that is no {type_}, expected {type_}"
        ) from None
