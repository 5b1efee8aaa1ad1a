"""A connection to one org: every call goes through `Client.request`, with refresh, retries and the ledger of calls.

What happens when an answer is lost (connection dropped, 500, 502, 504): GET, PUT, PATCH and DELETE are repeated, for
they do the same when done twice. A POST is repeated only where its caller says `repeat=True`; else AnswerLostError says
that nobody knows. A refusal (401, 429, 503, concurrent limit, locked row) did nothing, so everything is repeated.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from simple_salesforce import Salesforce, SFType

from crmray import log
from crmray.config import SalesforceSource
from crmray.errors import AuthError, LimitError, SalesforceError
from crmray.salesforce import auth, replies
from crmray.salesforce.limits import CallLedger, kind_of

PATIENCE_S = 300.0
"""one request is repeated for so long, waits included"""
FIRST_LOGIN_PATIENCE_S = 20.0
"""the same of the first login, which fails for a wrong address more often than for a fault that passes"""
TRIES_UNTOLD = 5
"""after so many tries, and again as many, an event says what is waited for"""
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 20.0
CONNECT_S = 10.0
"""to open a connection"""
MOST_REFRESHES = 5
"""of the token within one request: an org that refuses fresh tokens is not asked for ever"""
_EXPIRED = ("INVALID_SESSION_ID", "")
"""codes of a 401 that a new token helps; none: where CSV was asked for, the error need not be JSON"""
PRETTY = "X-PrettyPrint"
"""header of simple-salesforce that makes answers larger"""
POOL = 16
"""connections kept open; pages are fetched by several threads"""


class AnswerLostError(SalesforceError):
    """A request that must not be done twice was sent and its answer did not come: it may or may not be done."""


class Client:
    """A logged-in connection. Thread-safe; not picklable: a worker makes its own from the org file."""

    def __init__(self, source: SalesforceSource, folder: Path, ledger: CallLedger, patience_s: float):
        self.source, self.folder, self.ledger, self.patience_s = source, folder, ledger, patience_s
        self.version = source.api_version
        """of the API, "64.0\""""
        self.session = _session(source, folder)
        self._lock = threading.Lock()
        self._described: dict[str, dict[str, Any]] = {}
        self._libraries: dict[tuple[str, bool], Salesforce] = {}
        self._token = self._login(first=True)

    @classmethod
    def connect(
        cls, source: SalesforceSource, folder: Path, *, ledger: CallLedger | None = None, patience_s: float = PATIENCE_S
    ) -> Client:
        """Log in. folder: of the org file (`org.folder`); ledger: to share one between clients.

        AuthError when the org refuses the login, SalesforceError when it cannot be reached.
        """
        return cls(source, folder, ledger or CallLedger(source.calls_reserve), patience_s)

    def __repr__(self) -> str:
        return f"Client({self.url!r}, version={self.version!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the token stays valid until it expires."""
        self.session.close()

    @property
    def url(self) -> str:
        """https://host[:port] of the org."""
        return self._token.instance_url

    # -- calls ---------------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        ok: tuple[int, ...] = (200, 201, 202, 204),
        repeat: bool | None = None,
    ) -> requests.Response:
        """One call, repeated as the module says; path: absolute ("/services/…") or relative to /services/data/vXX.X/.

        repeat: whether it may be done twice; default: every method but POST. data must be bytes, or text, so that it
        can be sent again. stream: the body is read by the caller, whose errors are then requests' own.
        SalesforceError with Salesforce's code for a status that is not in `ok`; AnswerLostError; LimitError; AuthError.
        """
        options = {"params": params, "json": json, "data": data, "headers": headers, "stream": stream}
        response = self.exchange(method, self._absolute(path), repeat=repeat, **options)
        if response.status_code not in ok:
            raise SalesforceError(self.refusal(method, path, response))
        return response

    def get(self, path: str, **params: Any) -> Any:
        """JSON of a GET."""
        return self.json("GET", path, params=params)

    def json(self, method: str, path: str, **options: Any) -> Any:
        """JSON of a call; options as for `request`."""
        response = self.request(method, path, **options)
        try:
            return response.json()
        except ValueError:
            raise SalesforceError(
                f"{method} {replies.shown(path)}: got an answer that is no JSON, expected Salesforce's; check the proxy"
            ) from None

    def describe(self, name: str, *, anew: bool = False) -> dict[str, Any]:
        """Metadata of one object with its fields, as the user may see them; asked once per client, or anew."""
        if anew or name not in self._described:
            rest = self._rest  # whose attributes are not asked for: one called `query` is no object
            kind = SFType(
                quote(name, safe=""), "", rest.sf_instance, self.version, session=rest.session, object_pairs_hook=dict
            )
            self._described[name] = self._read(kind.describe)
        return self._described[name]

    def objects(self) -> dict[str, dict[str, Any]]:
        """Objects that the user may see, by name (global describe)."""
        return {entry["name"]: entry for entry in self._read(self._rest.describe)["sobjects"]}

    def query(self, soql: str, *, all_rows: bool = False) -> Iterator[dict[str, Any]]:
        """Rows by REST, page by page, flattened: {"Id": …, "Order.AccountId": …}.

        all_rows: deleted and archived rows too (queryAll). Fields through a parent that is null are absent from a row.
        """
        page = self._read(self._rest.query, soql, include_deleted=all_rows)
        while True:
            for record in page["records"]:
                yield flat(record)
            if page["done"]:
                return
            page = self._read(self._rest.query_more, page["nextRecordsUrl"], identifier_is_url=True)

    def count(self, name: str, where: str = "", *, all_rows: bool = False) -> int:
        """Rows of an object that meet a SOQL condition ("" for all)."""
        soql = f"SELECT COUNT() FROM {name}" + (f" WHERE {where}" if where else "")
        return int(self._read(self._rest.query, soql, include_deleted=all_rows)["totalSize"])

    def limits(self) -> dict[str, dict[str, int]]:
        """The org's limits: name -> {"Max", "Remaining"}."""
        return self._read(self._rest.limits)

    def server_time(self) -> datetime:
        """The org's clock in UTC, to the second: the watermark of a pull must not hang on ours."""
        value = self.request("GET", "limits").headers.get("Date", "")
        try:
            return parsedate_to_datetime(value)
        except ValueError:
            raise SalesforceError(f"GET limits: got Date header {value!r}, expected an HTTP date") from None

    @property
    def simple(self) -> Salesforce:
        """simple-salesforce on this connection: its calls, Bulk ones too, are counted, repeated and refreshed as ours.

        Its exceptions do not survive pickling: translate them where they are caught.
        """
        return self._library()

    @property
    def _rest(self) -> Salesforce:
        """The same for our own reads by REST: a refusal is a SalesforceError."""
        return self._library(refuses=True)

    def _library(self, *, refuses: bool = False) -> Salesforce:
        """simple-salesforce at the org's address, which it keeps: another one where a refresh has told another."""
        with self._lock:
            key = (self.url, refuses)
            if key not in self._libraries:
                self._libraries[key] = Salesforce(
                    instance_url=self.url,
                    session_id=self._token.access_token,
                    session=_Bridge(self, refuses=refuses),
                    version=self.version,
                    object_pairs_hook=dict,
                )
            return self._libraries[key]

    def _read(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a call of simple-salesforce gives."""
        try:
            return call(*args, **options)
        except ValueError:
            raise SalesforceError(
                f"{call.__name__}: got an answer that is no JSON, expected Salesforce's; check the proxy"
            ) from None

    # -- how -----------------------------------------------------------------------------------------------------------

    def exchange(self, method: str, url: str, *, repeat: bool | None = None, **options: Any) -> requests.Response:
        """The last answer to a request, whatever its status, after refreshes and retries.

        Each try goes to the host that gave the token, which a refresh may have changed since `url` was made.
        """
        started, tries, refreshes = time.monotonic(), 0, 0
        repeat = method.upper() != "POST" if repeat is None else repeat
        while True:
            self.ledger.spend(kind_of(url))
            token = self._token
            url = _at(token.instance_url, url)
            asked: float | None = None
            try:
                response = self._send(method, url, token, options)
            except requests.RequestException as error:
                why = replies.network_fault(method, url, error)
                if not (repeat or replies.never_sent(error)):
                    raise AnswerLostError(f"{why}; it may have been done") from None
            else:
                code, message = replies.errors_of(response)[0] if response.status_code >= 400 else ("", "")
                if response.status_code == 401 and code in _EXPIRED and refreshes < MOST_REFRESHES:
                    refreshes += 1
                    self._refresh(token)
                    continue
                if replies.is_daily_limit(code, message):
                    raise LimitError(self.refusal(method, url, response) + "; go on later, what was done is kept")
                refused = response.status_code in replies.BUSY_STATUS or code in replies.BUSY_CODES
                unsure = response.status_code in replies.UNSURE_STATUS
                if not (refused or unsure):
                    return response
                why, asked = self.refusal(method, url, response), replies.wait_s(response)
                if unsure and not refused and not repeat:
                    raise AnswerLostError(f"{why}; it may have been done")
            tries += 1
            self._pause(tries, asked, started, why)

    def _send(self, method: str, url: str, token: auth.Token, options: dict[str, Any]) -> requests.Response:
        headers = {**(options.get("headers") or {}), "Authorization": f"Bearer {token.access_token}"}
        response = self.session.request(
            method,
            url,
            **{**options, "headers": headers, "allow_redirects": False},
            timeout=(CONNECT_S, self.source.timeout_s),
        )
        self.ledger.note(response.headers.get("Sforce-Limit-Info"))
        if response.status_code >= 400 and options.get("stream"):
            _ = response.content  # the error is read now, within this try
        return response

    def _pause(
        self, tries: int, asked_s: float | None, started: float, why: str, patience_s: float | None = None
    ) -> None:
        """Wait before the next try, with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS 2015)."""
        wait_s = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tries)) if asked_s is None else asked_s
        longest_s = min(self.patience_s, patience_s or self.patience_s)
        if time.monotonic() - started + wait_s > longest_s:
            raise SalesforceError(f"{why}, {tries} times within {longest_s:.0f} s; try again later") from None
        if tries % TRIES_UNTOLD == 0:
            log.warn("salesforce.waiting", tries=tries, why=why)
        time.sleep(wait_s)

    def _refresh(self, stale: auth.Token) -> None:
        """Log in again, once for all threads that hold the stale token."""
        with self._lock:
            if self._token is stale:
                self._token = self._login()

    def _login(self, *, first: bool = False) -> auth.Token:
        how, started, tries = self.source.login, time.monotonic(), 0
        while True:
            self.ledger.count("login")  # no API call of the daily limit
            try:
                return auth.login(how, self.folder, self.session, timeout_s=self.source.timeout_s, first=first)
            except requests.RequestException as error:
                why = replies.network_fault("POST", how.url + "/services/oauth2/token", error)
            tries += 1
            self._pause(
                tries, None, started, f"{why}; is `source.login.url` right?", FIRST_LOGIN_PATIENCE_S if first else None
            )

    def _absolute(self, path: str) -> str:
        return f"{self.url}{path}" if path.startswith("/") else f"{self.url}/services/data/v{self.version}/{path}"

    def refusal(self, method: str, path: str, response: requests.Response) -> str:
        """What the org answered, in a few words."""
        path = path.removeprefix(self._absolute("")).rstrip("/")
        code, message = replies.errors_of(response)[0]
        told = " ".join(filter(None, (str(response.status_code), code, replies.safe(code, message))))
        return f"{method} {replies.shown(path)}: got {told}"


class _Bridge(requests.Session):
    """The session that simple-salesforce is given: its calls go through the client, with the client's token."""

    def __init__(self, client: Client, *, refuses: bool = False):
        super().__init__()
        self.client, self.refuses = client, refuses

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        """A call of simple-salesforce, which raises its own errors unless this refuses before it (SalesforceError)."""
        assert not args, "simple-salesforce passes options by name"
        options.pop("timeout", None)
        headers = {name: value for name, value in (options.pop("headers", None) or {}).items() if name != PRETTY}
        response = self.client.exchange(method, url, headers=headers, **options)
        if self.refuses and response.status_code >= 300:
            raise SalesforceError(self.client.refusal(method, url, response))
        return response


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A REST record without `attributes`, parents' fields under dotted names."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if name == "attributes":
            continue
        if isinstance(value, Mapping) and "attributes" in value:
            row |= {f"{name}.{inner}": part for inner, part in flat(value).items()}
        else:
            row[name] = value
    return row


def _session(source: SalesforceSource, folder: Path) -> requests.Session:
    """A session that takes nothing from the environment: REQUESTS_CA_BUNDLE and ~/.netrc would override ours."""
    session = requests.Session()
    session.trust_env = False
    if source.ca_file:
        path = folder / Path(source.ca_file).expanduser()
        if not path.is_file():
            raise AuthError(f"source.ca_file: got {path}, which is no file; expected a PEM file of the authority")
        session.verify = str(path)
    if source.proxy:
        session.proxies = {"https": source.proxy}
    session.mount("https://", HTTPAdapter(pool_connections=POOL, pool_maxsize=POOL))
    return session


def _at(host: str, url: str) -> str:
    """The same path and query at another https://host[:port]."""
    there = urlsplit(host)
    return urlsplit(url)._replace(scheme=there.scheme, netloc=there.netloc).geturl()
