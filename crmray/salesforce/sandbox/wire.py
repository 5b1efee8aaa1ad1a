"""What goes over the wire: one call, its answer, Salesforce's error bodies, records as JSON.

Source: REST API Developer Guide ("Status Codes and Error Responses", "Query"), Bulk API 2.0 Developer Guide.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

from starlette.responses import Response

JSON_TYPE = "application/json;charset=UTF-8"
CSV_TYPE = "text/csv; charset=UTF-8"
GZIP_FROM_BYTES = 1024
"""smaller bodies are sent as they are"""
FIRST_VERSION, LAST_VERSION = 31, 68
SEASONS = ("Summer", "Winter", "Spring")


class ApiError(Exception):
    """An error as Salesforce tells it: HTTP status, errorCode, message, the fields concerned."""

    def __init__(self, status: int, code: str, message: str, fields: Sequence[str] | None = None):
        super().__init__(code)
        self.status, self.code, self.message, self.fields = status, code, message, fields

    @property
    def body(self) -> list[dict[str, Any]]:
        """The JSON array that clients get."""
        more = {} if self.fields is None else {"fields": list(self.fields)}
        return [{"message": self.message, "errorCode": self.code, **more}]


def not_found() -> ApiError:
    """404 for a resource that does not exist."""
    return ApiError(404, "NOT_FOUND", "The requested resource does not exist")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One request."""

    method: str
    """GET, POST, …"""
    path: str
    """without query, without a slash at its end"""
    path_params: Mapping[str, str]
    """what the route's pattern caught"""
    params: Mapping[str, str]
    """of the query string"""
    headers: Mapping[str, str]
    """names in lower case"""
    body: bytes
    """whole"""

    @property
    def version(self) -> str:
        """API version of the path, `64.0`."""
        return self.path_params["version"]

    @property
    def base(self) -> str:
        """Path below which this version's resources lie."""
        return f"/services/data/v{self.version}"

    @property
    def accepts_gzip(self) -> bool:
        """Whether the client takes compressed bodies."""
        return "gzip" in self.headers.get("accept-encoding", "")

    def json(self) -> Any:
        """The body's JSON; 400 JSON_PARSER_ERROR otherwise, and for half a surrogate pair in it."""
        try:
            value = json.loads(self.body)
            json.dumps(value, ensure_ascii=False).encode()
            return value
        except (ValueError, RecursionError):
            raise ApiError(400, "JSON_PARSER_ERROR", "The HTTP entity body is required, and must be JSON") from None

    def json_object(self) -> dict[str, Any]:
        """The body's JSON object; 400 otherwise."""
        value = self.json()
        if not isinstance(value, dict):
            raise ApiError(400, "JSON_PARSER_ERROR", f"Can not deserialize a JSON object from {type(value).__name__}")
        return value

    def integer(self, name: str, default: int, *, lowest: int, highest: int) -> int:
        """A number in the query string, kept within bounds as Salesforce does; 400 for text."""
        text = self.params.get(name, "")
        if not text:
            return default
        if not text.isdecimal():
            raise ApiError(400, "INVALID_QUERY_LOCATOR", f"invalid {name}: {text}")
        return min(max(int(text), lowest), highest)


def json_response(value: Any, status: int = 200, *, gzipped: bool = False) -> Response:
    """A JSON answer, compressed on request."""
    data = json.dumps(value, separators=(",", ":"), default=_plain).encode()
    headers = {"Content-Type": JSON_TYPE}
    if gzipped and len(data) >= GZIP_FROM_BYTES:
        data, headers["Content-Encoding"] = gzip.compress(data, 1), "gzip"
    return Response(data, status, headers)


def empty_response(status: int = 204) -> Response:
    """An answer without a body."""
    return Response(b"", status)


def _plain(value: Any) -> Any:
    """JSON form of what the store gives: `2026-01-31T08:00:00.000+0000`, `2026-01-31`."""
    if isinstance(value, datetime):
        return rest_time(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"got {type(value).__name__}, expected a value that JSON knows")


def rest_time(value: datetime) -> str:
    """A time as REST writes it."""
    return value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}+0000"


def versions() -> list[dict[str, str]]:
    """Body of /services/data: three releases a year, 31.0 was Summer '14."""
    listed = []
    for number in range(FIRST_VERSION, LAST_VERSION + 1):
        passed = number - FIRST_VERSION
        year = 14 + passed // 3 + (passed % 3 > 0)
        label = f"{SEASONS[passed % 3]} '{year}"
        listed.append({"label": label, "url": f"/services/data/v{number}.0", "version": f"{number}.0"})
    return listed
