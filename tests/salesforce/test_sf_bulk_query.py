"""The sandbox org's wire formats, as Salesforce documents them: Bulk API 2.0 queries."""

from __future__ import annotations

import csv
import gzip
import io

from sandboxes import BASE, Browser, add_accounts, finished, run_query

from crmray.salesforce.sandbox.server import Sandbox


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
        ({"operation": "query", "query": "SELECT COUNT() FROM Account"}, "API_ERROR"),
        ({"operation": "query", "query": "SELECT Type, COUNT(Id) FROM Account GROUP BY Type"}, "API_ERROR"),
        ({"operation": "query", "query": "SELECT Id FROM Account LIMIT 5 OFFSET 5"}, "API_ERROR"),
        ({"operation": "query", "query": "SELECT Id FROM Account", "columnDelimiter": "DOT"}, "INVALIDJOB"),
    ):
        answer = call("POST", "/jobs/query", json=body)
        assert (answer.status_code, answer.json()[0]["errorCode"]) == (400, code)
    assert call("GET", "/jobs/query").json()["records"] == []


def test_a_locator_that_is_none_is_refused(call: Browser) -> None:
    path = f"/jobs/query/{run_query(call, 'SELECT Id FROM Account')['id']}"
    for asked in (
        "results?locator=LTU",
        "resultPages?locator=LTU",
        "results?locator=!",
        "results?maxRecords=²",
    ):  # LTU: -5
        answer = call("GET", f"{path}/{asked}")
        assert (answer.status_code, answer.json()[0]["errorCode"]) == (400, "INVALID_QUERY_LOCATOR")
