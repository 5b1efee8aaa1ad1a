"""The sandbox org's faults: each strikes when and as often as it was told, and can be told over HTTP."""

from __future__ import annotations

import csv
import io

import pytest
import requests
from sandboxes import BASE, Browser, add_accounts, run_ingest, run_query, session

from crmray.errors import ConfigError
from crmray.salesforce.sandbox.metadata import Field
from crmray.salesforce.sandbox.server import Sandbox


def code(answer: requests.Response) -> str:
    return answer.json()[0]["errorCode"] if answer.status_code >= 400 else ""


def test_faults_are_set_told_and_ended_over_http(empty_sandbox: Sandbox, call: Browser) -> None:
    url, owner = f"{empty_sandbox.url}/sandbox/faults", (empty_sandbox.client_id, empty_sandbox.client_secret)
    plain = session(empty_sandbox)
    assert plain.post(url, json={"error_503_every": 1}).status_code == 401
    assert plain.post(url, json={"error_503_every": 1, "lock_rows": ["001x"]}, auth=owner).status_code == 200
    assert call("GET", "/limits").status_code == 503
    told = plain.get(url, auth=owner).json()
    assert (told["settings"]["error_503_every"], told["settings"]["lock_rows"]) == (1, ["001x"])
    assert told["struck"] == {"error_503_every": 1}
    for wrong in ({"nothing": 1}, {"fail_rows": 2.0}, {"error_503_every": "often"}, {"drop_field": "Account"}):
        answer = plain.post(url, json=wrong, auth=owner)
        assert (answer.status_code, code(answer)) == (400, "INVALID_INPUT")
    assert plain.delete(url, auth=owner).status_code == 200
    assert call("GET", "/limits").status_code == 200


def test_every_nth_call_fails(empty_sandbox: Sandbox, call: Browser) -> None:
    empty_sandbox.faults.set(error_503_every=3)
    assert [call("GET", "/limits").status_code for _ in range(7)] == [200, 200, 503, 200, 200, 503, 200]
    empty_sandbox.faults.set(error_503_every=0, concurrent_limit_every=2)
    answers = [call("GET", "/limits") for _ in range(2)]
    assert [code(answer) for answer in answers] == ["", "REQUEST_LIMIT_EXCEEDED"]
    assert answers[1].json()[0]["message"].startswith("ConcurrentRequests")


def test_tokens_expire_after_their_calls(empty_sandbox: Sandbox, call: Browser) -> None:
    empty_sandbox.faults.set(expire_tokens_after_calls=3)
    assert [code(call("GET", "/limits")) for _ in range(5)] == ["", "", "", *["INVALID_SESSION_ID"] * 2]
    again = Browser(empty_sandbox)
    assert code(again("GET", "/limits")) == ""


def test_the_daily_limit_ends_all_calls(empty_sandbox: Sandbox, call: Browser) -> None:
    empty_sandbox.faults.set(request_limit=2)
    answers = [call("GET", "/limits") for _ in range(3)]
    assert [answer.headers["Sforce-Limit-Info"] for answer in answers] == [
        "api-usage=1/2",
        "api-usage=2/2",
        "api-usage=2/2",
    ]
    assert (answers[2].status_code, answers[2].json()) == (
        403,
        [{"message": "TotalRequests Limit exceeded.", "errorCode": "REQUEST_LIMIT_EXCEEDED"}],
    )


def test_connections_drop_before_after_and_amid_a_call(empty_sandbox: Sandbox, call: Browser) -> None:
    empty_sandbox.faults.set(drop_connection_every=1)

    def create(name: str) -> type[Exception]:
        with pytest.raises(requests.exceptions.RequestException) as caught:
            call("POST", "/sobjects/Account", json={"Name": name})
        return caught.type

    kinds = [create(name) for name in ("before", "after", "amid")]
    assert kinds[:2] == [requests.exceptions.ConnectionError] * 2
    assert kinds[2] is requests.exceptions.ChunkedEncodingError
    made = empty_sandbox.store.query("SELECT Name FROM Account ORDER BY Name").table["Name"].to_pylist()
    assert made == ["after", "amid"]
    assert empty_sandbox.faults.struck == {"drop_connection_every": 3}


def test_a_locked_row_gets_through_at_last(empty_sandbox: Sandbox, call: Browser) -> None:
    ids = add_accounts(empty_sandbox, 3)
    empty_sandbox.faults.set(lock_rows=[ids[1][:15]], lock_times=2)
    upload = "Id,Phone\n" + "".join(f"{id_},1\n" for id_ in ids)
    failed = [run_ingest(call, "update", upload)[1]["failedResults"] for _ in range(3)]
    assert [[row["sf__Id"] for row in part] for part in failed] == [[ids[1]], [ids[1]], []]
    assert failed[0][0]["sf__Error"].startswith("UNABLE_TO_LOCK_ROW:unable to obtain exclusive access")
    answer = call("PATCH", f"/sobjects/Account/{ids[1]}", json={"Phone": "2"})
    assert answer.status_code == 204


def test_the_same_rows_fail_whatever_their_order(empty_sandbox: Sandbox, call: Browser) -> None:
    ids = add_accounts(empty_sandbox, 200)
    empty_sandbox.faults.set(fail_rows=0.25, seed=4)

    def failing(order: list[str]) -> list[str]:
        upload = "Id,Phone\n" + "".join(f"{id_},1\n" for id_ in order)
        job, results = run_ingest(call, "update", upload)
        assert job["numberRecordsFailed"] + len(results["successfulResults"]) == 200
        return sorted(row["sf__Id"] for row in results["failedResults"])

    first = failing(ids)
    assert 30 <= len(first) <= 70
    assert failing(ids[::-1]) == first
    empty_sandbox.faults.set(seed=5)
    assert failing(ids) != first


def test_a_field_disappears(empty_sandbox: Sandbox, call: Browser) -> None:
    empty_sandbox.store.add_field("Account", Field(name="Extra__c", type="string", label="Extra", length=10))
    empty_sandbox.faults.set(drop_field="Account.Extra__c", drop_field_after_calls=2)
    soql = {"q": "SELECT Extra__c FROM Account"}
    assert [code(call("GET", "/query", params=soql)) for _ in range(3)] == ["", "", "INVALID_FIELD"]
    names = [field["name"] for field in call("GET", "/sobjects/Account/describe").json()["fields"]]
    assert "Extra__c" not in names
    with pytest.raises(ConfigError, match="expected a custom field"):
        empty_sandbox.faults.set(drop_field="Account.Name")
    empty_sandbox.store.add_field("Account", Field(name="Base__c", type="double"))
    empty_sandbox.store.add_field("Account", Field(name="Twice__c", type="double", formula="{Base__c} * 2"))
    with pytest.raises(ConfigError, match="formula Account.Twice__c uses"):
        empty_sandbox.faults.set(drop_field="Account.Base__c")
    assert empty_sandbox.store.object("Account").get("Base__c")


def test_rows_change_while_pages_are_read_and_the_pages_do_not(empty_sandbox: Sandbox, call: Browser) -> None:
    ids = add_accounts(empty_sandbox, 20)
    store = empty_sandbox.store
    (moment,) = store.query("SELECT MAX(SystemModstamp) FROM Account").table.column(0).to_pylist()
    job = run_query(call, "SELECT Id, Name FROM Account ORDER BY Name")
    empty_sandbox.faults.set(mutate_during_pull=4)
    path = f"{BASE}/jobs/query/{job['id']}"
    pages = [page["resultUrl"] for page in call("GET", f"{path}/resultPages").json()["resultPages"]]
    rows = [row for url in pages for row in csv.DictReader(io.StringIO(call("GET", url).text))]
    assert [(row["Id"], row["Name"]) for row in rows] == [(id_, f"A{i:02d}") for i, id_ in enumerate(ids)]
    assert empty_sandbox.faults.struck == {"mutate_during_pull": 2}
    stamps = store.query("SELECT Id, SystemModstamp, IsDeleted FROM Account", all_rows=True).table.to_pylist()
    assert sum(row["IsDeleted"] for row in stamps) == 2
    assert len(stamps) == 22
    assert sum(row["SystemModstamp"] > moment for row in stamps) == 10


@pytest.mark.parametrize("name", ["Order", "OrderItem", "CampaignMember", "Case"])
def test_rows_of_any_kind_change_during_a_pull(sandbox: Sandbox, name: str) -> None:
    (moment,) = (
        sandbox.store.query(f"SELECT MAX(SystemModstamp) FROM {name}", all_rows=True).table.column(0).to_pylist()
    )
    sandbox.faults.set(mutate_during_pull=2)
    sandbox.faults.before_page(name, bulk=True)
    since = moment.strftime("%Y-%m-%dT%H:%M:%S.999Z")
    assert sandbox.store.query(f"SELECT COUNT() FROM {name} WHERE SystemModstamp > {since}").count == 2


def test_pages_are_slow(empty_sandbox: Sandbox, call: Browser) -> None:
    add_accounts(empty_sandbox, 1)
    empty_sandbox.faults.set(slow_page_s=1.0)
    answer = call("GET", "/query", params={"q": "SELECT Id FROM Account"})
    assert answer.elapsed.total_seconds() >= 1.0
    assert call("GET", "/limits").elapsed.total_seconds() < 1.0
