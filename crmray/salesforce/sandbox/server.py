"""The sandbox org's server: HTTPS on 127.0.0.1, with its own certificate authority.

with Sandbox(store, folder=Path("org")) as sandbox:
    sandbox.org_file(Path("org/org.yaml"))
    sandbox.faults.set(error_503_every=7)
"""

from __future__ import annotations

import dataclasses
import re
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import uvicorn
import yaml
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from crmray import log
from crmray.errors import ConfigError, SalesforceError
from crmray.salesforce.sandbox import bulk, limits, tls
from crmray.salesforce.sandbox.composite import Composite
from crmray.salesforce.sandbox.deploy import Deploys
from crmray.salesforce.sandbox.faults import Faults
from crmray.salesforce.sandbox.ingest import BulkIngest
from crmray.salesforce.sandbox.oauth import LIFETIME_S, OAuthError, Tokens
from crmray.salesforce.sandbox.rest import Rest
from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.wire import (
    FIRST_VERSION,
    LAST_VERSION,
    ApiError,
    Call,
    json_response,
    not_found,
    versions,
)

HOST = "127.0.0.1"
START_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 10.0
MAX_BODY_BYTES = 160_000_000
VERSION_PATH = re.compile(r"/services/data/v(?P<version>\d{2,3}\.0)(?P<rest>/.*)?")
DROP = "crmray.drop"
"""extension of an ASGI scope: closes the client's connection"""


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 whose connections the application can drop."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {DROP: self.transport.close}  # type: ignore[dict-item]


class Sandbox:
    """A running (after `start`) sandbox org over a store.

    `folder` keeps credentials and results of Bulk queries; without one, both last until `stop`. `port` 0 takes a free
    one. ConfigError for a port in use.
    """

    def __init__(
        self,
        store: Store,
        *,
        port: int = 0,
        host: str = HOST,
        folder: Path | None = None,
        daily_calls: int = limits.DAILY_CALLS,
        page_rows: int = bulk.PAGE_ROWS,
        token_lifetime_s: float = LIFETIME_S,
    ):
        self.store = store
        self._temporary = tempfile.TemporaryDirectory(prefix="crmray-sandbox-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or "").absolute()
        self.credentials = tls.prepare(self.folder)
        self._socket = listen(host, port)
        self.url = f"https://{host}:{self._socket.getsockname()[1]}"
        self.faults = Faults(store)
        self.calls = limits.DailyCalls(self.faults, daily=daily_calls)
        self.tokens = Tokens(self.credentials, store, self.url, lifetime_s=token_lifetime_s)
        self._jobs_folder = tempfile.TemporaryDirectory(prefix="jobs-", dir=self.folder)
        jobs = Path(self._jobs_folder.name)
        rest = Rest(store, self.faults, self.calls)
        self._bulk_query = bulk.BulkQuery(store, self.faults, jobs, page_rows=page_rows)
        self._ingest = BulkIngest(store, self.faults, jobs)
        parts = (Composite(rest, self._route), self._bulk_query, self._ingest, Deploys(store), rest)
        self._routes = [
            (method, re.compile(pattern), handler) for part in parts for method, pattern, handler in part.routes()
        ]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------ for clients

    @property
    def ca_file(self) -> Path:
        """Certificate authority that a client has to trust, PEM."""
        return self.credentials.ca_file

    @property
    def client_id(self) -> str:
        """Consumer key of the connected app."""
        return self.credentials.client_id

    @property
    def client_secret(self) -> str:
        """Consumer secret of the connected app."""
        return self.credentials.client_secret

    @property
    def username(self) -> str:
        """The integration user."""
        return self.credentials.username

    @property
    def password(self) -> str:
        """Of that user."""
        return self.credentials.password

    @property
    def private_key_file(self) -> Path:
        """RSA key for the JWT bearer flow, PEM."""
        return self.credentials.private_key_file

    def org_file(
        self,
        path: Path,
        *,
        flow: str = "jwt",
        storage: str = "lake",
        source: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Path:
        """Write an org file that pulls from this sandbox. `source` adds to the source, `more` to the top level."""
        secret = {name: {"file": str(self.folder / name)} for name in ("client_id", "client_secret", "password")}
        key = {"file": str(self.private_key_file)}
        login: dict[str, dict[str, Any]] = {
            "jwt": {"client_id": secret["client_id"], "username": self.username, "private_key": key},
            "client_credentials": {name: secret[name] for name in ("client_id", "client_secret")},
            "password": {**secret, "username": self.username},
        }
        whole = {"flow": flow, "url": self.url, **login[flow]}
        content = {
            "name": "sandbox",
            "storage": storage,
            "source": {"kind": "salesforce", "login": whole, "ca_file": str(self.ca_file), **(source or {})},
            **more,
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path

    # ------------------------------------------------------------------------------------------ life

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve in a thread; returns once calls are answered."""
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error",
            interface="asgi3",
            access_log=False,
            server_header=False,
            ssl_certfile=str(self.folder / "server.pem"),
            ssl_keyfile=str(self.folder / "server.key"),
            timeout_keep_alive=60,
        )
        self._server = uvicorn.Server(config)
        sockets = [self._socket]
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": sockets}, daemon=True, name="sandbox-org"
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise SalesforceError(f"sandbox {self.url}: did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the server and its jobs. The store stays open."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True  # idle clients would be waited for
            self._thread.join(STOP_TIMEOUT_S)
        self._socket.close()
        self._bulk_query.jobs.close()
        self._ingest.jobs.close()
        self._jobs_folder.cleanup()
        if self._temporary is not None:
            self._temporary.cleanup()

    # ------------------------------------------------------------------------------------------ one call

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: read the body, answer in a thread, send; or drop the connection where the faults say so."""
        request = Request(scope, receive)
        drop = scope["extensions"][DROP]
        try:
            body = await _body(request)
        except ApiError as error:
            await json_response(error.body, error.status)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        call = Call(
            method=request.method,
            path=scope["path"].rstrip("/"),
            path_params={},
            params=dict(request.query_params),
            headers=dict(request.headers),
            body=body,
        )
        response, dropped = await run_in_threadpool(self._answer, call)
        if dropped and (dropped != "body" or not response.body):
            drop()
            await receive()  # http.disconnect: uvicorn then expects no answer
        elif dropped:
            await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
            half = bytes(response.body)[: len(response.body) // 2]
            await send({"type": "http.response.body", "body": half, "more_body": True})
            drop()
            await receive()
        else:
            await response(scope, receive, send)

    def _answer(self, call: Call) -> tuple[Response, str]:
        """The response, and the moment at which the connection drops, if it does."""
        if call.path == "/services/oauth2/token" and call.method == "POST":
            return self._token(call), ""
        if call.path == "/services/data" and call.method == "GET":
            return json_response(versions(), gzipped=call.accepts_gzip), ""
        if call.path == "/sandbox/faults":
            return self._faults(call), ""
        if not call.path.startswith("/services/data/"):
            return json_response(not_found().body, 404), ""
        plan = self.faults.begin_call()
        if plan.drop == "before":
            return Response(), plan.drop
        try:
            if plan.error is not None:
                raise plan.error
            expire = self.faults.settings.expire_tokens_after_calls
            self.tokens.check(call.headers.get("authorization", ""), expire_after_calls=expire)
            self.calls.count()
            response = self._route(call)
        except ApiError as error:
            response = json_response(error.body, error.status)
        except (duckdb.Error, pa.ArrowException) as error:
            log.warn("sandbox.call_failed", method=call.method, error=type(error).__name__)
            response = json_response(ApiError(500, "UNKNOWN_EXCEPTION", "An unexpected error occurred.").body, 500)
        response.headers["Sforce-Limit-Info"] = self.calls.header
        return response, plan.drop

    def _route(self, call: Call) -> Response:
        """The answer of the resource that a call names; ApiError."""
        match = VERSION_PATH.fullmatch(call.path)
        if match is None or not FIRST_VERSION <= float(match["version"]) <= LAST_VERSION:
            raise not_found()
        allowed = False
        for method, pattern, handler in self._routes:
            found = pattern.fullmatch(match["rest"] or "")
            if found is None:
                continue
            allowed = True
            if method == call.method:
                caught = {"version": match["version"], **found.groupdict()}
                return handler(dataclasses.replace(call, path_params=caught))
        if allowed:
            message = f"HTTP Method '{call.method}' not allowed."
            raise ApiError(405, "METHOD_NOT_ALLOWED", message)
        raise not_found()

    def _token(self, call: Call) -> Response:
        try:
            return json_response(self.tokens.grant(call.body, call.headers))
        except OAuthError as error:
            return json_response(error.body, error.status)

    def _faults(self, call: Call) -> Response:
        """GET tells the faults and how often they struck; POST changes them; DELETE ends them."""
        try:
            self.tokens.check_basic(call.headers.get("authorization", ""))
            if call.method == "POST":
                self.faults.set(**call.json_object())
            elif call.method == "DELETE":
                self.faults.clear()
        except ApiError as error:
            return json_response(error.body, error.status)
        except ConfigError as error:
            return json_response([{"message": str(error), "errorCode": "INVALID_INPUT"}], 400)
        return json_response({"settings": dataclasses.asdict(self.faults.settings), "struck": self.faults.struck})


async def _body(request: Request) -> bytes:
    """All of a request's body; ApiError 413 for one that is too long, whether or not it says so beforehand."""
    received = bytearray()
    too_long = int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES
    if not too_long:
        async for part in request.stream():
            received += part
            too_long = len(received) > MAX_BODY_BYTES
            if too_long:
                break
    if too_long:
        raise ApiError(413, "EXCEEDED_MAX_SIZE_REQUEST", "Maximum size of request reached.")
    return bytes(received)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ConfigError for a port in use."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise ConfigError(f"port {port}: got {error.strerror}, expected a free port; take another, or 0") from None
