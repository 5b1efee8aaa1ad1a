"""JSON rows of a request: what cannot be a column's value is refused with the field's name, never an error of ours."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from crmray import schema, tasks
from serve.described import tables_of
from serve.errors import Refused
from serve.http import parse

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


@pytest.mark.parametrize(
    ("task", "body", "field", "message"),
    [
        (
            "recommendation",
            '{"id": "a", "similar_to": "p"}',
            "similar_to",
            "similar_to: got id as well, expected exactly",
        ),
        ("churn", '{"ids": ["a"], "recent_events": {}}', "recent_events", "recent_events: got no id with them"),
        ("leads", '{"id": "a", "events": {}}', "events", "events: got events without lead"),
        ("intent", '{"id": "a", "recent_events": {}}', "recent_events", "recent_events: got rows, expected texts"),
        ("churn", "{}", None, "got none, expected exactly one of id, ids, customer"),
        ("churn", '{"id": "a",\n "ids": }', None, "the body is not valid JSON: expected value at line 2 column 9"),
    ],
)
def test_a_body_whose_parts_do_not_go_together_names_one(task, body, field, message) -> None:
    with pytest.raises(Refused) as refused:
        parse(tasks.task(task).Request, body.encode())
    assert (refused.value.status, refused.value.field) == (422, field)
    assert refused.value.message.startswith(message)
