"""The sandbox org's wire formats, as Salesforce documents them: errors, headers, REST and composite calls."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from sandboxes import BASE, Browser, add_accounts, session

from crmray.salesforce.sandbox import records, server
from crmray.salesforce.sandbox.server import Sandbox


def test_versions_need_no_token_and_have_their_seasons(empty_sandbox: Sandbox) -> None:
    listed = session(empty_sandbox).get(f"{empty_sandbox.url}/services/data/").json()
    labels = {item["version"]: item["label"] for item in listed}
    assert (labels["31.0"], labels["58.0"], labels["64.0"], labels["66.0"]) == (
        "Summer '14",
        "Summer '23",
        "Summer '25",
        "Spring '26",
    )
    assert listed[0]["url"] == "/services/data/v31.0"


def test_headers_count_calls_and_bodies_are_compressed(call: Browser) -> None:
    first, second = call("GET", "/limits"), call("GET", "/sobjects/Account/describe/")
    assert first.headers["Content-Type"] == "application/json;charset=UTF-8"
    assert (first.headers["Sforce-Limit-Info"], second.headers["Sforce-Limit-Info"]) == (
        "api-usage=1/100000",
        "api-usage=2/100000",
    )
    assert second.headers["Content-Encoding"] == "gzip"
    assert call("GET", "/limits").json()["DailyApiRequests"] == {"Max": 100000, "Remaining": 99997}


def test_errors_are_arrays_with_salesforces_codes(call: Browser) -> None:
    for method, path, status, code in (
        ("GET", "/sobjects/Nothing/describe", 404, "NOT_FOUND"),
        ("GET", "/services/data/v12.0/limits", 404, "NOT_FOUND"),
        ("GET", "/query?q=SELECT+Id+FROM+Nothing", 400, "INVALID_TYPE"),
        ("GET", "/query?q=SELECT+Nothing+FROM+Account", 400, "INVALID_FIELD"),
        ("GET", "/query?q=SELECT+FROM", 400, "MALFORMED_QUERY"),
        ("GET", "/query", 400, "MALFORMED_QUERY"),
        ("GET", "/query/01gnone-2000", 400, "INVALID_QUERY_LOCATOR"),
        ("PUT", "/limits", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/sobjects/Account", 400, "JSON_PARSER_ERROR"),
        ("GET", "/jobs/query/750000000000001AAA", 404, "NOT_FOUND"),
        ("DELETE", "/composite/sobjects?ids=zzz000000000001AAA", 400, "MALFORMED_ID"),
    ):
        answer = call(method, path)
        (error,) = answer.json()
        assert (path, answer.status_code, error["errorCode"]) == (path, status, code)
        assert error["message"]
        assert "Sforce-Limit-Info" in answer.headers


def test_queries_come_in_pages(empty_sandbox: Sandbox, call: Browser) -> None:
    ids = add_accounts(empty_sandbox, 450)
    page = call(
        "GET", "/query", params={"q": "SELECT Id, Name FROM Account"}, headers={"Sforce-Query-Options": "batchSize=200"}
    ).json()
    found, sizes = page["records"], [len(page["records"])]
    assert (page["totalSize"], page["done"]) == (450, False)
    assert page["nextRecordsUrl"].startswith(f"{BASE}/query/01g")
    assert page["nextRecordsUrl"].endswith("-200")
    while not page["done"]:
        page = call("GET", page["nextRecordsUrl"], headers={"Sforce-Query-Options": "batchSize=200"}).json()
        sizes.append(len(page["records"]))
        found += page["records"]
    assert sizes == [200, 200, 50]
    assert sorted(record["Id"] for record in found) == sorted(ids)
    assert found[0]["attributes"] == {"type": "Account", "url": f"{BASE}/sobjects/Account/{found[0]['Id']}"}


def test_parents_are_nested_and_null_where_there_is_none(empty_sandbox: Sandbox, call: Browser) -> None:
    (account,) = add_accounts(empty_sandbox, 1)
    empty_sandbox.store.insert("Contact", [{"LastName": "With", "AccountId": account}, {"LastName": "Without"}])
    soql = "SELECT LastName, AccountId, Account.Name FROM Contact ORDER BY LastName"
    first, second = call("GET", "/query", params={"q": soql}).json()["records"]
    url = f"{BASE}/sobjects/Account/{account}"
    assert first["Account"] == {"attributes": {"type": "Account", "url": url}, "Name": "A00"}
    assert (second["AccountId"], second["Account"]) == (None, None)


def test_counts_and_aggregates(empty_sandbox: Sandbox, call: Browser) -> None:
    add_accounts(empty_sandbox, 3)
    count = call("GET", "/query", params={"q": "SELECT COUNT() FROM Account"}).json()
    assert count == {"totalSize": 3, "done": True, "records": []}
    (record,) = call("GET", "/query", params={"q": "SELECT COUNT(Id) FROM Account"}).json()["records"]
    assert record == {"attributes": {"type": "AggregateResult"}, "expr0": 3}


def test_a_row_lives_through_its_calls(call: Browser) -> None:
    made = call("POST", "/sobjects/Account", json={"Name": "Acme"})
    id_ = made.json()["id"]
    assert (made.status_code, made.json()) == (201, {"id": id_, "success": True, "errors": []})
    assert call("PATCH", f"/sobjects/Account/{id_}", json={"Phone": "1"}).status_code == 204
    row = call("GET", f"/sobjects/Account/{id_}?fields=Name,Phone").json()
    assert (row["Name"], row["Phone"]) == ("Acme", "1")
    assert call("GET", f"/sobjects/Account/{id_[:15]}").json()["Id"] == id_
    assert call("DELETE", f"/sobjects/Account/{id_}").status_code == 204
    gone = call("GET", f"/sobjects/Account/{id_}")
    assert (gone.status_code, gone.json()[0]["errorCode"]) == (404, "ENTITY_IS_DELETED")
    refused = call("POST", "/sobjects/Account", json={"Phone": "1"})
    assert (refused.status_code, refused.json()[0]["errorCode"]) == (400, "REQUIRED_FIELD_MISSING")
    assert refused.json()[0]["fields"] == ["Name"]


def test_a_collection_is_written_row_by_row_or_not_at_all(empty_sandbox: Sandbox, call: Browser) -> None:
    good, bad = {"attributes": {"type": "Account"}, "Name": "Good"}, {"attributes": {"type": "Contact"}}
    body = {"allOrNone": True, "records": [good, bad]}
    codes = [row["errors"][0]["statusCode"] for row in call("POST", "/composite/sobjects", json=body).json()]
    assert codes == ["ALL_OR_NONE_OPERATION_ROLLED_BACK", "REQUIRED_FIELD_MISSING"]
    assert empty_sandbox.store.query("SELECT COUNT() FROM Account", all_rows=True).count == 0
    done = call("POST", "/composite/sobjects", json={**body, "allOrNone": False}).json()
    assert [row["success"] for row in done] == [True, False]
    id_ = done[0]["id"]
    change = {"records": [{"attributes": {"type": "Account"}, "id": id_, "Name": "Better"}]}
    assert call("PATCH", "/composite/sobjects", json=change).json() == [{"id": id_, "success": True, "errors": []}]
    read = call("GET", f"/composite/sobjects/Account?ids={id_},001000000000000AAA&fields=Name").json()
    assert [row and row["Name"] for row in read] == ["Better", None]
    assert call("DELETE", f"/composite/sobjects?ids={id_}").json() == [{"id": id_, "success": True, "errors": []}]
    many = call("POST", "/composite/sobjects", json={"records": [good] * 201})
    assert (many.status_code, many.json()[0]["errorCode"]) == (400, "EXCEEDED_ID_LIMIT")


def test_calls_in_one_refer_to_each_other(empty_sandbox: Sandbox, call: Browser) -> None:
    requests_ = [
        {"method": "POST", "url": f"{BASE}/sobjects/Account", "referenceId": "a", "body": {"Name": "Acme"}},
        {
            "method": "POST",
            "url": f"{BASE}/sobjects/Contact",
            "referenceId": "c",
            "body": {"LastName": "Li", "AccountId": "@{a.id}"},
        },
    ]
    answers = call("POST", "/composite", json={"compositeRequest": requests_}).json()["compositeResponse"]
    assert [(answer["referenceId"], answer["httpStatusCode"]) for answer in answers] == [("a", 201), ("c", 201)]
    linked = empty_sandbox.store.query("SELECT AccountId FROM Contact").table["AccountId"].to_pylist()
    assert linked == [answers[0]["body"]["id"]]
    requests_[1]["body"] = {}
    whole = {"allOrNone": True, "compositeRequest": requests_}
    halted, failed = call("POST", "/composite", json=whole).json()["compositeResponse"]
    assert (halted["httpStatusCode"], halted["body"][0]["errorCode"]) == (400, "PROCESSING_HALTED")
    assert (failed["httpStatusCode"], failed["body"][0]["errorCode"]) == (400, "REQUIRED_FIELD_MISSING")
    assert empty_sandbox.store.query("SELECT COUNT() FROM Account").count == 1


def test_all_or_none_of_the_calls_is_all_or_none_of_their_rows(empty_sandbox: Sandbox, call: Browser) -> None:
    url, good = f"{BASE}/composite/sobjects", {"attributes": {"type": "Account"}, "Name": "Good"}
    mixed = {"allOrNone": False, "records": [good, {"attributes": {"type": "Account"}}]}
    requests_ = [
        {"method": "POST", "url": url, "referenceId": "first", "body": {"records": [good]}},
        {"method": "POST", "url": url, "referenceId": "second", "body": mixed},
        {"method": "POST", "url": url, "referenceId": "third", "body": {"records": [good]}},
    ]
    whole = {"allOrNone": True, "compositeRequest": requests_}
    first, second, third = call("POST", "/composite", json=whole).json()["compositeResponse"]
    assert [one["body"][0]["errorCode"] for one in (first, third)] == ["PROCESSING_HALTED"] * 2
    codes = [row["errors"][0]["statusCode"] for row in second["body"]]
    assert codes == ["ALL_OR_NONE_OPERATION_ROLLED_BACK", "REQUIRED_FIELD_MISSING"]
    assert empty_sandbox.store.query("SELECT COUNT() FROM Account").count == 0
    call("POST", "/composite", json={"compositeRequest": requests_})
    assert empty_sandbox.store.query("SELECT COUNT() FROM Account").count == 3


def test_bodies_that_are_wrong_are_refused_in_salesforces_words(empty_sandbox: Sandbox, call: Browser) -> None:
    (id_,) = add_accounts(empty_sandbox, 1)
    read = "/composite/sobjects/Account"
    for method, path, body, code in (
        ("POST", "/sobjects/Account", b'{"Name": "\\ud800"}', "JSON_PARSER_ERROR"),
        ("POST", "/sobjects/Account", b"[" * 100_000, "JSON_PARSER_ERROR"),
        ("POST", "/composite", b'{"compositeRequest": [1]}', "JSON_PARSER_ERROR"),
        ("POST", read, b'{"ids": 5, "fields": ["Name"]}', "JSON_PARSER_ERROR"),
        ("POST", read, f'{{"ids": ["{id_}"], "fields": [1]}}'.encode(), "JSON_PARSER_ERROR"),
        ("GET", f"/sobjects/Account/{id_}?fields=Name FROM Account WHERE", b"", "INVALID_FIELD"),
    ):
        answer = call(method, path, data=body)
        assert (answer.status_code, answer.json()[0]["errorCode"]) == (400, code)
    quoted = call("POST", read, json={"ids": ["x' OR Name != 'z"], "fields": ["Name"]})
    assert "invalid ID field: x' OR Name != 'z" in quoted.json()[0]["message"]
    row = call("GET", f"/sobjects/Account/{id_}?fields=id,name,NAME").json()
    assert {name for name in row if name != "attributes"} <= {"Id", "Name"}


def test_a_body_that_does_not_tell_its_length_is_bounded(call: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1000)
    answer = call("POST", "/sobjects/Account", data=iter([b" " * 600, b" " * 600]))
    assert (answer.status_code, answer.json()[0]["errorCode"]) == (413, "EXCEEDED_MAX_SIZE_REQUEST")


def test_what_lies_outside_the_data_services_is_not_found(empty_sandbox: Sandbox, call: Browser) -> None:
    for path in ("/services/async/64.0/job", "/services/oauth2/userinfo"):
        assert session(empty_sandbox).get(empty_sandbox.url + path).status_code == 404


def test_histories_can_be_replicated_by_the_time_of_their_rows(empty_sandbox: Sandbox, call: Browser) -> None:
    add_accounts(empty_sandbox, 2)
    now = datetime.now(timezone.utc)
    hour = timedelta(hours=1)
    span = {"start": f"{now - hour:%Y-%m-%dT%H:%M:%SZ}", "end": f"{now + hour:%Y-%m-%dT%H:%M:%SZ}"}
    assert len(call("GET", "/sobjects/AccountHistory/updated", params=span).json()["ids"]) == 2


def test_results_kept_for_their_next_pages_are_bounded(
    empty_sandbox: Sandbox, call: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 1)
    add_accounts(empty_sandbox, 201)
    small = {"Sforce-Query-Options": "batchSize=200"}
    first, second = (
        call("GET", "/query?q=SELECT Id FROM Account", headers=small).json()["nextRecordsUrl"] for _ in range(2)
    )
    assert len(call("GET", second, headers=small).json()["records"]) == 1
    assert call("GET", first, headers=small).json()[0]["errorCode"] == "INVALID_QUERY_LOCATOR"
