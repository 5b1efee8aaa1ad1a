"""JSON rows of a request: what cannot be a column's value is refused with the field's name, never an error of ours."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from crmray import schema, tasks
from serve.described import tables_of
from serve.errors import Refused
from serve.http import of_query, parse

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
        ("intent", '{"id": "a", "recent_events": {}}', "recent_events", "recent_events: got an object, expected"),
        ("churn", "{}", None, "got none, expected exactly one of id, ids, customer"),
        ("churn", '{"id": "a",\n "ids": }', None, "the body is not valid JSON: expected value at line 2 column 9"),
        ("forecast", '{"id": "total", "explain": true}', "explain", "explain: got true, expected false: no reasons"),
        ("sentiment", '{"id": "a", "explain": true}', "explain", "explain: got true, expected false: no reasons"),
    ],
)
def test_a_body_whose_parts_do_not_go_together_names_one(task, body, field, message) -> None:
    with pytest.raises(Refused) as refused:
        parse(tasks.task(task).Request, body.encode())
    assert (refused.value.status, refused.value.field) == (422, field)
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize(
    ("task", "body", "message"),
    [
        (
            "churn",
            '{"idd": "a"}',
            "idd: got an unknown field, expected only id, ids, customer, recent_events, explain, threshold; "
            "did you mean 'id'?",
        ),
        ("churn", '{"id": 7}', "id: got a number, expected text (one known id, as the org writes it)"),
        ("churn", '{"ids": "Ann Lee"}', "ids: got text, expected a list (up to 1000 known ids)"),
        ("churn", '{"ids": ["a", null]}', "ids.1: got null, expected text (up to 1000 known ids)"),
        ("churn", '{"ids": []}', "ids: got a list, expected at least 1 of them (up to 1000 known ids)"),
        (
            "recommendation",
            '{"id": "a", "num_products": 0}',
            "num_products: got a number, expected 1 or more (how many",
        ),
        ("recommendation", '{"id": "a", "num_products": 1.5}', "num_products: got a number, expected a whole number"),
        ("churn", '{"id": "a", "threshold": 2}', "threshold: got a number, expected 1 or less (probability from"),
        ("churn", '{"id": "a", "explain": "Ann"}', "explain: got text, expected true or false (give reasons"),
        ("churn", '{"customer": [3]}', "customer: got a list, expected an object (someone not in the data"),
        ("churn", '{"customer": {"customers": [true]}}', "customer.customers.0: got true, expected an object (someone"),
        ("churn", "[1]", "the body: got a list, expected an object"),
        ("leads", '{"customer": {}}', "customer: got an object, expected nothing (not used: a lead is described under"),
        ("forecast", '{"customer": {}}', "customer: got an object, expected nothing (not used: a series is made of"),
        ("sentiment", '{"customer": {}}', "customer: got an object, expected nothing (not used: what is written is"),
    ],
)
def test_a_wrong_field_is_told_in_our_words_and_without_its_value(task, body, message) -> None:
    with pytest.raises(Refused) as refused:
        parse(tasks.task(task).Request, body.encode())
    assert refused.value.message.startswith(message)
    for foreign in ("Ann", "Input", "a valid", "Extra"):
        assert foreign not in refused.value.message


@pytest.mark.parametrize(
    ("task", "taken"), [("forecast", "id, ids"), ("sentiment", "id, ids, texts"), ("intent", "id, ids, texts")]
)
def test_fields_that_are_refused_whatever_they_hold_are_not_offered(task, taken) -> None:
    with pytest.raises(Refused) as refused:
        parse(tasks.task(task).Request, b'{"id": "a", "explian": true}')
    assert refused.value.message == f"explian: got an unknown field, expected only {taken}"


def test_a_wrong_option_of_a_look_up_is_told_in_the_same_words() -> None:
    with pytest.raises(Refused, match=r"^threshold: got text, expected a number \(probability from which"):
        of_query(tasks.task("churn").Request, "a", [("threshold", "high")])
    with pytest.raises(Refused, match=r"^tresh: got an unknown field, .*; did you mean 'threshold'\?$"):
        of_query(tasks.task("churn").Request, "a", [("tresh", "1")])
    request = tasks.task("forecast").Request
    with pytest.raises(Refused, match="^explain: got true, expected false: no reasons"):
        of_query(request, "total", [("explain", "true")])
    assert not of_query(request, "total", [("explain", "false")]).explain


def test_values_of_rows_are_not_told_and_near_names_are() -> None:
    for row, message in (
        ({"age": "Ann Lee"}, "customer.customers.0.age: got text, expected a number"),
        ({"created_at": "Ann Lee"}, "customer.customers.0.created_at: got text that is no such time, expected an ISO"),
        ({"created_at": "2999-01-01"}, "customer.customers.0.created_at: got a time that is yet to come, expected"),
        ({"incom": 3}, "customer.customers.0.incom: got column 'incom', expected one of: age, "),
    ):
        with pytest.raises(Refused) as refused:
            described(json.dumps({"customers": [row]}))
        assert refused.value.message.startswith(message)
        assert "Ann" not in refused.value.message
    assert refused.value.message.endswith("; did you mean 'income'?")
    with pytest.raises(Refused, match=r"got table 'customer', expected .*: customers; did you mean 'customers'\?"):
        described('{"customer": []}')
