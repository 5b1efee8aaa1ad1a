"""The canonical tables and the check at every boundary."""

from datetime import datetime, timezone

import pyarrow as pa
import pytest

from crmray import schema
from crmray.errors import SchemaError


def test_check_orders_fills_and_keeps_attributes():
    data = pa.table({"plan": pa.array([1, 2], pa.int32()), "entity_id": ["a", "b"]})
    checked = schema.check("customers", data)
    assert checked.column_names == [*schema.TABLES["customers"].fields, "plan"]
    assert checked.schema.field("plan").type == pa.int64()
    assert checked["created_at"].null_count == 2


def test_times_without_zone_are_utc():
    naive = pa.array([datetime(2026, 1, 2, 3)], pa.timestamp("ns"))
    checked = schema.check("transactions", pa.table({"entity_id": ["a"], "occurred_at": naive}))
    assert checked["occurred_at"][0].as_py() == datetime(2026, 1, 2, 3, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"occurred_at": [datetime(2026, 1, 1)]}, "'entity_id' is missing"),
        (
            {"entity_id": pa.array([None], pa.string()), "occurred_at": [datetime(2026, 1, 1)]},
            "'entity_id' holds 1 nulls",
        ),
        ({"entity_id": ["a"], "occurred_at": ["yesterday"]}, "'occurred_at' has type string"),
        ({"entity_id": ["a"], "occurred_at": [datetime(2026, 1, 1)], "x": [[1]]}, "attribute 'x' has type list"),
    ],
)
def test_check_names_the_column(columns, message):
    with pytest.raises(SchemaError, match=message) as told:
        schema.check("transactions", pa.table(columns))
    assert "yesterday" not in str(told.value)  # a value of a customer's row


def test_unknown_table():
    with pytest.raises(SchemaError, match="got table 'orders', expected one of customers"):
        schema.empty("orders")


def test_money_and_counts_carry_their_unit():
    for table in schema.TABLES.values():
        for name, type_ in table.fields.items():
            if name.endswith("_amount") or name.startswith("num_"):
                assert type_ == pa.float64(), (table.name, name)
            if name.endswith(("_at", "as_of")):
                assert type_ == schema.TIME, (table.name, name)
