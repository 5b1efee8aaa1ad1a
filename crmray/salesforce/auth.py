"""Logging in: the OAuth 2.0 flows JWT bearer (RFC 7523), client credentials and username/password.

Source: Salesforce Help, "OAuth Authorization Flows". No token, secret or user name reaches an error or a repr.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import requests

from crmray.errors import AuthError, SalesforceError
from crmray.salesforce import replies
from crmray.sources import Login

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_S = 180
"""life of the signed assertion; Salesforce refuses more than a few minutes"""


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a login gives."""

    access_token: str = field(repr=False)
    """bearer token"""
    instance_url: str
    """https://host[:port] of the org, without a slash at the end"""


def login(how: Login, folder: Path, session: requests.Session, *, timeout_s: float = 60.0, first: bool = True) -> Token:
    """Ask for a token once. Secrets are read anew each time, so a rotated one is found.

    folder: of the org file, where paths of secrets start. AuthError when the org refuses; ConfigError for a secret that
    is not there; requests' own exceptions when nobody answers, and SalesforceError for an answer that is none, or where
    a sandbox on this machine is down at the first login (later on it may be starting again).
    """
    form, basic = _form(how, folder)
    try:
        response = session.post(
            f"{how.url}/services/oauth2/token", data=form, auth=basic, timeout=(10.0, timeout_s), allow_redirects=False
        )
    except requests.ConnectionError as error:
        if first:
            _refuse_a_sandbox_that_is_down(how, folder, error)
        raise
    if response.status_code >= 500 or response.status_code == 429:
        response.raise_for_status()
    if response.status_code != 200:
        code, message = replies.errors_of(response)[0]
        told = f"{code or response.status_code} {replies.safe(code, message)}".strip()
        raise AuthError(
            f"login to {how.url} with flow {how.flow}: got {told}, expected a token; check the connected app, the "
            "user's permission for it and the secrets that `source.login` names"
        )
    try:
        body = response.json()
        return Token(access_token=body["access_token"], instance_url=body["instance_url"].rstrip("/"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SalesforceError(
            f"login to {how.url}: got an answer without access_token and instance_url; check `source.login.url`"
        ) from None


def _refuse_a_sandbox_that_is_down(how: Login, folder: Path, error: requests.ConnectionError) -> None:
    """SalesforceError where nobody listens at an address of this machine, which no other org has: waiting is no use."""
    address = urlsplit(how.url)
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if address.hostname not in ("127.0.0.1", "localhost") or type(reason).__name__ != "NewConnectionError":
        return
    keys = (folder / Path(how.client_id.file).expanduser()).parent  # where it keeps them, if they stand in files
    where = f"--folder {shlex.quote(str(keys))} " if how.client_id.file else ""
    raise SalesforceError(
        f"{how.url}: got no connection, expected the local sandbox org, which is down; start it with "
        f"`crmray sandbox {where}--port {address.port or 443}`"
    ) from None


def _form(how: Login, folder: Path) -> tuple[dict[str, str], tuple[str, str] | None]:
    """Fields of the token request, and user and password of HTTP Basic where the flow wants it."""
    client_id = how.client_id.read(folder)
    if how.flow == "jwt":
        return {"grant_type": JWT_BEARER, "assertion": _assertion(how, client_id, folder)}, None
    assert how.client_secret is not None  # checked by Login
    client_secret = how.client_secret.read(folder)
    if how.flow == "client_credentials":
        return {"grant_type": "client_credentials"}, (client_id, client_secret)
    assert how.password is not None
    form = {"grant_type": "password", "client_id": client_id, "client_secret": client_secret}
    return {**form, "username": how.username, "password": how.password.read(folder)}, None


def _assertion(how: Login, client_id: str, folder: Path) -> str:
    assert how.private_key is not None
    claims = {"iss": client_id, "sub": how.username, "aud": how.url, "exp": str(int(time.time()) + ASSERTION_S)}
    try:
        return jwt.encode(claims, how.private_key.read(folder), algorithm="RS256")
    except (ValueError, TypeError, jwt.exceptions.PyJWTError):
        raise AuthError("source.login.private_key: got no readable RSA key, expected one in PEM") from None
