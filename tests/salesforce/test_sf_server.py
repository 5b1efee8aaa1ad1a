"""The sandbox org's wire formats, as Salesforce documents them: TLS, logins, the org file."""

from __future__ import annotations

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
