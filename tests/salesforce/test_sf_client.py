"""The client against the sandbox org: logins, refresh, retries, limits, Bulk jobs; and that nothing secret is told."""

from __future__ import annotations

import dataclasses
import pickle
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from crmray import config
from crmray.errors import AuthError, LimitError, SalesforceError
from crmray.salesforce import auth, bulk, replies
from crmray.salesforce import client as client_module
from crmray.salesforce.client import AnswerLostError, Client
from crmray.salesforce.limits import CallLedger
from crmray.salesforce.sandbox.server import Sandbox

ACCOUNTS = 30


@pytest.fixture
def server(empty_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """An org with accounts A00 … A29, each but the first a child of the first; pages of ten rows."""
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.001)
    first = empty_sandbox.store.insert("Account", [{"Name": "A00"}])[0].id
    empty_sandbox.store.insert("Account", [{"Name": f"A{i:02d}", "ParentId": first} for i in range(1, ACCOUNTS)])
    return empty_sandbox


def connect(server: Sandbox, *, flow: str = "jwt", patience_s: float = 5.0, **source: object) -> Client:
    org = config.load(server.org_file(server.folder / "org.yaml", flow=flow, source=source))
    assert isinstance(org.source, config.SalesforceSource)
    return Client.connect(org.source, org.folder, patience_s=patience_s)


@pytest.mark.parametrize("flow", ["jwt", "client_credentials", "password"])
def test_each_flow_logs_in(server: Sandbox, flow: str) -> None:
    with connect(server, flow=flow) as client:
        assert client.count("Account") == ACCOUNTS
        assert client.count("Account", "ParentId = null") == 1
        assert server.client_secret not in repr(client)
        assert client._token.access_token not in repr(client._token)


def test_a_sandbox_that_is_down_is_told_at_once_with_how_to_start_it(server: Sandbox, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    org = config.load(server.org_file(tmp_path / "org.yaml"))
    login = org.source.login.model_copy(update={"url": url})  # type: ignore[union-attr]
    told = (
        f"{url}: got no connection, expected the local sandbox org, which is down; start it with `crmray sandbox "
        f"--folder {server.folder} --port {port}`"
    )
    with pytest.raises(SalesforceError, match=f"^{re.escape(told)}$"):
        Client.connect(org.source.model_copy(update={"login": login}), org.folder)  # type: ignore[arg-type]


def test_a_sandbox_that_is_down_in_the_middle_is_waited_for(server: Sandbox) -> None:
    """As any org: it may be starting again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"https://127.0.0.1:{free.getsockname()[1]}"
    with connect(server, patience_s=0.2) as client:
        client.source = client.source.model_copy(update={"login": client.source.login.model_copy(update={"url": url})})
        with pytest.raises(SalesforceError, match=r"[0-9]+ times within 0 s; try again later"):
            client._refresh(client._token)
        assert client.ledger.calls["login"] > 2


def test_a_refused_login_tells_no_secret(server: Sandbox, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-secret-4711")
    org = config.load(server.org_file(tmp_path / "org.yaml", flow="client_credentials"))
    login = org.source.login.model_copy(update={"client_secret": config.Secret(file=str(wrong))})  # type: ignore[union-attr]
    with pytest.raises(AuthError, match="client_credentials") as caught:
        Client.connect(org.source.model_copy(update={"login": login}), org.folder)  # type: ignore[arg-type]
    told = str(pickle.loads(pickle.dumps(caught.value)))
    assert "4711" not in told
    assert server.client_id not in told


def test_an_unknown_authority_is_named(server: Sandbox) -> None:
    org = config.load(server.org_file(server.folder / "org.yaml"))
    with pytest.raises(SalesforceError, match="ca_file"):
        Client.connect(org.source.model_copy(update={"ca_file": ""}), org.folder, patience_s=0.5)  # type: ignore[arg-type]


def test_one_refresh_serves_all_threads(server: Sandbox) -> None:
    with connect(server) as client:
        server.faults.set(expire_tokens_after_calls=5)
        with ThreadPoolExecutor(4) as pool:
            counts = list(pool.map(lambda _: client.count("Account"), range(40)))
        assert counts == [ACCOUNTS] * 40
        # 40 answers, five a token, take at least seven more logins; threads share them.
        assert 8 <= client.ledger.calls["login"] <= 20


def test_simple_salesforce_is_refreshed_and_counted_too(server: Sandbox) -> None:
    with connect(server) as client:
        server.faults.set(expire_tokens_after_calls=2, error_503_every=5)
        assert client.simple.query_all("SELECT Id FROM Account")["totalSize"] == ACCOUNTS
        pages = list(client.simple.bulk2.Account.query("SELECT Id FROM Account", wait=0.01, max_records=10))
        assert sum(page.count("\n") - 1 for page in pages) == ACCOUNTS
        assert client.ledger.calls["jobs/query"] >= 5


@pytest.mark.parametrize("name", ["query", "limits", "session", "version", "bulk", "bulk2", "__x", "a/../Account"])
def test_an_object_called_like_a_call_of_the_library_is_not_there(server: Sandbox, name: str) -> None:
    with connect(server) as client:
        with pytest.raises(SalesforceError, match="404"):
            client.describe(name)
        assert client.describe("Account")["name"] == "Account"


def test_after_a_refresh_everything_goes_to_the_host_that_gave_the_token(
    server: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    login, told, hosts = client_module.auth.login, server.url, []

    def moved(*args: Any, **options: Any) -> auth.Token:
        return dataclasses.replace(login(*args, **options), instance_url=told)

    monkeypatch.setattr(client_module.auth, "login", moved)
    with connect(server) as client:
        old, held = told, client.simple
        assert client.simple is held
        told = server.url.replace("127.0.0.1", "localhost")
        assert told != old
        server.tokens.expire_all()
        assert client.count("Account") == ACCOUNTS  # this one is refreshed on its way
        send = client.session.request

        def sent(method: str, url: str, **options: Any) -> requests.Response:
            hosts.append(url.split("/services/")[0])
            return send(method, url, **options)

        monkeypatch.setattr(client.session, "request", sent)
        client.describe("Account")
        client.objects()
        client.limits()
        client.simple.query("SELECT Id FROM Account")
        held.query("SELECT Id FROM Account")
        assert client.simple.sf_instance == told.removeprefix("https://")
        assert client.simple is not held
    assert hosts == [told] * 5


def test_a_user_of_the_library_may_leave_out_headers(server: Sandbox) -> None:
    with connect(server) as client:
        url = f"{client.url}/services/data/v{client.version}/limits"
        assert client.simple.session.request("GET", url, headers=None).json()["DailyApiRequests"]["Max"] > 0


def test_faults_that_pass_are_waited_out(server: Sandbox) -> None:
    with connect(server) as client:
        server.faults.set(error_503_every=3, concurrent_limit_every=4, drop_connection_every=5)
        for _ in range(20):
            assert client.count("Account") == ACCOUNTS
        assert set(server.faults.struck) >= {"error_503_every", "concurrent_limit_every", "drop_connection_every"}


def test_a_post_whose_answer_is_lost_is_not_repeated(server: Sandbox) -> None:
    with connect(server) as client:
        server.faults.set(drop_connection_every=1)  # in turn: before it is done, after it, in mid-answer
        for _ in range(2):
            with pytest.raises(AnswerLostError, match="may have been done"):
                client.request("POST", "sobjects/Account", json={"Name": "made once"})
        server.faults.clear()
        assert client.count("Account", "Name = 'made once'") == 1


def test_it_gives_up_in_time(server: Sandbox) -> None:
    with connect(server, patience_s=0.3) as client:
        server.faults.set(error_503_every=1)
        with pytest.raises(SalesforceError, match="SERVER_UNAVAILABLE.*try again later"):
            client.count("Account")


def test_the_daily_limit_stops_at_once(server: Sandbox) -> None:
    with connect(server, patience_s=60.0, calls_reserve=0.0) as client:
        server.faults.set(request_limit=1)
        with pytest.raises(LimitError):
            for _ in range(3):
                client.count("Account")


def test_the_reserve_is_left_to_others() -> None:
    ledger = CallLedger(reserve=0.2)
    ledger.spend("query")  # nothing is known yet
    ledger.note("api-usage=7/10")
    ledger.spend("query")  # the eighth of ten
    with pytest.raises(LimitError, match="8 of 10 used, expected fewer than 8"):
        ledger.spend("query")
    assert ledger.total() == 2


def test_bulk_pages_add_up_and_stay(server: Sandbox) -> None:
    with connect(server) as client:
        job_id = bulk.start_query(client, "SELECT Id, Name, ParentId FROM Account ORDER BY Name")
        assert bulk.wait(client, "query", job_id)["numberRecordsProcessed"] == ACCOUNTS
        urls, is_all = bulk.page_urls(client, job_id, 10)
        assert (len(urls), is_all) == (3, True)
        names = []
        for url in [urls[2], urls[0], urls[1]]:  # any order
            with bulk.open_page(client, url) as page:
                assert page.rows == 10
                names += bulk.read_csv(page.read())["Name"].to_pylist()
        assert sorted(names) == [f"A{i:02d}" for i in range(ACCOUNTS)]
        first = bulk.open_page(client, urls[0])
        assert first.next_url is not None
        first.close()
        bulk.delete_query(client, job_id)
        bulk.delete_query(client, job_id)  # gone already


@pytest.mark.parametrize("version", ["57.0", "64.0"])
def test_all_rows_come_through_dropped_connections(server: Sandbox, version: str) -> None:
    with connect(server, api_version=version, page_rows=1000) as client:
        server.faults.set(drop_connection_every=4)
        for _ in range(6):
            assert bulk.read_all(client, "SELECT Id, ParentId FROM Account")["ParentId"].null_count == 1


def test_a_failed_query_says_why(server: Sandbox) -> None:
    with connect(server) as client, pytest.raises(SalesforceError, match="Nope__c"):
        bulk.read_all(client, "SELECT Nope__c FROM Account")


def test_ingest_tells_every_row(server: Sandbox) -> None:
    with connect(server) as client:
        job_id = bulk.create_ingest(client, "Account", "insert")
        bulk.upload(client, job_id, b'Name,Description\nB1,\n,no name\nB2,"two\nlines"\n')
        job = bulk.wait(client, "ingest", job_id)
        assert (job["numberRecordsProcessed"], job["numberRecordsFailed"]) == (3, 1)
        results = bulk.results(client, job_id)
        assert results["successful"]["Name"].to_pylist() == ["B1", "B2"]
        assert results["failed"]["sf__Error"][0].as_py().startswith("REQUIRED_FIELD_MISSING:")
        assert results["unprocessed"].num_rows == 0
        assert client.count("Account", "Name LIKE 'B_'") == 2


def test_an_abandoned_job_does_nothing(server: Sandbox) -> None:
    with connect(server) as client:
        job_id = bulk.create_ingest(client, "Account", "insert")
        client.request("PUT", f"jobs/ingest/{job_id}/batches", data=b"Name\nB1\n", headers={"Content-Type": "text/csv"})
        bulk.abort(client, job_id)
        bulk.abort(client, job_id)  # ended already
        with pytest.raises(SalesforceError, match="Aborted"):
            bulk.wait(client, "ingest", job_id)
        assert client.count("Account") == ACCOUNTS


def test_messages_hold_no_values() -> None:
    query = "\nSELECT Foo__c FROM Account WHERE Name = 'Miller'\n   ^\nERROR at Row:1:Column:8\nNo such column 'Foo__c'"
    assert replies.safe("INVALID_FIELD", query) == "No such column 'Foo__c'"
    assert replies.safe("DUPLICATE_VALUE", "duplicate value found: K__c on record with id: 0015e00000ABCDe") == (
        "duplicate value found: K__c on record with id: (id)"
    )
    assert replies.safe("STRING_TOO_LONG", "Title: data value too large: Dr Jo (max length=4)") == (
        "Title: data value too large"
    )
    assert replies.safe("X", "write to jo@example.com or +49 30 1234567") == "write to (mail) or (number)"
    assert replies.is_daily_limit("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
    assert not replies.is_daily_limit("REQUEST_LIMIT_EXCEEDED", "ConcurrentRequests (Concurrent API) Limit exceeded.")


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("", None), ("Fri, 01 Jan 2010 00:00:00 GMT", 0.0), ("?", None)]
)
def test_retry_after(value: str, seconds: float | None) -> None:
    response = requests.Response()
    response.headers["Retry-After"] = value
    assert replies.wait_s(response) == seconds
