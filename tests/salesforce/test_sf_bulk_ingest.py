"""The sandbox org's wire formats, as Salesforce documents them: Bulk API 2.0 ingest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sandboxes import Browser, add_accounts, finished, run_ingest

from crmray.salesforce.sandbox.server import Sandbox


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


def test_a_job_is_started_once_however_many_ask_at_once(empty_sandbox: Sandbox, call: Browser) -> None:
    job = call("POST", "/jobs/ingest", json={"object": "Account", "operation": "insert"}).json()
    path = f"/jobs/ingest/{job['id']}"
    call("PUT", f"{path}/batches", data=b"Name\nA\n")
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda _: call("PATCH", path, json={"state": "UploadComplete"}).status_code, range(4))
    assert sorted(asked) == [200, 400, 400, 400]
    finished(call, path)
    assert empty_sandbox.store.query("SELECT COUNT() FROM Account").count == 1
