"""The standard mapping: it names columns that are there, and is cut to the objects and fields of an org."""

from __future__ import annotations

import pytest

from crmray import schema
from crmray.config import DemoSource, SalesforceSource
from crmray.data import demo
from crmray.data.demo_simulate import simulate
from crmray.salesforce.mapping import FURTHER, STANDARD, tables

LOGIN = {"flow": "client_credentials", "client_id": {"env": "ID"}, "client_secret": {"env": "SECRET"}}
STOCK = SalesforceSource(kind="salesforce", login=LOGIN)


@pytest.fixture(scope="module")
def demo_columns():
    world = demo.world(DemoSource(kind="demo", customers=100, months=24), 0)
    rows = demo.tables(world, simulate(world, 0), 0) | {name: make(world) for name, make in demo.SMALL.items()}
    return {name: table.column_names for name, table in rows.items()}


def test_every_source_maps_what_its_table_requires():
    for mapping in (STANDARD, FURTHER):
        for table, sources in mapping.items():
            for source in sources:
                spec = schema.table(table)
                given = set(source.columns) | set(source.values)
                assert given <= set(spec.fields), (table, source.object)
                assert set(spec.required) <= given, (table, source.object)


def test_the_demo_org_has_every_column(demo_columns):
    assert tables(STOCK, demo_columns) == STANDARD
    assert set(demo_columns) == set(demo.OBJECTS)
    for sources in STANDARD.values():
        for source in sources:
            looked_at = {
                *source.columns.values(),
                *source.attributes,
                *(name for entry in source.drop for name in entry),
            }
            assert looked_at <= set(demo_columns[source.object]), source.object


def test_only_the_objects_at_hand_are_mapped(demo_columns):
    there = ("Account", "OrderItem", "Lead", "AccountHistory")
    found = tables(STOCK, {name: demo_columns[name] for name in there})
    assert {table: [source.object for source in sources] for table, sources in found.items()} == {
        "customers": ["Account"], "transactions": ["OrderItem"], "leads": ["Lead"],
        "changes": ["AccountHistory"],
    }  # fmt: skip


def test_fields_that_an_org_lacks_are_left_out(demo_columns):
    stock = {
        name: [column for column in columns if not column.endswith("__c")] for name, columns in demo_columns.items()
    }
    del stock["Web_Visit__c"]
    found = tables(STOCK, stock)
    # a stock org knows when mail was sent and answered, not when it was opened, and has no arms
    assert [source.values["kind"] for source in found["engagement"]] == ["send", "click"]
    assert all(not any("Arm__c" in entry for entry in source.drop) for source in found["engagement"])
    assert "price_amount" not in found["products"][0].columns
    assert found["customers"][0].attributes == ["NumberOfEmployees"]
    stock["Task"] = [column for column in stock["Task"] if column != "TaskSubtype"]
    assert "Task" not in [source.object for source in tables(STOCK, stock)["interactions"]]
