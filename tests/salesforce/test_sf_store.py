"""The sandbox org's store: what a write checks, stamps and remembers, what a deletion takes along, formulas, metadata,
loading, and that it can be closed and opened."""

from __future__ import annotations

import threading
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray.config import DemoSource
from crmray.data import demo
from crmray.salesforce import ids
from crmray.salesforce.sandbox import store as store_module
from crmray.salesforce.sandbox.load import Shares, load_demo
from crmray.salesforce.sandbox.metadata import Field, object_type
from crmray.salesforce.sandbox.results import NoSuchObject, SoqlError
from crmray.salesforce.sandbox.store import Store

NOW = datetime(2026, 3, 18, 12, 0, 0, 123456)
CUSTOMERS = 100


@pytest.fixture(scope="module")
def loaded():
    org = Store()
    rows = load_demo(org, customers=CUSTOMERS, months=24, seed=7)
    yield org, rows
    org.close()


@pytest.fixture
def store():
    org = Store(now=lambda: NOW)
    org.add_field("Account", Field(name="Key__c", type="string", length=20, external_id=True, unique=True))
    yield org
    org.close()


def rows(store: Store, soql: str, *, all_rows: bool = False) -> list[dict]:
    return store.query(soql, all_rows=all_rows).table.to_pylist()


def codes(results) -> list[str]:
    return [result.errors[0]["statusCode"] if result.errors else "" for result in results]


def test_insert_fills_in_what_the_org_knows(store):
    first, second = store.insert("Account", [{"Name": " Acme ", "attributes": {"type": "Account"}}, {"Name": "Beta"}])
    assert (first.success, first.created, first.id[:3], len(first.id)) == (True, True, "001", 18)
    assert first.id != second.id
    (case,) = store.insert("Case", [{"AccountId": first.id[:15], "Subject": "x", "Status": "Closed"}])
    (row,) = rows(store, f"SELECT FIELDS(ALL) FROM Case WHERE Id = '{case.id}' LIMIT 1")
    assert row["AccountId"] == first.id
    assert (row["CaseNumber"], row["Priority"], row["IsClosed"], row["IsDeleted"]) == (
        "00000001",
        "Medium",
        True,
        False,
    )
    assert row["OwnerId"] == row["CreatedById"] == row["LastModifiedById"] == store.user_id
    assert row["CreatedDate"] == row["SystemModstamp"] == row["ClosedDate"]
    assert rows(store, "SELECT Name FROM Account ORDER BY Name") == [{"Name": "Acme"}, {"Name": "Beta"}]


def test_each_bad_row_has_its_error_and_blocks_no_other(store):
    (account,) = store.insert("Account", [{"Name": "Acme", "Key__c": "K1"}])
    gone = store.insert("Account", [{"Name": "Gone"}])[0].id
    store.delete("Account", [gone])
    given = [
        ({"LastName": "Good", "AccountId": account.id}, ""),
        ({"FirstName": "No last name"}, "REQUIRED_FIELD_MISSING"),
        ({"LastName": "x" * 81}, "STRING_TOO_LONG"),
        ({"LastName": "a", "Nothing__c": 1}, "INVALID_FIELD"),
        ({"LastName": "a", "CreatedDate": "2020-01-01T00:00:00Z"}, "INVALID_FIELD_FOR_INSERT_UPDATE"),
        ({"LastName": "a", "Name": "b"}, "INVALID_FIELD_FOR_INSERT_UPDATE"),
        ({"LastName": "a", "AccountId": "001"}, "MALFORMED_ID"),
        ({"LastName": "a", "AccountId": ids.make("001", np.array([9]))[0].as_py()}, "INVALID_CROSS_REFERENCE_KEY"),
        ({"LastName": "a", "AccountId": gone}, "ENTITY_IS_DELETED"),
        ({"LastName": "a", "AccountId": store.user_id}, "FIELD_INTEGRITY_EXCEPTION"),
        ({"LastName": "a", "Email": "nobody"}, "INVALID_EMAIL_ADDRESS"),
        ({"LastName": "a", "Birthdate": "1999-13-01"}, "INVALID_TYPE_ON_FIELD_IN_RECORD"),
        ({"LastName": "a", "HasOptedOutOfEmail": "maybe"}, "INVALID_TYPE_ON_FIELD_IN_RECORD"),
        ({"LastName": "By key", "Account": {"Key__c": "k1"}, "DoNotCall": "TRUE"}, ""),
        ({"LastName": "By key", "Account.Key__c": "K2"}, "INVALID_FIELD"),
    ]
    assert codes(store.insert("Contact", [row for row, _ in given])) == [code for _, code in given]
    assert rows(store, "SELECT LastName, AccountId, DoNotCall FROM Contact ORDER BY LastName") == [
        {"LastName": "By key", "AccountId": account.id, "DoNotCall": True},
        {"LastName": "Good", "AccountId": account.id, "DoNotCall": False},
    ]
    assert codes(store.insert("ContactPointTypeConsent", [{
        "Name": "c", "PartyId": store.insert("Individual", [{"LastName": "i"}])[0].id, "ContactPointType": "Pigeon",
        "PrivacyConsentStatus": "OptIn"}])) == ["INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST"]  # fmt: skip


def test_numbers_are_rounded_and_bounded(store):
    store.add_field("Account", Field(name="Score__c", type="double", precision=5, scale=4))
    given = [{"Name": "a", "Score__c": value} for value in ("0.00005", 0.12344, "10", True, "")]
    made = store.insert("Account", given)
    assert codes(made) == ["", "", "NUMBER_OUTSIDE_VALID_RANGE", "INVALID_TYPE_ON_FIELD_IN_RECORD", ""]
    assert {row["Score__c"] for row in rows(store, "SELECT Score__c FROM Account")} == {0.0001, 0.1234, None}


def test_update_stamps_later_and_keeps_history(store):
    a, b = (one.id for one in store.insert("Account", [{"Name": "a", "Type": "Prospect"}, {"Name": "b"}]))
    before = rows(store, "SELECT SystemModstamp FROM Account")[0]["SystemModstamp"]
    done = store.update(
        "Account", [{"Id": a, "Type": "Customer", "Rating": None}, {"Id": a, "Type": "Partner"}, {"Id": b}]
    )
    assert all(one.success and not one.created for one in done)
    stamps = {
        row["Id"]: row for row in rows(store, "SELECT Id, SystemModstamp, LastModifiedDate, CreatedDate FROM Account")
    }
    # the clock stands still: the insert at .123, the first wave of the update .124, the second row of `a` .125
    assert before == datetime(2026, 3, 18, 12, 0, 0, 123_000 + 1_000, timezone.utc)
    assert stamps[b]["SystemModstamp"] == before + timedelta(milliseconds=1)
    assert stamps[a]["SystemModstamp"] == stamps[a]["LastModifiedDate"] == before + timedelta(milliseconds=2)
    assert stamps[a]["CreatedDate"] == before
    history = rows(
        store, f"SELECT Field, OldValue, NewValue FROM AccountHistory WHERE AccountId = '{a}' ORDER BY CreatedDate"
    )
    assert [tuple(row.values()) for row in history] == [
        ("created", None, None), ("Type", "Prospect", "Customer"), ("Type", "Customer", "Partner"),
    ]  # fmt: skip
    assert "SystemModstamp" not in {field["name"] for field in store.describe("AccountHistory")["fields"]}


def test_update_of_rows_that_are_not_there(store):
    a = store.insert("Account", [{"Name": "a"}])[0].id
    store.delete("Account", [a])
    other = ids.make("001", np.array([5]))[0].as_py()
    assert codes(store.update("Account", [{"Id": a}, {"Id": other}, {"Name": "x"}, {"Id": "1"}])) == [
        "ENTITY_IS_DELETED", "INVALID_CROSS_REFERENCE_KEY", "MISSING_ARGUMENT", "MALFORMED_ID",
    ]  # fmt: skip
    with pytest.raises(SoqlError, match="INVALID_TYPE_FOR_OPERATION"):
        store.update("AccountHistory", [{"Id": a}])
    with pytest.raises(NoSuchObject):
        store.insert("Acount", [])


def test_upsert_by_external_id(store):
    made = store.upsert("Account", "key__c", [{"Key__c": "A", "Name": "a"}, {"Key__c": "B", "Name": "b"}])
    assert [one.created for one in made] == [True, True]
    again = store.upsert(
        "Account", "Key__c", [{"Key__c": "a", "Name": "a2"}, {"Key__c": "C"}, {"Key__c": "A"}, {"Name": "d"}]
    )
    assert codes(again) == ["", "REQUIRED_FIELD_MISSING", "DUPLICATE_VALUE", "MISSING_ARGUMENT"]
    assert (again[0].id, again[0].created) == (made[0].id, False)
    assert codes(store.insert("Account", [{"Name": "e", "Key__c": "b"}])) == ["DUPLICATE_VALUE"]
    assert rows(store, "SELECT Name FROM Account ORDER BY Name") == [{"Name": "a2"}, {"Name": "b"}]
    with pytest.raises(SoqlError, match="external ID field does not exist"):
        store.upsert("Account", "Name", [{"Name": "x"}])
    by_id = store.upsert("Account", "Id", [{"Id": made[1].id, "Name": "b2"}, {"Name": "new"}])
    assert [one.created for one in by_id] == [False, True]


def test_a_campaign_has_a_member_once(store):
    contact = store.insert("Contact", [{"LastName": "a"}])[0].id
    campaign = store.insert("Campaign", [{"Name": "c"}])[0].id
    row = {"CampaignId": campaign, "ContactId": contact}
    assert codes(store.insert("CampaignMember", [row, row, {"CampaignId": campaign}])) == [
        "", "DUPLICATE_VALUE", "REQUIRED_FIELD_MISSING",
    ]  # fmt: skip


def _family(store: Store) -> dict[str, str]:
    account = store.insert("Account", [{"Name": "a"}])[0].id
    contact = store.insert("Contact", [{"LastName": "c", "AccountId": account}])[0].id
    product = store.insert("Product2", [{"Name": "p"}])[0].id
    order = store.insert("Order", [{"AccountId": account, "EffectiveDate": "2026-01-01"}])[0].id
    item = store.insert("OrderItem", [{"OrderId": order, "Product2Id": product, "Quantity": 2, "UnitPrice": 1.25}])[
        0
    ].id
    case = store.insert("Case", [{"ContactId": contact}])[0].id
    return {
        "Account": account,
        "Contact": contact,
        "Product2": product,
        "Order": order,
        "OrderItem": item,
        "Case": case,
    }


def test_a_deletion_takes_along_clears_and_is_refused(store):
    family = _family(store)
    assert codes(store.delete("Product2", [family["Product2"]])) == ["DELETE_FAILED"]
    assert codes(store.delete("Account", [family["Account"], "x", family["Account"]])) == [
        "",
        "MALFORMED_ID",
        "ENTITY_IS_DELETED",
    ]
    for name in ("Account", "Contact", "Order", "OrderItem"):
        assert rows(store, f"SELECT Id FROM {name}") == []
    stamps = {
        rows(store, f"SELECT SystemModstamp, IsDeleted FROM {name} WHERE IsDeleted = true", all_rows=True)[0][
            "SystemModstamp"
        ]
        for name in ("Account", "Contact", "Order", "OrderItem")
    }
    assert len(stamps) == 1
    assert rows(store, "SELECT ContactId FROM Case") == [{"ContactId": None}]
    assert codes(store.delete("Product2", [family["Product2"]])) == [""]

    assert codes(store.undelete("Account", [family["Account"]])) == [""]
    assert rows(store, "SELECT Order.AccountId, TotalPrice FROM OrderItem") == [
        {"Order.AccountId": family["Account"], "TotalPrice": 2.5}
    ]
    store.insert("Case", [{"AccountId": family["Account"]}])
    (refused,) = store.delete("Account", [family["Account"]])
    assert refused.errors[0]["statusCode"] == "DELETE_FAILED"
    assert refused.errors[0]["message"].endswith("because it is associated with the following cases.: 00000002")


def test_a_hard_deletion_leaves_nothing(store):
    family = _family(store)
    assert codes(store.hard_delete("Account", [family["Account"]])) == [""]
    for name in ("Account", "Contact", "Order", "OrderItem", "AccountHistory"):
        assert rows(store, f"SELECT Id FROM {name}", all_rows=True) == []


def test_a_formula_changes_while_the_stamp_stands(store):
    store.add_field("Account", Field(name="Factor__c", type="double", scale=2))
    formula = Field(name="Worth__c", type="double", formula="{Amount} * {Account.Factor__c}", calculated=True)
    store.add_field("Opportunity", formula)
    account = store.insert("Account", [{"Name": "a", "Factor__c": 2}])[0].id
    deal = {"Name": "o", "AccountId": account, "StageName": "Prospecting", "CloseDate": "2026-05-01", "Amount": 50}
    store.insert("Opportunity", [deal])
    asked = "SELECT Worth__c, SystemModstamp FROM Opportunity WHERE Worth__c > 0"
    before = rows(store, asked)[0]
    store.update("Account", [{"Id": account, "Factor__c": 3}])
    assert (before["Worth__c"], rows(store, asked)) == (100.0, [{**before, "Worth__c": 150.0}])
    store.set_formula("Opportunity", "Worth__c", "{Amount} + 1")
    assert rows(store, asked) == [{**before, "Worth__c": 51.0}]
    described = {field["name"]: field for field in store.describe("Opportunity")["fields"]}
    assert (described["Worth__c"]["calculated"], described["Worth__c"]["createable"]) == (True, False)
    assert described["IsWon"]["calculated"] is False
    for wrong in ("{Nothing__c}", "{Worth__c} + 1"):
        with pytest.raises(SoqlError):
            store.set_formula("Opportunity", "Worth__c", wrong)


def test_fields_come_go_and_change(store):
    store.insert("Account", [{"Name": "a", "Type": "Prospect", "Key__c": "12"}, {"Name": "b", "Key__c": "x"}])
    before = rows(store, "SELECT SystemModstamp FROM Account")
    store.add_field("Account", Field(name="Flag__c", type="boolean"))
    store.rename_picklist_value("Account", "Type", "Prospect", "Suspect")
    store.retype_field("Account", "Key__c", "double")
    assert rows(store, "SELECT Type, Key__c, Flag__c FROM Account ORDER BY Name") == [
        {"Type": "Suspect", "Key__c": 12.0, "Flag__c": False}, {"Type": None, "Key__c": None, "Flag__c": False},
    ]  # fmt: skip
    assert rows(store, "SELECT SystemModstamp FROM Account") == before
    store.drop_field("Account", "Flag__c")
    with pytest.raises(SoqlError, match="No such column 'Flag__c'"):
        store.query("SELECT Flag__c FROM Account")
    for name, word in (("Industry", "custom"), ("Key__c", "formula")):
        if name == "Key__c":
            store.add_field("Account", Field(name="Twice__c", type="double", formula="{Key__c} * 2", calculated=True))
        with pytest.raises(ValueError, match=word):
            store.drop_field("Account", name)
    store.add_object(object_type("Visit__c", "a01", [Field(name="Seconds__c", type="double")]))
    assert store.insert("Visit__c", [{"Seconds__c": 5}])[0].id.startswith("a01")


def test_describe(store):
    account = store.describe("account")
    assert (account["name"], account["keyPrefix"], account["queryable"], account["custom"]) == (
        "Account",
        "001",
        True,
        False,
    )
    fields = {field["name"]: field for field in store.describe("Contact")["fields"]}
    link = fields["AccountId"]
    assert (link["type"], link["referenceTo"], link["relationshipName"]) == ("reference", ["Account"], "Account")
    assert (fields["LastName"]["nillable"], fields["LastName"]["label"]) == (False, "Last Name")
    assert {"childSObject": "Contact", "field": "AccountId", "cascadeDelete": True}.items() <= next(
        child.items() for child in account["childRelationships"] if child["childSObject"] == "Contact"
    )
    assert {one["name"] for one in store.describe_global()} == set(store.objects())
    with pytest.raises(NoSuchObject):
        store.describe("Nothing")


def test_a_transaction_stands_or_falls(store):
    with store.transaction() as transaction:
        store.insert("Account", [{"Name": "a"}])
        assert store.query("SELECT COUNT() FROM Account").count == 1
        transaction.rollback()
    assert store.query("SELECT COUNT() FROM Account").count == 0
    with pytest.raises(KeyError), store.transaction():
        store.insert("Account", [{"Name": "a"}])
        raise KeyError
    with store.transaction():
        store.insert("Account", [{"Name": "a"}])
    assert store.query("SELECT COUNT() FROM Account").count == 1


def test_a_query_outlives_a_field_that_goes_while_it_starts(store, monkeypatch):
    store.add_field("Account", Field(name="Extra__c", type="string"))
    store.insert("Account", [{"Name": "A", "Extra__c": "x"}])
    translated = store_module.translate

    def dropping(*given, **more):
        made = translated(*given, **more)
        if store.object("Account").get("Extra__c"):
            store.drop_field("Account", "Extra__c")
        return made

    monkeypatch.setattr(store_module, "translate", dropping)
    with pytest.raises(SoqlError, match="No such column 'Extra__c'"):
        rows(store, "SELECT Extra__c FROM Account")


def test_an_org_can_be_closed_and_opened(tmp_path):
    store = Store(tmp_path / "org.duckdb", now=lambda: NOW)
    store.add_field("Account", Field(name="Key__c", type="string"))
    first = store.insert("Account", [{"Name": "a", "Key__c": "k"}])[0].id
    store.close()
    store = Store(tmp_path / "org.duckdb", now=lambda: NOW - timedelta(days=1))
    second = store.insert("Account", [{"Name": "b"}])[0].id
    found = rows(store, "SELECT Id, Key__c FROM Account ORDER BY SystemModstamp")  # though the clock was set back
    assert found == [{"Id": first, "Key__c": "k"}, {"Id": second, "Key__c": None}]
    store.close()


def test_a_stream_is_of_the_moment_it_began_and_threads_may_write(loaded):
    store, counted = loaded
    stream = store.stream("SELECT Id, Order.AccountId, CreatedDate FROM OrderItem", batch_rows=1000)
    assert (stream.columns, stream.types) == (["Id", "Order.AccountId", "CreatedDate"], ["id", "reference", "datetime"])
    first = stream.batches.read_next_batch()
    names = [f"thread {number}" for number in range(8)]
    threads = [threading.Thread(target=store.insert, args=("Product2", [{"Name": name}])) for name in names]
    threads += [threading.Thread(target=store.query, args=("SELECT Id, Account.Name FROM Order",)) for _ in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rest = stream.batches.read_all()
    assert first.num_rows + rest.num_rows == counted["OrderItem"]
    assert rest.schema.field("CreatedDate").type == pa.timestamp("us", "UTC")
    assert store.query("SELECT COUNT() FROM Product2 WHERE Name LIKE 'thread _'").count == 8


def test_the_demo_org_is_loaded_as_it_is(loaded):
    store, counted = loaded
    scene = demo.world(DemoSource(kind="demo", customers=CUSTOMERS, months=24), 7)
    made = demo.tables(scene, demo.simulate(scene, 0), 0)
    for name in ("Account", "Order", "OrderItem", "Case", "CampaignMember", "AccountHistory"):
        assert store.query(f"SELECT COUNT() FROM {name}").count == counted[name] == made[name].num_rows
    found = store.query("SELECT Id, Order.AccountId, TotalPrice, SystemModstamp FROM OrderItem").table
    assert found.sort_by("Id").drop_columns("TotalPrice") == made["OrderItem"].sort_by("Id").select(
        ["Id", "Order.AccountId", "SystemModstamp"]
    )
    gap = np.subtract(found.sort_by("Id")["TotalPrice"], made["OrderItem"].sort_by("Id")["TotalPrice"])
    assert np.abs(gap).max() < 1e-9
    store.insert("Account", [{"Name": "later"}])
    latest = store.query("SELECT Name FROM Account ORDER BY SystemModstamp DESC LIMIT 1").table["Name"][0].as_py()
    assert latest == "later"


def test_made_up_people(loaded):
    store, _ = loaded
    people = store.query(
        "SELECT Email, Phone, Individual.Name, Name, HasOptedOutOfEmail, Individual.HasOptedOutProcessing FROM Contact"
    ).table
    assert pc.all(pc.equal(people["Name"], people["Individual.Name"])).as_py()
    assert len(set(people["Email"].to_pylist())) == people.num_rows
    assert pc.all(pc.match_substring_regex(people["Email"], r"^[a-z]+\.[a-z]+\.\d+@[a-z]+\.example$")).as_py()
    assert pc.all(pc.match_substring_regex(people["Phone"], r"^\+999 \d\d \d{3} \d{4}$")).as_py()
    signed = store.query("SELECT Contact.Name, Contact.Phone, Description FROM Case").table.to_pylist()
    quoted = [row for row in signed if row["Description"].endswith(f"\n{row['Contact.Name']}, {row['Contact.Phone']}")]
    # a quarter of them is signed: within four standard deviations
    assert abs(len(quoted) / len(signed) - 0.25) < 4 * (0.25 * 0.75 / len(signed)) ** 0.5


def test_shares_of_consent_are_those_asked_for():
    shares = Shares(email_opt_out=1, opt_out=0, forget=1, consent=0, signed=0)
    store, again = Store(), Store()
    load_demo(store, customers=CUSTOMERS, months=24, seed=7, shares=shares)
    load_demo(again, customers=CUSTOMERS, months=24, seed=7, shares=shares)
    asked = (
        "SELECT HasOptedOutOfEmail, Individual.ShouldForget, Individual.HasOptedOutProcessing, Name, Phone FROM Contact"
    )
    found = store.query(asked).table
    assert found.group_by(found.column_names[:3]).aggregate([]).to_pylist() == [
        {"HasOptedOutOfEmail": True, "Individual.ShouldForget": True, "Individual.HasOptedOutProcessing": False}
    ]
    assert store.query("SELECT COUNT() FROM ContactPointTypeConsent").count == 0
    assert found == again.query(asked).table
    with pytest.raises(ValueError, match="expected a new one"):
        load_demo(store, customers=CUSTOMERS)
    with pytest.raises(ValueError, match="forget: got 2, expected a fraction"):
        Shares(forget=2)
    with pytest.raises(ValueError, match="Account: got column 'Foo'"):
        store.load({"Account": [pa.table({"Id": ["x"], "Foo": [date(2026, 1, 1)]})]})
