"""JSON rows of a request: what cannot be a column's value is refused with the field's name, never an error of ours."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from crmray import schema
from serve.described import tables_of
from serve.errors import Refused

CUSTOMERS = pa.schema(
    [*schema.table("customers").schema, pa.field("age", pa.int64()), pa.field("income", pa.float64())]
)


def described(body: str) -> pa.Table:
    return tables_of(json.loads(body), {"customers": CUSTOMERS}, field="customer", entity_id="inline")["customers"]


def test_a_row_becomes_the_tables_types() -> None:
    row = described('{"customers": [{"age": 40.0, "income": 1, "created_at": "2026-01-02"}]}').to_pylist()[0]
    assert (row["entity_id"], row["age"], row["income"]) == ("inline", 40, 1.0)
    assert row["created_at"].isoformat() == "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize("column", ["age", "income"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"40"', "true", "[1]", "1" + "0" * 400])
def test_what_is_no_number_names_the_field(column: str, value: str) -> None:
    with pytest.raises(Refused, match=rf"customer\.customers\.0\.{column}: got") as refused:
        described(f'{{"customers": [{{"{column}": {value}}}]}}')
    assert (refused.value.status, refused.value.field) == (422, f"customer.customers.0.{column}")


def test_half_a_number_is_no_whole_one() -> None:
    with pytest.raises(Refused, match="whole number"):
        described('{"customers": [{"age": 40.5}]}')
