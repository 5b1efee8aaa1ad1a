"""Logging in: the OAuth 2.0 flows JWT bearer (RFC 7523), client credentials and username/password.

Source: Salesforce Help, "OAuth Authorization Flows". No token, secret or user name reaches an error or a repr.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

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


def login(how: Login, folder: Path, session: requests.Session, *, timeout_s: float = 60.0) -> Token:
    """Ask for a token once. Secrets are read anew each time, so a rotated one is found.

    folder: of the org file, where paths of secrets start. AuthError when the org refuses; ConfigError for a secret that
    is not there; requests' own exceptions when nobody answers, and SalesforceError for an answer that is none.
    """
    form, basic = _form(how, folder)
    response = session.post(
        f"{how.url}/services/oauth2/token", data=form, auth=basic, timeout=(10.0, timeout_s), allow_redirects=False
    )
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
