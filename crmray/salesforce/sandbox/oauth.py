"""The three OAuth 2.0 flows of a connected app, and the tokens they give.

Source: Salesforce help, "OAuth 2.0 JWT Bearer Flow", "… Client Credentials Flow", "… Username-Password Flow",
"OAuth 2.0 Authorization Errors".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.tls import Credentials
from crmray.salesforce.sandbox.wire import ApiError

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
AUDIENCE = re.compile(r"https://(login|test|[a-z0-9-]+(\.sandbox)?\.my)\.salesforce\.com")
"""audiences of a JWT, beside the sandbox's own URL"""
LIFETIME_S = 2 * 3600.0


class OAuthError(Exception):
    """A refused token request: `error` and `error_description` as Salesforce words them."""

    def __init__(self, error: str, description: str, status: int = 400):
        super().__init__(error)
        self.status, self.body = status, {"error": error, "error_description": description}


class Tokens:
    """Tokens given out and not yet expired. Thread-safe."""

    def __init__(self, credentials: Credentials, store: Store, url: str, *, lifetime_s: float):
        self.credentials, self.store, self.url, self.lifetime_s = credentials, store, url, lifetime_s
        key = x509.load_pem_x509_certificate(credentials.app_certificate).public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        self._key = key
        self._expiry: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()

    def grant(self, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """Body of a good answer to POST /services/oauth2/token; OAuthError otherwise."""
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        flows = {JWT_BEARER: self._jwt, "client_credentials": self._client_credentials, "password": self._password}
        flow = flows.get(form.get("grant_type", ""))
        if flow is None:
            raise OAuthError("unsupported_grant_type", "grant type not supported")
        flow(form, headers)
        return self._answer()

    def check(self, authorization: str, *, expire_after_calls: int = 0) -> None:
        """Count a call under its token; 401 INVALID_SESSION_ID for a token that is none, or no longer is."""
        scheme, _, token = authorization.partition(" ")
        with self._lock:
            known = scheme.lower() in ("bearer", "oauth") and self._expiry.get(token, 0.0) > time.monotonic()
            if known and expire_after_calls and self._calls[token] >= expire_after_calls:
                known = False
            if not known:
                self._expiry.pop(token, None)
                self._calls.pop(token, None)
                raise ApiError(401, "INVALID_SESSION_ID", "Session expired or invalid")
            self._calls[token] += 1

    def expire_all(self) -> None:
        """End every session."""
        with self._lock:
            self._expiry.clear()
            self._calls.clear()

    def check_basic(self, authorization: str) -> None:
        """Client id and secret as HTTP Basic; 401 otherwise."""
        if not self._is_client(*_basic(authorization)):
            raise ApiError(401, "INVALID_AUTH_HEADER", "client_id and client_secret expected as HTTP Basic")

    def _answer(self) -> dict[str, Any]:
        token = f"{self.store.organization_id[:15]}!AQ{secrets.token_urlsafe(70)}"
        with self._lock:
            self._expiry[token] = time.monotonic() + self.lifetime_s
            self._calls[token] = 0
        identity, issued_at = (
            f"{self.url}/id/{self.store.organization_id}/{self.store.user_id}",
            str(int(time.time() * 1000)),
        )
        digest = hmac.digest(self.credentials.client_secret.encode(), (identity + issued_at).encode(), hashlib.sha256)
        return {
            "access_token": token,
            "signature": base64.b64encode(digest).decode(),
            "scope": "api",
            "instance_url": self.url,
            "id": identity,
            "token_type": "Bearer",
            "issued_at": issued_at,
        }

    def _is_client(self, client_id: str, client_secret: str) -> bool:
        same_id = hmac.compare_digest(client_id.encode(), self.credentials.client_id.encode())
        return same_id and hmac.compare_digest(client_secret.encode(), self.credentials.client_secret.encode())

    def _check_client(self, client_id: str, client_secret: str) -> None:
        if not hmac.compare_digest(client_id.encode(), self.credentials.client_id.encode()):
            raise OAuthError("invalid_client_id", "client identifier invalid")
        if not self._is_client(client_id, client_secret):
            raise OAuthError("invalid_client", "invalid client credentials")

    def _client_credentials(self, form: Mapping[str, str], headers: Mapping[str, str]) -> None:
        if "client_id" in form:
            self._check_client(form["client_id"], form.get("client_secret", ""))
        else:
            self._check_client(*_basic(headers.get("authorization", "")))

    def _password(self, form: Mapping[str, str], headers: Mapping[str, str]) -> None:
        self._check_client(form.get("client_id", ""), form.get("client_secret", ""))
        password = form.get("password", "")
        right = hmac.compare_digest(password.encode(), self.credentials.password.encode())
        if form.get("username") != self.credentials.username or not right:
            raise OAuthError("invalid_grant", "authentication failure")

    def _jwt(self, form: Mapping[str, str], headers: Mapping[str, str]) -> None:
        try:
            claims = jwt.decode(
                form.get("assertion", ""),
                self._key,
                algorithms=["RS256"],
                options={"require": ["iss", "sub", "aud", "exp"], "verify_aud": False},
                leeway=30,
            )
        except jwt.ExpiredSignatureError:
            raise OAuthError("invalid_grant", "expired authorization code") from None
        except jwt.InvalidTokenError:
            raise OAuthError("invalid_grant", "invalid assertion") from None
        if claims["iss"] != self.credentials.client_id:
            raise OAuthError("invalid_client_id", "client identifier invalid")
        if claims["aud"] != self.url and not AUDIENCE.fullmatch(str(claims["aud"])):
            raise OAuthError("invalid_grant", "audience is invalid")
        if claims["sub"] != self.credentials.username:
            raise OAuthError("invalid_grant", "user hasn't approved this consumer")


def _basic(authorization: str) -> tuple[str, str]:
    """User and password of an HTTP Basic header; empty for anything else."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return user, password
