"""Incremental pulls: after any change the lake is what a fresh full pull would be, row by row, run_id included."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pulling
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray.errors import SalesforceError
from crmray.salesforce import catalogue, pages, proof, stage
from crmray.salesforce.changes import Asking
from crmray.salesforce.fingerprint import Fingerprint, of_rows
from crmray.salesforce.sandbox import translate
from crmray.salesforce.sandbox.metadata import Field
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake, Run

CUSTOM = {
    "transactions": {
        "object": "OrderItem",
        "columns": {
            "entity_id": "Order.AccountId", "occurred_at": "Order.EffectiveDate", "transaction_id": "Id",
            "net_amount": "TotalPrice", "channel": "Order.Account.Industry",
        },
        "attributes": ["Margin__c"],
    }
}  # fmt: skip


@pytest.fixture(autouse=True)
def _smaller(small_pulls: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crmray.salesforce.catalogue.REST_ROWS", 100)


def ids(sandbox: Sandbox, name: str, limit: int, offset: int = 0, where: str = "Id != null") -> list[str]:
    found = sandbox.store.query(f"SELECT Id FROM {name} WHERE {where} ORDER BY Id LIMIT {limit} OFFSET {offset}")
    return found.table["Id"].to_pylist()


def same(runs: dict[str, Run], fresh: dict[str, Run]) -> None:
    for name, run in fresh.items():
        assert pulling.rows(runs[name]).equals(pulling.rows(run)) if name != "consent" else True, name
        assert runs[name].run_id == run.run_id, name


def counted(run: Run) -> int:
    """Rows that landed, and those withheld."""
    return run.manifest()["rows"] + run.manifest()["reconciled"]["withheld"]


def add_formula(sandbox: Sandbox) -> None:
    field = Field(name="Margin__c", type="double", calculated=True, formula="{TotalPrice} * 0.5", createable=False, updateable=False)  # fmt: skip  # noqa: E501
    sandbox.store.add_field("OrderItem", field)


def test_after_changes_it_is_a_fresh_full_pull(sandbox: Sandbox, tmp_path: Path) -> None:
    store = sandbox.store
    add_formula(sandbox)
    path = pulling.org_file(sandbox, tmp_path, tables=CUSTOM)
    first = pulling.pull(path)
    assert "how" in first["OrderItem"].manifest()["facts"]

    # own rows: inserted, updated, deleted, deleted for good, deleted and taken back
    visits = ids(sandbox, "Web_Visit__c", 60, offset=500)
    account = ids(sandbox, "Account", 1)[0]
    store.insert(
        "Web_Visit__c", [{"Account__c": account, "Seconds__c": 7, "Visited_At__c": "2026-09-01T00:00:00Z"}] * 25
    )
    store.update("Web_Visit__c", [{"Id": id_, "Seconds__c": 1234} for id_ in visits[:20]])
    store.delete("Web_Visit__c", visits[20:35])
    store.hard_delete("Web_Visit__c", visits[35:50])
    store.delete("Web_Visit__c", visits[50:])
    store.undelete("Web_Visit__c", visits[55:])
    # a parent, the parent's parent, and a child that moves
    orders = ids(sandbox, "Order", 30, offset=40)
    other = ids(sandbox, "Account", 2, offset=5)
    store.update("Order", [{"Id": id_, "AccountId": other[0]} for id_ in orders[:10]])
    store.update("Account", [{"Id": other[1], "Industry": "Energy"}])
    store.delete("Order", orders[20:22])
    # a formula of a few rows, through their price
    items = ids(sandbox, "OrderItem", 8, offset=900)
    store.update("OrderItem", [{"Id": id_, "Quantity": 3} for id_ in items])

    runs = pulling.pull(path)
    how = {name: run.manifest()["facts"]["how"] for name, run in runs.items() if name in ("OrderItem", "Web_Visit__c")}
    assert how == {"OrderItem": "changes", "Web_Visit__c": "changes"}
    same(runs, pulling.pull(pulling.org_file(sandbox, tmp_path, lake="fresh", tables=CUSTOM)))
    assert runs["Web_Visit__c"].manifest()["rows"] == first["Web_Visit__c"].manifest()["rows"] + 25 - 15 - 15 - 5


def test_a_formula_changes_while_no_modstamp_moves(sandbox: Sandbox, tmp_path: Path) -> None:
    add_formula(sandbox)
    path = pulling.org_file(sandbox, tmp_path, tables=CUSTOM)
    first = pulling.pull(path)["OrderItem"]
    dear = pulling.rows(first)["TotalPrice"].to_pylist()
    limit = sorted(dear)[-20]
    sandbox.store.set_formula("OrderItem", "Margin__c", f"CASE WHEN {{TotalPrice}} >= {limit} THEN 1 ELSE {{TotalPrice}} * 0.5 END")  # fmt: skip  # noqa: E501
    runs = pulling.pull(path)
    assert runs["OrderItem"].manifest()["facts"]["how"] == "changes"
    assert sum(value == 1 for value in pulling.rows(runs["OrderItem"])["Margin__c"].to_pylist()) >= 20
    sandbox.store.set_formula("OrderItem", "Margin__c", "{TotalPrice} * 0.25")
    runs = pulling.pull(path)
    assert runs["OrderItem"].manifest()["facts"]["how"] == "all"
    same(runs, pulling.pull(pulling.org_file(sandbox, tmp_path, lake="fresh", tables=CUSTOM)))


def test_a_formula_of_a_parent_changes(sandbox: Sandbox, tmp_path: Path) -> None:
    size = Field(name="Size__c", type="double", calculated=True, formula="{NumberOfEmployees} * 2", createable=False, updateable=False)  # fmt: skip  # noqa: E501
    sandbox.store.add_field("Account", size)
    tables = {"transactions": {**CUSTOM["transactions"], "attributes": ["Order.Account.Size__c"]}}
    path = pulling.org_file(sandbox, tmp_path, tables=tables)
    pulling.pull(path)
    sandbox.store.set_formula("Account", "Size__c", "{NumberOfEmployees} * 3")
    same(pulling.pull(path), pulling.pull(pulling.org_file(sandbox, tmp_path, lake="fresh", tables=tables)))


def test_archived_activities_are_read_and_deleted_ones_are_not(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a real org, where queries give no activity of more than a year ago and queryAll does."""
    where = translate._Translation._where

    def without_archived(self: translate._Translation) -> str:
        hides = self.source.root.get("IsArchived") is not None and not self.all_rows
        return where(self) + (f' AND NOT {self.source.alias}."IsArchived"' if hides else "")

    monkeypatch.setattr(translate._Translation, "_where", without_archived)
    store = sandbox.store
    store.add_field("Task", Field(name="IsArchived", type="boolean"))
    account = ids(sandbox, "Account", 1)[0]
    task = {"WhatId": account, "Subject": "Call", "Status": "Completed"}
    made = store.insert("Task", [{**task, "IsArchived": number < 250} for number in range(300)])
    assert all(one.success for one in made), made[0].errors
    store.delete("Task", [one.id for one in made[:3]])
    path = pulling.org_file(sandbox, tmp_path, without=[name for name in pulling.OTHERS if name != "Task"])
    there = store.query("SELECT COUNT() FROM Task WHERE IsDeleted = false", all_rows=True).count
    assert counted(pulling.pull(path)["Task"]) == there
    store.delete("Task", [one.id for one in made[3:5]])
    store.hard_delete("Task", [made[5].id])
    time.sleep(1.0)  # rows created in the second in which a pull begins are proven by the next one
    run = pulling.pull(path)["Task"]
    assert (run.manifest()["facts"]["how"], counted(run)) == ("changes", there - 3)


def test_values_of_a_history_have_the_types_of_its_fields() -> None:
    records = [{"Id": str(number), "NewValue": value} for number, value in enumerate([True, 2.5, "Gold", None])]
    table = pages.from_records("AccountHistory", records, ("Id", "NewValue"), {"Id": "id", "NewValue": "anyType"})
    assert table["NewValue"].to_pylist() == ["true", "2.5", "Gold", None]


def test_a_query_too_long_for_an_address_goes_to_bulk() -> None:
    few = stage.Query(soql="SELECT Id FROM Account", rows=1, rest=True)
    assert not stage.by_bulk(few)
    fields = ", ".join(f"Field_{number:04d}__c" for number in range(1_000))
    assert stage.by_bulk(stage.Query(soql=f"SELECT {fields} FROM Account", rows=1, rest=True))


def test_who_withdraws_leaves_and_who_returns_comes_back(sandbox: Sandbox, tmp_path: Path) -> None:
    for name in ("pseudonym", "vault"):
        (tmp_path / f"{name}.key").write_text("ab" * 32)
    privacy = {f"{name}_key": {"file": f"{name}.key"} for name in ("pseudonym", "vault")}

    def org_file(lake: str) -> Path:
        path = pulling.org_file(sandbox, tmp_path, lake=lake)
        path.write_text(path.read_text() + json.dumps({"privacy": privacy})[1:-1] + "\n")
        return path

    path = org_file("lake")
    rows = {name: run.manifest().get("rows") for name, run in pulling.pull(path).items()}
    contact = sandbox.store.query("SELECT IndividualId, AccountId FROM Contact WHERE IndividualId != null").table
    wishes = (
        sandbox.store.query("SELECT Id FROM Individual WHERE HasOptedOutProcessing = false").table["Id"].to_pylist()
    )
    person, account = next(
        (one["IndividualId"], one["AccountId"]) for one in contact.to_pylist() if one["IndividualId"] in wishes
    )
    for flag in (True, False):
        sandbox.store.update("Individual", [{"Id": person, "HasOptedOutProcessing": flag}])
        visit = {"Account__c": account, "Seconds__c": 1, "Visited_At__c": "2026-09-01T00:00:00Z"}
        sandbox.store.insert("Web_Visit__c", [visit])
        runs = pulling.pull(path)
        manifest = runs["Web_Visit__c"].manifest()
        proof = manifest["reconciled"]
        assert proof["rows"] + proof["later"] == manifest["rows"] + proof["withheld"]
        assert (manifest["rows"] < rows["Web_Visit__c"]) == flag
        again = pulling.pull(path)
        assert {name: run.run_id for name, run in again.items()} == {name: run.run_id for name, run in runs.items()}
    assert manifest["rows"] == rows["Web_Visit__c"] + 2
    assert not pc.any(pc.starts_with(pulling.rows(runs["Account"])["Id"], "001")).as_py()


def stopped_pull(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that ends when all pages of an object are there and nothing is proven yet."""

    def stopped(asking: Asking, *arguments: Any, **options: Any) -> Any:
        if asking.plan.name == name:
            raise SalesforceError("the pages are there")
        return proof.prove(asking, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("crmray.salesforce.pull.prove", stopped)
        with pytest.raises(SalesforceError, match="the pages are there"):
            pulling.pull(path)


def test_who_withdraws_before_a_pull_goes_on_is_left_out(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    stopped_pull(path, "Web_Visit__c", monkeypatch)
    visited = set(sandbox.store.query("SELECT Account__c FROM Web_Visit__c").table["Account__c"].to_pylist())
    contacts = sandbox.store.query("SELECT IndividualId, AccountId FROM Contact").table.to_pylist()
    person, account = next((one["IndividualId"], one["AccountId"]) for one in contacts if one["AccountId"] in visited)
    sandbox.store.update("Individual", [{"Id": person, "HasOptedOutProcessing": True}])
    runs = pulling.pull(path)
    assert account not in pulling.rows(runs["Web_Visit__c"])["Account__c"].to_pylist()
    same(runs, pulling.pull(pulling.org_file(sandbox, tmp_path, lake="fresh")))


def test_a_name_learned_before_a_pull_goes_on_is_taken_out_of_texts_read_before(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    cases = sandbox.store.query("SELECT Id, ContactId, Description FROM Case WHERE ContactId != null LIMIT 1").table
    (case,) = cases.to_pylist()  # an old one: a row of this second would be asked for again anyway
    word = max(re.findall(r"[a-z]+", case["Description"]), key=len)
    monkeypatch.setattr(catalogue, "REST_ROWS", 10)  # small objects are read anew anyway
    monkeypatch.setattr(stage, "REST_ROWS", 10)
    stopped_pull(path, "Case", monkeypatch)
    sandbox.store.update("Contact", [{"Id": case["ContactId"], "FirstName": word}])
    rows = pulling.rows(pulling.pull(path)["Case"])
    texts = dict(zip(rows["Id"].to_pylist(), rows["Description"].to_pylist(), strict=True))
    assert "[NAME]" in texts[case["Id"]]
    assert not re.search(rf"\b{word}\b", texts[case["Id"]])


def test_a_fingerprint_is_of_the_rows_alone() -> None:
    rows = pa.table({"Id": ["001A", "001B", "001C"], "n": [1.5, None, 2.0], "text": ["", "long " * 50, None]})
    names = rows.column_names
    whole = Fingerprint.of(of_rows(rows, names))
    parts = [Fingerprint.of(of_rows(rows.slice(start, 1), names)) for start in (2, 0, 1)]
    assert parts[0] + parts[1] + parts[2] == whole
    assert whole - parts[0] == Fingerprint.of(of_rows(rows.slice(0, 2), names))
    assert Fingerprint.parse(str(whole)) == whole
    other = rows.set_column(1, "n", pa.array([1.5, 0.0, 2.0]))
    assert Fingerprint.of(of_rows(other, names)) != whole
    assert Fingerprint.of(of_rows(rows, ["Id", "text", "n"])) != whole
    assert len(set(of_rows(pa.table({"a": ["x", "y", "y", None, ""]}), ["a"]).tolist())) == 4
    ids = pa.table({"a": ["001000000000001AAA", "002000000000002AAA"]})
    assert (
        of_rows(ids, ["a"]).tolist() == of_rows(pa.table({"a": [*ids["a"].to_pylist(), "z" * 70]}), ["a"]).tolist()[:2]
    )


def test_an_unchanged_org_costs_few_calls(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    pulling.pull(path)
    before = sandbox.calls.used
    runs = pulling.pull(path)
    assert sandbox.calls.used - before <= 9 * len(runs)
    lake = Lake(tmp_path / "lake")
    assert all(len(lake.runs("raw", name)) == 1 for name in runs)
