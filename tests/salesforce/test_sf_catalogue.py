"""What an org has of the mapping, asked of sandbox orgs: fields, paths, lacks, tasks, calls, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from crmray import cli, config
from crmray.commands import describe
from crmray.data import ingest, shard
from crmray.data.plans import inline
from crmray.errors import ConfigError
from crmray.salesforce import catalogue, costs, mapping, pull
from crmray.salesforce.catalogue import ABSENT, POLYMORPHIC, Catalogue
from crmray.salesforce.client import Client
from crmray.salesforce.limits import CallLedger
from crmray.salesforce.sandbox.metadata import Field, object_type
from crmray.salesforce.sandbox.server import Sandbox
from crmray.sources import TableSource
from crmray.storage import Lake


def org_file(sandbox: Sandbox, folder: Path, *, lake: str = "lake", **source: object) -> Path:
    return sandbox.org_file(folder / f"{lake}.yaml", storage=lake, source=source)


def read(path: Path) -> Catalogue:
    org = config.load(path)
    with Client.connect(org.source, org.folder) as client:
        return catalogue.read(client, org)


def test_a_stock_org_needs_no_mapping(sandbox: Sandbox, tmp_path: Path):
    found = read(org_file(sandbox, tmp_path))
    found.check()
    assert set(found.tables) == {
        "customers", "products", "transactions", "interactions", "engagement", "campaigns", "exposures", "leads",
        "changes", "subscriptions",
    }  # fmt: skip
    items = found.objects["OrderItem"]
    assert items.fields[0] == "Id"
    assert {"Order.AccountId", "Order.EffectiveDate", "Quantity", "SystemModstamp", "IsDeleted"} <= set(items.fields)
    assert items.types["Order.EffectiveDate"] == "date"
    assert items.parents == {"Order": "Order"}
    assert set(items.derived) == {"Order.AccountId", "Order.Channel__c", "Order.EffectiveDate", "Order.Status"}
    assert items.rows == sandbox.store.query("SELECT COUNT() FROM OrderItem").count
    # history rows never change, and carry no modstamp
    assert found.objects["AccountHistory"].modstamp == "CreatedDate"
    assert items.modstamp == "SystemModstamp"
    assert found.objects["Contact"].tables == ()
    assert {"HasOptedOutOfEmail", "IndividualId", "AccountId"} <= set(found.objects["Contact"].fields)
    assert "ShouldForget" in found.objects["Individual"].fields


def test_an_org_without_orders_sells_by_opportunities(empty_sandbox: Sandbox, tmp_path: Path):
    store = empty_sandbox.store
    path = org_file(empty_sandbox, tmp_path)
    assert [source.object for source in read(path).tables["transactions"]] == ["OrderItem"]
    account = store.insert("Account", [{"Name": "One"}])[0].id
    product = store.insert("Product2", [{"Name": "Thing", "IsActive": True}])[0].id
    entry = {"UnitPrice": 2.0, "Product2Id": product, "IsActive": True}
    deal = {"Name": "Deal", "AccountId": account, "StageName": "Closed Won", "CloseDate": "2026-05-01"}
    opportunity = store.insert("Opportunity", [deal])[0]
    assert opportunity.success, opportunity.errors
    line = {"OpportunityId": opportunity.id, "Product2Id": product, "Quantity": 2.0, "UnitPrice": entry["UnitPrice"]}
    result = store.insert("OpportunityLineItem", [line])[0]
    assert result.success, result.errors
    found = read(path)
    assert [source.object for source in found.tables["transactions"]] == ["OpportunityLineItem"]
    assert "OrderItem" not in found.objects
    assert {"Opportunity.AccountId", "Opportunity.IsWon"} <= set(found.objects["OpportunityLineItem"].fields)


def with_regions(sandbox: Sandbox) -> None:
    """Account.Region__c -> Region__c.Country__c -> Country__c, and a formula on Account."""
    store = sandbox.store
    for name, prefix in (("Country__c", "a90"), ("Region__c", "a91")):
        store.add_object(object_type(name, prefix, []))
    for name, target in (("Region__c", "Country__c"), ("Account", "Region__c")):
        lookup = Field(name=target, type="reference", reference_to=(target,), relationship_name=f"{target[:-1]}r")
        store.add_field(name, lookup)
    size = Field(name="Size__c", type="double", formula="{NumberOfEmployees} * 2", calculated=True)
    store.add_field("Account", size)


def test_paths_over_several_relationships(empty_sandbox: Sandbox, tmp_path: Path):
    with_regions(empty_sandbox)
    account = {
        "object": "Account",
        "columns": {"entity_id": "Id", "country": "Region__r.Country__r.Name"},
        "attributes": ["Size__c"],
    }
    task = {
        "object": "Task",
        "columns": {"entity_id": "AccountId", "occurred_at": "CreatedDate", "subject": "What.Name"},
    }
    found = read(org_file(empty_sandbox, tmp_path, tables={"customers": account, "interactions": task}))
    found.check()
    plan = found.objects["Account"]
    assert plan.types["Region__r.Country__r.Name"] == "string"
    assert plan.parents == {"Region__r": "Region__c", "Region__r.Country__r": "Country__c"}
    assert plan.formulas == ("Size__c",)
    assert plan.derived == ("Size__c", "Region__r.Country__r.Name")
    # the org file's source of Account and of Task take the place of the standard ones, for these tables
    assert [source.columns for source in found.tables["customers"]] == [account["columns"]]
    assert [source.object for source in found.tables["interactions"]].count("Task") == 1
    assert "What.Name" in found.objects["Task"].fields
    # the plan is SOQL that the org answers
    for one in found.objects.values():
        empty_sandbox.store.query(f"SELECT {', '.join(one.fields)} FROM {one.name} LIMIT 1")


def test_what_is_not_there_is_told_and_refused_where_the_org_file_names_it(empty_sandbox: Sandbox, tmp_path: Path):
    tables = {
        "customers": {"object": "Account", "columns": {"entity_id": "Id", "segment": "Tier__c"}},
        "interactions": {
            "object": "Task",
            "columns": {"entity_id": "What.AccountId", "occurred_at": "CreatedDate"},
        },
        "engagement": {
            "object": "Click__c",
            "columns": {"entity_id": "Account__c", "occurred_at": "At__c"},
            "values": {"kind": "visit"},
        },
    }
    found = read(org_file(empty_sandbox, tmp_path, tables=tables))
    asked = {(lack.object, lack.path): lack.why for lack in found.lacks if lack.asked}
    assert asked == {("Account", "Tier__c"): ABSENT, ("Task", "What.AccountId"): POLYMORPHIC, ("Click__c", ""): ABSENT}
    with pytest.raises(ConfigError, match=r"Account.Tier__c: not there, or the user has no permission .*\(and 2 more"):
        found.check()
    # what only the standard mapping would have used is told, and done without
    quiet = read(org_file(empty_sandbox, tmp_path, lake="other", without=["Lead"]))
    quiet.check()
    assert ("OrderItemHistory", "", ABSENT) in {(lack.object, lack.path, lack.why) for lack in quiet.lacks}
    assert "leads" not in quiet.tables


def test_a_source_of_the_org_file_stands_in_for_the_standard_one():
    own = TableSource(object="Invoice__c", columns={"entity_id": "Account__c", "occurred_at": "Day__c"})
    login = {"flow": "jwt", "client_id": {"env": "A"}, "username": "u", "private_key": {"env": "B"}}
    source = config.SalesforceSource(kind="salesforce", login=login, tables={"transactions": [own]}, without=["Task"])
    wanted = mapping.wanted(source)
    # orders stay beside the invoices; deals, which would only stand in for orders, do not
    assert [part.object for part in wanted["transactions"]] == ["OrderItem", "Invoice__c"]
    assert "Task" not in {part.object for part in wanted["interactions"]}
    assert mapping.tables(source, {"Account": ["Id"]}) == {
        "customers": [mapping.STANDARD["customers"][0].model_copy(
            update={"columns": {"entity_id": "Id"}, "attributes": [], "drop": []}
        )]
    }  # fmt: skip


def test_calls_are_foretold(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The formula against the ledger of a real pull, whole and of no changes."""
    ledgers: list[CallLedger] = []

    def ledger(reserve: float) -> CallLedger:
        ledgers.append(CallLedger(reserve))
        return ledgers[-1]

    monkeypatch.setattr(pull, "CallLedger", ledger)
    path = org_file(sandbox, tmp_path, page_rows=5_000)
    org, found = config.load(path), read(path)
    for _ in range(2):
        ingest.ingest(org, Lake.of(org))
    told = [sum(costs.full(found, 5_000).values()), sum(costs.incremental(found, 5_000, {}).values())]
    for foretold, made in zip(told, (used.total() for used in ledgers), strict=True):
        assert 0.8 * made <= foretold <= 1.25 * made, (foretold, made)


def test_the_command(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = org_file(sandbox, tmp_path)
    settings = yaml.safe_load(path.read_text())
    settings["tasks"] = {"churn": {"label": "cancelled"}, "segmentation": {}}
    path.write_text(yaml.safe_dump(settings))
    assert cli.main(["describe", str(path), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    # the demo org has neither contracts nor assets
    assert report["tasks"]["churn"]["lacks"] == ["subscriptions: no rows"]
    assert report["tasks"]["segmentation"]["lacks"] == []
    assert report["calls"]["daily_limit"] >= report["calls"]["left_today"] > 0
    assert report["calls"]["full"] == sum(costs.full(read(path), 50_000).values())
    assert report["history"] == {}
    lacks = {(lack["object"], lack["field"]) for lack in report["lacks"]}
    assert lacks == {(lack.object, lack.path) for lack in read(path).lacks}

    del settings["tasks"]["churn"]
    path.write_text(yaml.safe_dump(settings))
    assert cli.main(["describe", str(path)]) == 0
    text = capsys.readouterr().out
    assert "segmentation: has the tables and columns it needs" in text
    assert "Order.AccountId" in text
    assert describe.SHARING in text


def test_the_command_tells_which_attributes_have_a_past(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tasks = {"tasks": {"churn": {"horizon_days": 30}}, "history": {"insist": ["Account.Industry"]}}
    wanted = {"Account", "AccountHistory", "Lead", "LeadHistory", "OrderItem"}
    others = {
        source.object for name in (mapping.STANDARD, mapping.FURTHER) for part in name.values() for source in part
    }
    path = sandbox.org_file(tmp_path / "org.yaml", source={"without": sorted(others - wanted)}, **tasks)
    org = config.load(path)
    ingest.ingest(org, Lake.of(org))
    shard.shard(org, Lake.of(org), inline)
    assert cli.main(["describe", str(path), "--json"]) == 0
    history = json.loads(capsys.readouterr().out.splitlines()[-1])["history"]
    assert history["dates_of"] == "churn"
    # the demo org tracks its price level alone; accounts are modified whenever that rises
    told = {name: (how["status"], how["used"]) for name, how in history["customers"].items()}
    assert told["Price_Level__c"] == ("tracked", "as of")
    assert told["industry"] == ("not reconstructable", "today's")
    assert told["region"] == ("not reconstructable", "kept out")
    # Status says "Closed - Converted" of converted leads and of no others
    assert set(history["leads"]) == {"status"}
    assert cli.main(["describe", str(path)]) == 0
    assert "Account.Industry not reconstructable – " in " ".join(capsys.readouterr().out.split())


def test_other_sources_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "org.yaml"
    path.write_text(yaml.safe_dump({"name": "demo", "storage": "lake", "source": {"kind": "demo"}}))
    assert cli.main(["describe", str(path)]) == 2
    assert "got source demo, expected salesforce" in capsys.readouterr().err
