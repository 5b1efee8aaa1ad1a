"""The sandbox org's wire formats, as Salesforce documents them: logins, errors, headers, REST and Bulk API 2.0."""

from __future__ import annotations

import csv
import gzip
import io
import ssl
import stat
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
import requests
from sandboxes import BASE, Browser, ask_token, session

from crmray import config
from crmray.errors import ConfigError
from crmray.salesforce.sandbox.server import Sandbox

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LOCK_OUT = [{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}]


@pytest.fixture
def call(empty_sandbox: Sandbox) -> Browser:
    return Browser(empty_sandbox)


def add_accounts(server: Sandbox, count: int) -> list[str]:
    """Accounts A00, A01, …; their ids."""
    made = server.store.insert("Account", [{"Name": f"A{i:02d}", "NumberOfEmployees": i} for i in range(count)])
    return [result.id or "" for result in made]


def assertion(server: Sandbox, **claims: Any) -> str:
    soon = datetime.now(timezone.utc) + timedelta(minutes=3)
    whole = {
        "iss": server.client_id,
        "sub": server.username,
        "aud": "https://login.salesforce.com",
        "exp": f"{soon.timestamp():.0f}",
        **claims,
    }
    return jwt.encode(whole, server.private_key_file.read_bytes(), algorithm="RS256")


# -- TLS and logins ----------------------------------------------------------------------------------------------------


def test_the_server_is_trusted_through_its_own_authority_alone(empty_sandbox: Sandbox) -> None:
    plain = requests.Session()
    plain.trust_env = False
    with pytest.raises(requests.exceptions.SSLError):
        plain.get(empty_sandbox.url)
    context = ssl.create_default_context(cafile=str(empty_sandbox.ca_file))
    certificate = ssl.get_server_certificate(("127.0.0.1", int(empty_sandbox.url.rsplit(":", 1)[1])))
    assert certificate.startswith("-----BEGIN CERTIFICATE-----")
    assert context.verify_mode == ssl.CERT_REQUIRED
    localhost = empty_sandbox.url.replace("127.0.0.1", "localhost")
    assert session(empty_sandbox).get(f"{localhost}/services/data").status_code == 200


def test_keys_and_secrets_are_for_their_owner_alone(empty_sandbox: Sandbox) -> None:
    for name in ("server.key", "app.key", "client_id", "client_secret", "password"):
        assert stat.S_IMODE((empty_sandbox.folder / name).stat().st_mode) == 0o600
    assert not list(empty_sandbox.folder.glob("ca*.key"))
    assert empty_sandbox.client_secret not in repr(empty_sandbox.credentials)


def test_the_three_flows_answer_as_documented(empty_sandbox: Sandbox) -> None:
    server = empty_sandbox
    client = {"client_id": server.client_id, "client_secret": server.client_secret}
    forms = (
        {"grant_type": JWT_BEARER, "assertion": assertion(server)},
        {"grant_type": JWT_BEARER, "assertion": assertion(server, aud="https://acme.my.salesforce.com")},
        {"grant_type": JWT_BEARER, "assertion": assertion(server, aud=server.url)},
        {"grant_type": "client_credentials", **client},
        {"grant_type": "password", "username": server.username, "password": server.password, **client},
    )
    for form in forms:
        answer = ask_token(server, **form)
        assert answer.status_code == 200
        body = answer.json()
        assert set(body) == {"access_token", "signature", "scope", "instance_url", "id", "token_type", "issued_at"}
        assert body["token_type"] == "Bearer"
        assert body["instance_url"] == server.url
        assert abs(int(body["issued_at"]) / 1000 - time.time()) < 60
    basic = session(server).post(
        f"{server.url}/services/oauth2/token",
        {"grant_type": "client_credentials"},
        auth=(server.client_id, server.client_secret),
    )
    assert basic.status_code == 200


def test_refused_logins_say_why_in_salesforces_words(empty_sandbox: Sandbox) -> None:
    server = empty_sandbox
    client = {"client_id": server.client_id, "client_secret": server.client_secret}
    past = f"{time.time() - 600:.0f}"
    other = assertion(server)[:-6] + "AAAAAA"
    refused: list[tuple[dict[str, str], str, str]] = [
        ({"grant_type": "magic"}, "unsupported_grant_type", "grant type not supported"),
        ({"grant_type": "client_credentials"}, "invalid_client_id", "client identifier invalid"),
        (
            {"grant_type": "client_credentials", **client, "client_secret": "x"},
            "invalid_client",
            "invalid client credentials",
        ),
        (
            {"grant_type": "password", **client, "username": server.username, "password": "x"},
            "invalid_grant",
            "authentication failure",
        ),
        ({"grant_type": JWT_BEARER, "assertion": other}, "invalid_grant", "invalid assertion"),
        (
            {"grant_type": JWT_BEARER, "assertion": assertion(server, exp=past)},
            "invalid_grant",
            "expired authorization code",
        ),
        (
            {"grant_type": JWT_BEARER, "assertion": assertion(server, aud="https://example.com")},
            "invalid_grant",
            "audience is invalid",
        ),
        (
            {"grant_type": JWT_BEARER, "assertion": assertion(server, sub="nobody@example.com")},
            "invalid_grant",
            "user hasn't approved this consumer",
        ),
        (
            {"grant_type": JWT_BEARER, "assertion": assertion(server, iss="someone")},
            "invalid_client_id",
            "client identifier invalid",
        ),
    ]
    for form, error, description in refused:
        answer = ask_token(server, **form)
        assert (answer.status_code, answer.json()) == (400, {"error": error, "error_description": description})


def test_a_call_without_a_good_token_is_refused(empty_sandbox: Sandbox, call: Browser) -> None:
    for headers in ({}, {"Authorization": "Bearer 00Dnone"}, {"Authorization": "Basic abc"}):
        answer = session(empty_sandbox).get(f"{empty_sandbox.url}{BASE}/limits", headers=headers)
        assert (answer.status_code, answer.json()) == (401, LOCK_OUT)
    assert call("GET", "/limits").status_code == 200
    empty_sandbox.tokens.expire_all()
    assert call("GET", "/limits").json() == LOCK_OUT


def test_the_org_file_is_one(empty_sandbox: Sandbox, tmp_path: Any) -> None:
    for flow in ("jwt", "client_credentials", "password"):
        path = empty_sandbox.org_file(tmp_path / f"{flow}.yaml", flow=flow, source={"page_rows": 2000}, seed=7)
        org = config.load(path)
        assert isinstance(org.source, config.SalesforceSource)
        assert org.source.login.client_id.read(org.folder) == empty_sandbox.client_id
        assert (org.source.page_rows, org.seed) == (2000, 7)
        assert empty_sandbox.client_secret not in path.read_text()


def test_a_port_in_use_is_told(empty_sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match="expected a free port"):
        Sandbox(empty_sandbox.store, port=int(empty_sandbox.url.rsplit(":", 1)[1]), folder=empty_sandbox.folder)


# -- REST --------------------------------------------------------------------------------------------------------------


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


# -- composite ---------------------------------------------------------------------------------------------------------


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
    statuses = [
        answer["httpStatusCode"] for answer in call("POST", "/composite", json=whole).json()["compositeResponse"]
    ]
    assert statuses == [201, 400]
    assert empty_sandbox.store.query("SELECT COUNT() FROM Account").count == 1


# -- Bulk API 2.0 query ------------------------------------------------------------------------------------------------


def run_query(call: Browser, soql: str, **more: str) -> dict[str, Any]:
    """A finished query job."""
    made = call("POST", "/jobs/query", json={"operation": "query", "query": soql, **more})
    assert made.status_code == 200, made.json()
    return finished(call, f"/jobs/query/{made.json()['id']}")


def finished(call: Browser, path: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        job = call("GET", path).json()
        if job["state"] in ("JobComplete", "Failed", "Aborted"):
            return job
        time.sleep(0.01)
    raise AssertionError(f"job is still {job['state']}")


def test_a_query_job_tells_what_salesforce_tells(empty_sandbox: Sandbox, call: Browser) -> None:
    add_accounts(empty_sandbox, 25)
    made = call("POST", "/jobs/query", json={"operation": "query", "query": "SELECT Id FROM Account"}).json()
    assert made["id"].startswith("750")
    expected = {
        "operation": "query",
        "object": "Account",
        "state": "UploadComplete",
        "concurrencyMode": "Parallel",
        "contentType": "CSV",
        "apiVersion": 64.0,
        "lineEnding": "LF",
        "columnDelimiter": "COMMA",
    }
    assert {name: made[name] for name in expected} == expected
    assert made["createdDate"].endswith("+0000")
    job = finished(call, f"/jobs/query/{made['id']}")
    assert (job["state"], job["numberRecordsProcessed"], job["jobType"]) == ("JobComplete", 25, "V2Query")
    assert made["id"] in [item["id"] for item in call("GET", "/jobs/query").json()["records"]]
    assert call("GET", f"/services/data/v60.0/jobs/query/{made['id']}/results").status_code == 409
    assert call("DELETE", f"/jobs/query/{made['id']}").status_code == 204
    assert call("GET", f"/jobs/query/{made['id']}").status_code == 404


def test_values_are_quoted_and_nulls_are_empty(empty_sandbox: Sandbox, call: Browser) -> None:
    row = {"Name": 'A "B", C', "NumberOfEmployees": 7, "AnnualRevenue": 12}
    empty_sandbox.store.insert("Account", [row])
    soql = "SELECT Name, NumberOfEmployees, AnnualRevenue, Phone, IsDeleted, CreatedDate FROM Account"
    job = run_query(call, soql)
    answer = call("GET", f"/jobs/query/{job['id']}/results")
    header, line, end = answer.text.split("\n")
    assert header == '"Name","NumberOfEmployees","AnnualRevenue","Phone","IsDeleted","CreatedDate"'
    assert line.startswith('"A ""B"", C","7","12.0","","false","20')
    assert line.endswith('Z"')
    assert end == ""
    assert answer.headers["Content-Type"] == "text/csv; charset=UTF-8"
    other = run_query(call, soql, columnDelimiter="PIPE", lineEnding="CRLF")
    text = call("GET", f"/jobs/query/{other['id']}/results").text
    assert text.startswith('"Name"|"NumberOfEmployees"')
    assert text.count("\r\n") == 2


def test_results_come_by_locator_or_side_by_side(empty_sandbox: Sandbox, call: Browser) -> None:
    ids = add_accounts(empty_sandbox, 75)
    job = run_query(call, "SELECT Id FROM Account ORDER BY Name")
    path, locator, found = f"/jobs/query/{job['id']}", "", []
    while locator != "null":
        params = {"maxRecords": 30, **({"locator": locator} if locator else {})}
        page = call("GET", f"{path}/results", params=params)
        rows = [row["Id"] for row in csv.DictReader(io.StringIO(page.text))]
        assert page.headers["Sforce-NumberOfRecords"] == str(len(rows))
        found, locator = found + rows, page.headers["Sforce-Locator"]
    assert found == ids
    listed, url = [], f"{BASE}{path}/resultPages"
    while url:
        body = call("GET", url).json()
        assert len(body["resultPages"]) <= 5
        listed += [page["resultUrl"] for page in body["resultPages"]]
        assert body["done"] == ("nextRecordsUrl" not in body)
        url = body.get("nextRecordsUrl", "")
    assert len(listed) == 8
    pages = [csv.DictReader(io.StringIO(call("GET", url).text)) for url in listed]
    assert [row["Id"] for page in pages for row in page] == ids


def test_pages_are_compressed_only_on_request_and_are_stable(empty_sandbox: Sandbox, call: Browser) -> None:
    ids = add_accounts(empty_sandbox, 12)
    job = run_query(call, "SELECT Id, Name FROM Account ORDER BY Name")
    path = f"/jobs/query/{job['id']}/results?maxRecords=100"
    before = call("GET", path, headers={"Accept-Encoding": "gzip"}, stream=True)
    raw = before.raw.read(decode_content=False)
    assert before.headers["Content-Encoding"] == "gzip"
    empty_sandbox.store.update("Account", [{"Id": ids[0], "Name": "Changed"}])
    empty_sandbox.store.delete("Account", ids[5:])
    after = call("GET", path, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in after.headers
    assert gzip.decompress(raw) == after.content


def test_an_empty_result_has_a_header_and_one_page(call: Browser) -> None:
    job = run_query(call, "SELECT Id, Name FROM Account")
    answer = call("GET", f"/jobs/query/{job['id']}/results")
    assert (answer.text, answer.headers["Sforce-NumberOfRecords"]) == ('"Id","Name"\n', "0")
    assert answer.headers["Sforce-Locator"] == "null"
    pages = call("GET", f"/jobs/query/{job['id']}/resultPages").json()
    assert (len(pages["resultPages"]), pages["done"]) == (1, True)


def test_a_query_that_is_wrong_makes_no_job(call: Browser) -> None:
    for body, code in (
        ({"operation": "query", "query": "SELECT Foo FROM Account"}, "INVALID_FIELD"),
        ({"operation": "insert", "query": "SELECT Id FROM Account"}, "INVALIDJOB"),
        ({"operation": "query"}, "INVALIDJOB"),
        ({"operation": "query", "query": "SELECT Id FROM Account", "columnDelimiter": "DOT"}, "INVALIDJOB"),
    ):
        answer = call("POST", "/jobs/query", json=body)
        assert (answer.status_code, answer.json()[0]["errorCode"]) == (400, code)
    assert call("GET", "/jobs/query").json()["records"] == []


# -- Bulk API 2.0 ingest -----------------------------------------------------------------------------------------------


def run_ingest(call: Browser, operation: str, text: str, **more: str) -> tuple[dict[str, Any], dict[str, list[dict]]]:
    """A finished ingest job, and the rows of its three results."""
    body = {"object": "Account", "operation": operation, "contentType": "CSV", **more}
    job = call("POST", "/jobs/ingest", json=body).json()
    assert (job["state"], job["contentUrl"]) == ("Open", f"services/data/v64.0/jobs/ingest/{job['id']}/batches")
    path = f"/jobs/ingest/{job['id']}"
    uploaded = call("PUT", f"{path}/batches", data=text.encode(), headers={"Content-Type": "text/csv"})
    assert (uploaded.status_code, uploaded.content) == (201, b"")
    assert call("PATCH", path, json={"state": "UploadComplete"}).json()["state"] == "UploadComplete"
    job = finished(call, path)
    texts = {
        name: call("GET", f"{path}/{name}").text
        for name in ("successfulResults", "failedResults", "unprocessedRecords")
    }
    return job, {name: list(csv.DictReader(io.StringIO(text))) for name, text in texts.items()}


def test_rows_are_ingested_and_each_result_is_told(empty_sandbox: Sandbox, call: Browser) -> None:
    job, results = run_ingest(call, "insert", 'Name,Phone\n"Acme, Inc.",1\n,2\nBeta,\n')
    assert (job["state"], job["numberRecordsProcessed"], job["numberRecordsFailed"]) == ("JobComplete", 3, 1)
    good = results["successfulResults"]
    assert [(row["sf__Created"], row["Name"], row["Phone"]) for row in good] == [
        ("true", "Acme, Inc.", "1"),
        ("true", "Beta", ""),
    ]
    (bad,) = results["failedResults"]
    assert bad["sf__Id"] == ""
    assert bad["sf__Error"] == "REQUIRED_FIELD_MISSING:Required fields are missing: [Name]:Name --"
    assert (bad["Phone"], results["unprocessedRecords"]) == ("2", [])
    ids = [row["sf__Id"] for row in good]
    assert ids == empty_sandbox.store.query("SELECT Id FROM Account ORDER BY Name").table["Id"].to_pylist()


def test_an_empty_value_is_left_alone_and_n_a_is_null(empty_sandbox: Sandbox, call: Browser) -> None:
    made = empty_sandbox.store.insert("Account", [{"Name": "A", "Phone": "1"}, {"Name": "B", "Phone": "2"}])
    first, second = (result.id for result in made)
    job, _ = run_ingest(call, "update", f"Id|Phone|Name\r\n{first}||X\r\n{second}|#N/A|Y\r\n",
                        columnDelimiter="PIPE", lineEnding="CRLF")  # fmt: skip
    assert (job["numberRecordsProcessed"], job["numberRecordsFailed"]) == (2, 0)
    rows = empty_sandbox.store.query("SELECT Name, Phone FROM Account ORDER BY Name").table
    assert rows.to_pylist() == [{"Name": "X", "Phone": "1"}, {"Name": "Y", "Phone": None}]


def test_deletes_go_to_the_bin_and_hard_deletes_do_not(empty_sandbox: Sandbox, call: Browser) -> None:
    first, second = add_accounts(empty_sandbox, 2)
    _, results = run_ingest(call, "delete", f"Id\n{first}\n{first}\n")
    assert [row["sf__Id"] for row in results["successfulResults"]] == [first]
    assert [row["sf__Error"].split(":")[0] for row in results["failedResults"]] == ["ENTITY_IS_DELETED"]
    run_ingest(call, "hardDelete", f"Id\n{second}\n")
    left = empty_sandbox.store.query("SELECT Id, IsDeleted FROM Account", all_rows=True).table.to_pylist()
    assert left == [{"Id": first, "IsDeleted": True}]


def test_a_csv_that_is_wrong_fails_the_job(call: Browser) -> None:
    for text, message in (
        ("Name,Nothing\nA,B\n", "InvalidBatch : Field name not found : Nothing"),
        ("Name,Phone\nA\n", "InvalidBatch : the upload is no CSV"),
        ("Name,name\nA,B\n", "InvalidBatch : a field is named twice"),
        ("", "InvalidBatch : the upload has no header"),
    ):
        job, _ = run_ingest(call, "insert", text)
        assert job["state"] == "Failed"
        assert job["errorMessage"].startswith(message)
    job, results = run_ingest(call, "upsert", "Phone,Name\n1,A\n", externalIdFieldName="Phone")
    assert (job["state"], [row["Name"] for row in results["unprocessedRecords"]]) == ("Failed", ["A"])
    job, _ = run_ingest(call, "insert", "Name\n")
    assert (job["state"], job["numberRecordsProcessed"]) == ("JobComplete", 0)


def test_a_job_takes_one_upload_and_can_be_aborted(call: Browser) -> None:
    job = call("POST", "/jobs/ingest", json={"object": "Account", "operation": "insert"}).json()
    path = f"/jobs/ingest/{job['id']}"
    assert call("PUT", f"{path}/batches", data=b"Name\nA\n").status_code == 201
    again = call("PUT", f"{path}/batches", data=b"Name\nA\n")
    assert (again.status_code, again.json()[0]["errorCode"]) == (400, "INVALIDJOBSTATE")
    assert call("PATCH", path, json={"state": "Aborted"}).json()["state"] == "Aborted"
    assert call("PATCH", path, json={"state": "UploadComplete"}).status_code == 400
    assert call("DELETE", path).status_code == 204
    for body in ({"object": "Nothing", "operation": "insert"}, {"object": "Account", "operation": "upsert"}):
        assert call("POST", "/jobs/ingest", json=body).status_code == 400


def test_rows_of_an_aborted_job_are_processed_or_not_and_all_are_told(empty_sandbox: Sandbox, call: Browser) -> None:
    job = call("POST", "/jobs/ingest", json={"object": "Account", "operation": "insert"}).json()
    path = f"/jobs/ingest/{job['id']}"
    call("PUT", f"{path}/batches", data=("Name\n" + "A\n" * 30_000).encode())
    call("PATCH", path, json={"state": "UploadComplete"})
    assert call("PATCH", path, json={"state": "Aborted"}).json()["state"] == "Aborted"
    unprocessed = call("GET", f"{path}/unprocessedrecords").text.count("\n") - 1
    done = call("GET", f"{path}/successfulResults").text.count("\n") - 1
    assert done == call("GET", path).json()["numberRecordsProcessed"]
    assert done == empty_sandbox.store.query("SELECT COUNT() FROM Account").count
    assert done + unprocessed == 30_000
    assert unprocessed > 0
