"""Clients of a sandbox org, for tests."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import requests
from simple_salesforce import Salesforce

from crmray.salesforce.sandbox.server import Sandbox

VERSION = "64.0"
BASE = f"/services/data/v{VERSION}"


def session(server: Sandbox) -> requests.Session:
    """A session that trusts the server and nothing of the environment."""
    made = requests.Session()
    made.verify, made.trust_env = str(server.ca_file), False
    return made


def ask_token(server: Sandbox, **form: str) -> requests.Response:
    """POST /services/oauth2/token."""
    return session(server).post(f"{server.url}/services/oauth2/token", form)


def token(server: Sandbox) -> str:
    """An access token, by the client credentials flow."""
    form = {"client_id": server.client_id, "client_secret": server.client_secret}
    return ask_token(server, grant_type="client_credentials", **form).json()["access_token"]


class Browser:
    """Calls below /services/data/v64.0 with a token."""

    def __init__(self, server: Sandbox):
        self.server, self.session = server, session(server)
        self.session.headers["Authorization"] = f"Bearer {token(server)}"

    def __call__(self, method: str, path: str, **more: object) -> requests.Response:
        path = path if path.startswith("/services/") else BASE + path
        return self.session.request(method, self.server.url + path, **more)  # type: ignore[arg-type]


def library(server: Sandbox) -> Salesforce:
    """simple-salesforce, unchanged, on a token."""
    return Salesforce(instance_url=server.url, session_id=token(server), session=session(server), version=VERSION)


def add_accounts(server: Sandbox, count: int) -> list[str]:
    """Accounts A00, A01, …; their ids."""
    made = server.store.insert("Account", [{"Name": f"A{i:02d}", "NumberOfEmployees": i} for i in range(count)])
    return [result.id or "" for result in made]


def finished(call: Browser, path: str) -> dict[str, Any]:
    """A Bulk job once it has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        job = call("GET", path).json()
        if job["state"] in ("JobComplete", "Failed", "Aborted"):
            return job
        time.sleep(0.01)
    raise AssertionError(f"job is still {job['state']}")


def run_query(call: Browser, soql: str, **more: str) -> dict[str, Any]:
    """A finished query job."""
    made = call("POST", "/jobs/query", json={"operation": "query", "query": soql, **more})
    assert made.status_code == 200, made.json()
    return finished(call, f"/jobs/query/{made.json()['id']}")


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
