"""Incremental pulls: after any change the lake is what a fresh full pull would be, row by row, run_id included."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray.salesforce.fingerprint import Fingerprint, of_rows
from crmray.salesforce.sandbox.metadata import Field
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake, Run
from tests.salesforce import pulling

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
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for (module, name), value in pulling.SMALL.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("crmray.salesforce.catalogue.REST_ROWS", 100)


def ids(sandbox: Sandbox, name: str, limit: int, offset: int = 0, where: str = "Id != null") -> list[str]:
    found = sandbox.store.query(f"SELECT Id FROM {name} WHERE {where} ORDER BY Id LIMIT {limit} OFFSET {offset}")
    return found.table["Id"].to_pylist()


def same(runs: dict[str, Run], fresh: dict[str, Run]) -> None:
    for name, run in fresh.items():
        assert pulling.rows(runs[name]).equals(pulling.rows(run)) if name != "consent" else True, name
        assert runs[name].run_id == run.run_id, name


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
