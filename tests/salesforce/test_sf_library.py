"""simple-salesforce's own documented calls, unchanged, against the sandbox org."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from sandboxes import VERSION, library, session
from simple_salesforce import Salesforce, SFType
from simple_salesforce.exceptions import (
    SalesforceAuthenticationFailed,
    SalesforceMalformedRequest,
    SalesforceResourceNotFound,
)

from crmray.salesforce.sandbox.metadata import Field
from crmray.salesforce.sandbox.server import Sandbox

DOMAIN = "acme.my"
WAIT_S = 0.05


class Redirecting(HTTPAdapter):
    """Sends what is meant for salesforce.com to the sandbox: the library builds no other login addresses."""

    def __init__(self, url: str):
        self.url = url
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **more: Any) -> requests.Response:
        assert request.url
        request.url = request.url.replace(f"https://{DOMAIN}.salesforce.com", self.url)
        return super().send(request, *args, **more)


@pytest.fixture
def sf(empty_sandbox: Sandbox) -> Salesforce:
    empty_sandbox.store.add_field(
        "Account", Field(name="Key__c", type="string", label="Key", length=40, external_id=True, unique=True)
    )
    return library(empty_sandbox)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# -- logins ------------------------------------------------------------------------------------------------------------


def redirected(server: Sandbox) -> requests.Session:
    made = session(server)
    made.mount(f"https://{DOMAIN}.salesforce.com", Redirecting(server.url))
    return made


def logins(server: Sandbox) -> dict[str, dict[str, str]]:
    return {
        "password": {
            "username": server.username,
            "password": server.password,
            "consumer_key": server.client_id,
            "consumer_secret": server.client_secret,
        },
        "jwt": {
            "username": server.username,
            "consumer_key": server.client_id,
            "privatekey_file": str(server.private_key_file),
        },
        "client_credentials": {"consumer_key": server.client_id, "consumer_secret": server.client_secret},
    }


@pytest.mark.parametrize("flow", ["password", "jwt", "client_credentials"])
def test_the_library_logs_in_and_again_when_its_token_expires(empty_sandbox: Sandbox, flow: str) -> None:
    login = logins(empty_sandbox)[flow]
    sf = Salesforce(**login, domain=DOMAIN, version=VERSION, session=redirected(empty_sandbox))
    first = sf.session_id
    assert sf.query("SELECT COUNT() FROM Account")["totalSize"] == 0
    empty_sandbox.tokens.expire_all()
    assert sf.query("SELECT COUNT() FROM Account")["totalSize"] == 0
    assert sf.session_id != first


def test_a_wrong_password_is_an_authentication_failure(empty_sandbox: Sandbox) -> None:
    login = {**logins(empty_sandbox)["password"], "password": "wrong"}
    with pytest.raises(SalesforceAuthenticationFailed, match="invalid_grant"):
        Salesforce(**login, domain=DOMAIN, session=redirected(empty_sandbox))


# -- records and queries -----------------------------------------------------------------------------------------------


def test_records(sf: Salesforce) -> None:
    made = sf.Contact.create({"LastName": "Smith", "Email": "example@example.com"})
    id_ = made["id"]
    assert made["success"]
    assert sf.Contact.get(id_)["LastName"] == "Smith"
    assert sf.Contact.update(id_, {"LastName": "Jones", "FirstName": "John"}) == 204
    assert sf.Contact.get(id_)["Name"] == "John Jones"
    day = timedelta(days=1)
    start, end = datetime.now(timezone.utc) - day, datetime.now(timezone.utc) + day
    assert sf.Contact.updated(start, end)["ids"] == [id_]
    assert sf.Contact.delete(id_) == 204
    assert [row["id"] for row in sf.Contact.deleted(start, end)["deletedRecords"]] == [id_]
    assert sf.Contact.updated(start, end)["ids"] == []
    with pytest.raises(SalesforceResourceNotFound, match="ENTITY_IS_DELETED"):
        sf.Contact.get(id_)
    with pytest.raises(SalesforceMalformedRequest, match="REQUIRED_FIELD_MISSING"):
        sf.Contact.create({"FirstName": "No last name"})


def test_upsert_by_external_id(sf: Salesforce) -> None:
    response = sf.Account.upsert("Key__c/K%2F1", {"Name": "One"}, raw_response=True)
    assert (response.status_code, response.json()["created"]) == (201, True)
    again = sf.Account.upsert("Key__c/K%2F1", {"Name": "Uno"}, raw_response=True)
    assert (again.status_code, again.json()["created"], again.json()["id"]) == (200, False, response.json()["id"])
    row = sf.Account.get_by_custom_id("Key__c", "K/1")
    assert (row["Id"], row["Name"]) == (response.json()["id"], "Uno")
    assert sf.Account.delete("Key__c/K%2F1") == 204
    with pytest.raises(SalesforceResourceNotFound):
        sf.Account.get_by_custom_id("Key__c", "none")


def test_queries(sf: Salesforce, empty_sandbox: Sandbox) -> None:
    empty_sandbox.store.insert("Account", [{"Name": f"A{i:04d}"} for i in range(2500)])
    first = sf.query("SELECT Id, Name FROM Account ORDER BY Name")
    assert (first["totalSize"], first["done"], len(first["records"])) == (2500, False, 2000)
    by_url = sf.query_more(first["nextRecordsUrl"], True)
    by_id = sf.query_more(first["nextRecordsUrl"].rsplit("/", 1)[1])
    assert by_url["records"] == by_id["records"]
    assert (len(by_url["records"]), by_url["done"]) == (500, True)
    names = [record["Name"] for record in sf.query_all("SELECT Name FROM Account ORDER BY Name")["records"]]
    assert names == [f"A{i:04d}" for i in range(2500)]
    assert names == [record["Name"] for record in sf.query_all_iter("SELECT Name FROM Account ORDER BY Name")]
    sf.Account.delete(first["records"][0]["Id"])
    assert sf.query("SELECT COUNT() FROM Account")["totalSize"] == 2499
    assert sf.query("SELECT COUNT() FROM Account", include_deleted=True)["totalSize"] == 2500
    with pytest.raises(SalesforceMalformedRequest, match="INVALID_FIELD"):
        sf.query("SELECT Nothing FROM Account")


def test_describes_and_limits(sf: Salesforce, empty_sandbox: Sandbox) -> None:
    described = sf.describe()
    assert described
    assert "Account" in [item["name"] for item in described["sobjects"]]
    fields = {field["name"]: field for field in sf.Account.describe()["fields"]}
    assert fields["Key__c"]["externalId"]
    assert sf.Account.metadata()["objectDescribe"]["keyPrefix"] == "001"
    assert sf.limits()["DailyApiRequests"]["Max"] == 100000
    assert sf.api_usage["api-usage"].total == 100000
    assert sf.restful("limits/")["DailyApiRequests"]["Max"] == 100000
    contact = SFType("Contact", sf.session_id, sf.sf_instance, sf_version=VERSION, session=sf.session)
    assert contact.create({"LastName": "Direct"})["success"]


def test_the_org_says_that_it_is_a_sandbox(sf: Salesforce) -> None:
    assert sf.is_sandbox() is True


def test_composite_collections_by_restful(sf: Salesforce) -> None:
    records = [{"attributes": {"type": "Account"}, "Name": name, "Key__c": name} for name in ("A", "B")]
    done = sf.restful("composite/sobjects", method="POST", json={"records": records})
    assert done
    assert [row["success"] for row in done] == [True, True]
    records = [{"attributes": {"type": "Account"}, "Name": "new", "Key__c": key} for key in ("B", "C")]
    upserted = sf.restful("composite/sobjects/Account/Key__c", method="PATCH", json={"records": records})
    assert upserted
    assert [row["created"] for row in upserted] == [False, True]


# -- Bulk 2.0 ----------------------------------------------------------------------------------------------------------


def test_bulk2_writes_and_their_results(sf: Salesforce, tmp_path: Path) -> None:
    bulk = sf.bulk2.Account
    (done,) = bulk.insert(records=[{"Name": "A", "Key__c": "1"}, {"Name": "", "Key__c": "2"}], wait=WAIT_S)
    assert (done["numberRecordsProcessed"], done["numberRecordsFailed"]) == (2, 1)
    (good,) = rows(bulk.get_successful_records(done["job_id"]))
    (bad,) = rows(bulk.get_failed_records(done["job_id"]))
    assert (good["sf__Created"], good["Name"], bad["Key__c"]) == ("true", "A", "2")
    assert bad["sf__Error"].startswith("REQUIRED_FIELD_MISSING:")
    assert rows(bulk.get_unprocessed_records(done["job_id"])) == []
    everything = bulk.get_all_ingest_records(done["job_id"])
    assert [len(part) for part in everything.values()] == [1, 1, 0]
    bulk.get_failed_records(done["job_id"], file=str(tmp_path / "failed.csv"))
    assert rows((tmp_path / "failed.csv").read_text()) == [bad]

    (done,) = bulk.update(records=[{"Id": good["sf__Id"], "Name": "B"}], wait=WAIT_S)
    assert done["numberRecordsFailed"] == 0
    upserts = [{"Key__c": "1", "Name": "C"}, {"Key__c": "3", "Name": "D"}]
    (done,) = bulk.upsert(records=upserts, external_id_field="Key__c", wait=WAIT_S)
    created = [row["sf__Created"] for row in rows(bulk.get_successful_records(done["job_id"]))]
    assert created == ["false", "true"]
    names = [record["Name"] for record in sf.query("SELECT Name FROM Account ORDER BY Name")["records"]]
    assert names == ["C", "D"]
    bulk.delete(records=[{"Id": good["sf__Id"]}], wait=WAIT_S)
    assert sf.query("SELECT COUNT() FROM Account")["totalSize"] == 1
    (tmp_path / "more.csv").write_text("Name\nE\nF\nG\n")
    batches = bulk.insert(str(tmp_path / "more.csv"), batch_size=2, concurrency=2, wait=WAIT_S)
    assert sorted(batch["numberRecordsProcessed"] for batch in batches) == [1, 2]


def test_bulk2_queries(sf: Salesforce, empty_sandbox: Sandbox, tmp_path: Path) -> None:
    made = empty_sandbox.store.insert("Account", [{"Name": f"A {i:02d}"} for i in range(25)])
    empty_sandbox.store.delete("Account", [made[0].id or ""])
    soql = "SELECT Name FROM Account ORDER BY Name"
    pages = list(sf.bulk2.Account.query(soql, max_records=10, wait=WAIT_S))
    assert [len(rows(page)) for page in pages] == [10, 10, 4]
    assert rows(pages[0])[0] == {"Name": "A 01"}
    pages = list(sf.bulk2.Account.query_all(soql, max_records=10, wait=WAIT_S))
    assert [len(rows(page)) for page in pages] == [10, 10, 5]
    files = sf.bulk2.Account.download(soql, path=str(tmp_path), max_records=20, wait=WAIT_S)
    assert [(file["number_of_records"], len(rows(Path(file["file"]).read_text()))) for file in files] == [
        (20, 20),
        (4, 4),
    ]
