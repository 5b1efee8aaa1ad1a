"""What Salesforce answers: error codes, messages that are safe to show, and how long to wait; and what it means that it
does not answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from crmray.errors import SalesforceError

BUSY_STATUS = (429, 503)
"""refused before anything was done: every request may be repeated"""
UNSURE_STATUS = (500, 502, 504)
"""it may have been done: only what is the same when done twice is repeated"""
BUSY_CODES = ("UNABLE_TO_LOCK_ROW", "REQUEST_LIMIT_EXCEEDED", "SERVER_UNAVAILABLE")
"""refused before anything was done, whatever the status; REQUEST_LIMIT_EXCEEDED of the concurrent kind only"""

# Codes whose messages end in the value that was refused.
_WITH_VALUE = {
    "STRING_TOO_LONG",
    "INVALID_EMAIL_ADDRESS",
    "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST",
    "INVALID_FIELD_FOR_INSERT_UPDATE",
    "INVALID_TYPE_ON_FIELD_IN_RECORD",
    "MALFORMED_ID",
    "JSON_PARSER_ERROR",
}
_ID = re.compile(r"\b(?=[a-zA-Z0-9]*[0-9])[a-zA-Z0-9]{15}(?:[A-Z0-5]{3})?\b")
_MAIL = re.compile(r"\S+@\S+")
_DIGITS = re.compile(r"\+?\d[\d ()/-]{6,}\d")


def errors_of(response: requests.Response) -> list[tuple[str, str]]:
    """(code, message) of an error body: Salesforce's JSON array, OAuth's object, or ("", "") for anything else."""
    try:
        body = response.json()
    except ValueError:
        return [("", "")]
    if isinstance(body, Mapping):
        body = [body]
    if not isinstance(body, list) or not all(isinstance(item, Mapping) for item in body):
        return [("", "")]
    return [
        (
            str(item.get("errorCode") or item.get("error") or ""),
            _text(item.get("message", item.get("error_description"))),
        )
        for item in body
    ] or [("", "")]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def is_daily_limit(code: str, message: str) -> bool:
    """Whether the org's calls of the day are used up, and not merely too many run at the same time."""
    return code == "REQUEST_LIMIT_EXCEEDED" and not message.startswith("Concurrent")


def safe(code: str, message: str) -> str:
    """A message without record values: no query text, refused value, record id, mail address or long number."""
    message = re.sub(r"(?s)^.*ERROR at Row:\d+:Column:\d+\s*", "", message)  # the query stands before it
    if code in _WITH_VALUE and ":" in message:
        message = message.rsplit(":", 1)[0]
    for pattern, word in ((_MAIL, "(mail)"), (_ID, "(id)"), (_DIGITS, "(number)")):
        message = pattern.sub(word, message)
    return " ".join(message.split())[:300]


def wait_s(response: requests.Response) -> float | None:
    """Seconds that the header Retry-After asks for (a number or an HTTP date); None without it."""
    value = response.headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())


def shown(path: str) -> str:
    """A path for a message: without host, query and record ids."""
    return safe("", urlsplit(path).path)


def never_sent(error: requests.RequestException) -> bool:
    """Whether the connection itself could not be opened."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return type(reason).__name__ in ("NewConnectionError", "NameResolutionError")


def network_fault(method: str, url: str, error: requests.RequestException) -> str:
    """What happened, in a few words; raises at once where a repetition cannot help."""
    host = urlsplit(url).netloc
    if isinstance(error, requests.exceptions.SSLError):
        raise SalesforceError(
            f"{host}: got a certificate that is not trusted, or no TLS; set `source.ca_file` to the authority's PEM"
        ) from None
    retriable = (
        requests.ConnectionError,
        requests.Timeout,
        requests.HTTPError,
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.ContentDecodingError,
    )
    if not isinstance(error, retriable):
        raise SalesforceError(
            f"{host}: got {type(error).__name__}; check `source.login.url` and `source.proxy`"
        ) from None
    return f"{method} {host}{shown(url)}: got {type(error).__name__}"
