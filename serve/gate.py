"""The gate before every application: bearer key, body limit, admission, time limit, JSON errors, figures.

A pure ASGI middleware. Serve's own limits (plain-text 408 and 503) are set above these, so a client never meets them.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crmray import log
from crmray.keys import KeyFile
from serve.errors import Refused
from serve.options import RootOptions

_DRAINED_BYTES = 16 << 20
"""of a body that is too large, so much is read and dropped before the answer: a client that is still sending would
otherwise see a closed connection instead of the 413"""


class Gate:
    """Lets a request through to `app` or answers it."""

    def __init__(
        self, app: ASGIApp, *, options: RootOptions, keys: KeyFile | None, open_paths: frozenset[str] = frozenset(),
        observe: Callable[[int, float], None] | None = None,
    ):  # fmt: skip
        self.app, self.options, self.keys, self.open_paths = app, options, keys, open_paths
        self.observe = observe or (lambda status, seconds: None)
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, started, status = _with_root(scope), time.perf_counter(), 499  # 499: the client went away

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(self.options.timeout_s):
                await self._admit(scope, receive, counted)
        except Refused as refused:
            await respond(counted, refused)
        except ClientDisconnect:
            return
        except TimeoutError:
            if status == 499:
                message = f"no answer within {self.options.timeout_s:g} s; try again, or with fewer ids"
                await respond(counted, Refused(504, "timeout", message))
        except Exception as error:  # noqa: BLE001  the border: a client gets JSON whatever we did wrong
            # Where, but not what: the message may hold what the client sent, and the path of a GET holds the id.
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
            log.warn("serve.internal_error", kind=type(error).__name__, where=where, route=scope.get("root_path", ""))
            if status == 499:
                await respond(counted, Refused(500, "internal", "the server made a mistake; it is in its log"))
        finally:
            self.observe(status, time.perf_counter() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.keys is not None and scope["path"][len(scope.get("root_path", "")) :] not in self.open_paths:
            self._authorize(headers.get(b"authorization", b""))
        body = await self._read(headers, receive)
        if self.in_flight >= self.options.max_in_flight:
            message = f"{self.in_flight} requests are in work, which is the most at once; try again"
            raise Refused(429, "overloaded", message, headers={"Retry-After": "1"})
        self.in_flight += 1
        try:
            await self.app(scope, _replay(body, receive), send)
        finally:
            self.in_flight -= 1

    def _authorize(self, header: bytes) -> None:
        kind, _, key = header.decode("latin-1").partition(" ")
        assert self.keys is not None
        if kind.lower() != "bearer" or self.keys.check(key.strip()) is None:
            got = "no bearer key" if not header else "an unknown key"
            message = (
                f"got {got}, expected `Authorization: Bearer <key>` with a key made by `crmray keys add`, "
                f"which endpoints know {self.options.poll_s:g} s later"
            )
            raise Refused(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body; 413 when it is larger than the limit, whatever its Content-Length claims."""
        limit, parts, size = self.options.max_body_bytes, [], 0
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > _DRAINED_BYTES:
            raise self._too_large()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            size += len(message.get("body", b""))
            if size <= limit:
                parts.append(message.get("body", b""))
            if size > _DRAINED_BYTES or not message.get("more_body", False):
                break
        if size > limit:
            raise self._too_large()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> Refused:
        return Refused(
            413, "body_too_large", f"expected a body of at most {self.options.max_body_bytes} bytes; send fewer"
        )


def _with_root(scope: Scope) -> Scope:
    """Let /v1/churn and /v1/churn/ both be the root of an application that is mounted at /v1/churn."""
    root = scope.get("root_path", "")
    if scope["path"].rstrip("/") == root.rstrip("/"):
        return {**scope, "path": f"{root.rstrip('/')}/"}
    return scope


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it (a disconnect)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def respond(send: Send, refused: Refused) -> None:
    """Send an error answer."""
    body = refused.body()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
