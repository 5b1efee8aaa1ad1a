"""Clients of a sandbox org, for tests."""

from __future__ import annotations

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
