"""REST resources of a sandbox org: versions, limits, describe, query, sObject rows, composite collections.

Source: REST API Developer Guide, "Reference". A handler takes a Call and gives a Response, or raises ApiError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from starlette.responses import Response

from crmray.salesforce.sandbox import attempts
from crmray.salesforce.sandbox.faults import Faults
from crmray.salesforce.sandbox.limits import DailyCalls
from crmray.salesforce.sandbox.records import Cursors, to_records
from crmray.salesforce.sandbox.results import NoSuchObject, Result, RowResult, SoqlError
from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.wire import (
    LAST_VERSION,
    ApiError,
    Call,
    empty_response,
    json_response,
    not_found,
    rest_time,
)

MAX_PAGE_ROWS, MIN_PAGE_ROWS = 2000, 200
LATEST = f"{LAST_VERSION}.0"
NOT_FOUND_CODES = ("ENTITY_IS_DELETED", "INVALID_CROSS_REFERENCE_KEY", "NOT_FOUND")
RESOURCES = ("sobjects", "query", "queryAll", "limits", "composite", "jobs")
FIELD_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)

Handler = Callable[[Call], Response]


class Rest:
    """The handlers, and what they share."""

    def __init__(self, store: Store, faults: Faults, calls: DailyCalls):
        self.store, self.faults, self.calls = store, faults, calls
        self.cursors = Cursors(self.describe)

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, pattern of the path below /services/data/vXX.0, handler)."""
        row = r"/sobjects/(?P<object>\w+)/(?P<id>\w{15}|\w{18})"
        return [
            ("GET", "", self.resources),
            ("GET", "/limits", self.limits),
            ("GET", "/query", self.query),
            ("GET", "/queryAll", self.query),
            ("GET", r"/query(?:All)?/(?P<locator>[\w-]+)", self.query_more),
            ("GET", "/sobjects", self.objects),
            ("GET", r"/sobjects/(?P<object>\w+)", self.object),
            ("POST", r"/sobjects/(?P<object>\w+)", self.create),
            ("GET", r"/sobjects/(?P<object>\w+)/describe", self.object_describe),
            ("GET", r"/sobjects/(?P<object>\w+)/deleted", self.deleted),
            ("GET", r"/sobjects/(?P<object>\w+)/updated", self.updated),
            ("GET", row, self.read),
            ("PATCH", row, self.update),
            ("DELETE", row, self.delete),
            ("GET", r"/sobjects/(?P<object>\w+)/(?P<field>\w+)/(?P<value>.+)", self.read_by_field),
            ("PATCH", r"/sobjects/(?P<object>\w+)/(?P<field>\w+)/(?P<value>.+)", self.upsert),
            ("DELETE", r"/sobjects/(?P<object>\w+)/(?P<field>\w+)/(?P<value>.+)", self.delete_by_field),
        ]

    def describe(self, object_: str, version: str = LATEST) -> dict[str, Any]:
        """Describe of an object; 404 for none."""
        try:
            return self.store.describe(object_, version=version)
        except NoSuchObject:
            raise not_found() from None

    def run(self, soql: str, *, all_rows: bool = False) -> Result:
        """All rows of a query; 400 for one that Salesforce refuses."""
        try:
            return self.store.query(soql, all_rows=all_rows)
        except SoqlError as error:
            raise ApiError(400, error.code, error.message) from None

    # ------------------------------------------------------------------------------------------ the org

    def resources(self, call: Call) -> Response:
        return json_response({name: f"{call.base}/{name}" for name in RESOURCES})

    def limits(self, call: Call) -> Response:
        return json_response(self.calls.limits())

    def objects(self, call: Call) -> Response:
        listed = self.store.describe_global(version=call.version)
        return json_response({"encoding": "UTF-8", "maxBatchSize": 200, "sobjects": listed}, gzipped=call.accepts_gzip)

    def object(self, call: Call) -> Response:
        name = self.describe(call.path_params["object"])["name"]
        listed = self.store.describe_global(version=call.version)
        described = next(item for item in listed if item["name"] == name)
        return json_response({"objectDescribe": described, "recentItems": []})

    def object_describe(self, call: Call) -> Response:
        described = self.describe(call.path_params["object"], call.version)
        return json_response(described, gzipped=call.accepts_gzip)

    # ------------------------------------------------------------------------------------------ query

    def query(self, call: Call) -> Response:
        soql = call.params.get("q", "")
        if not soql:
            raise ApiError(400, "MALFORMED_QUERY", "A query string has to be specified")
        result = self.run(soql, all_rows=call.path.endswith("/queryAll"))
        self.faults.before_page(result.object, bulk=False)
        return json_response(self.cursors.first(call, result, _page_rows(call)), gzipped=call.accepts_gzip)

    def query_more(self, call: Call) -> Response:
        object_, page = self.cursors.next(call, call.path_params["locator"], _page_rows(call))
        self.faults.before_page(object_, bulk=False)
        return json_response(page, gzipped=call.accepts_gzip)

    # ------------------------------------------------------------------------------------------ one row

    def read(self, call: Call) -> Response:
        return json_response(self.row(call, call.path_params["id"]), gzipped=call.accepts_gzip)

    def read_by_field(self, call: Call) -> Response:
        return json_response(self.row(call, self._id_of(call)), gzipped=call.accepts_gzip)

    def row(self, call: Call, id_: str) -> dict[str, Any]:
        """A row with the fields of `?fields=`, or all of them."""
        described = self.describe(call.path_params["object"])
        names = [name.strip() for name in call.params.get("fields", "").split(",") if name.strip()]
        names = names or [field["name"] for field in described["fields"]]
        asked = {name.lower(): name for name in ["Id", *names]}
        wrong = next((name for name in names if not FIELD_PATH.fullmatch(name)), None)
        if wrong is not None:
            raise ApiError(400, "INVALID_FIELD", f"No such column '{wrong}' on sobject of type {described['name']}")
        where = f"FROM {described['name']} WHERE Id = {_literal(id_, 'id')}"
        result = self.run(f"SELECT {', '.join(asked.values())} {where}", all_rows=True)
        if result.table.num_rows == 0:
            raise not_found()
        if self.run(f"SELECT Id {where}").table.num_rows == 0:
            raise ApiError(404, "ENTITY_IS_DELETED", "entity is deleted", [])
        return to_records(result, 0, 1, call.base, self.describe)[0]

    def create(self, call: Call) -> Response:
        done = self._write("insert", call, call.json_object())
        return json_response({"id": done.id, "success": True, "errors": []}, 201)

    def update(self, call: Call) -> Response:
        self._write("update", call, {**call.json_object(), "Id": call.path_params["id"]})
        return empty_response()

    def delete(self, call: Call) -> Response:
        self._write("delete", call, {"Id": call.path_params["id"]})
        return empty_response()

    def delete_by_field(self, call: Call) -> Response:
        self._write("delete", call, {"Id": self._id_of(call)})
        return empty_response()

    def upsert(self, call: Call) -> Response:
        """201 for a new row; 200 for one that was there, from version 46.0 on, 204 before."""
        field, value = call.path_params["field"], call.path_params["value"]
        done = self._write("upsert", call, {**call.json_object(), field: value}, external_id=field)
        if not done.created and float(call.version) < 46:
            return empty_response()
        body: dict[str, Any] = {"id": done.id, "success": True, "errors": [], "created": done.created}
        return json_response(body, 201 if done.created else 200)

    def _write(self, operation: str, call: Call, row: Mapping[str, Any], *, external_id: str = "Id") -> RowResult:
        """Write one row; ApiError with the row's own errors."""
        name = self.describe(call.path_params["object"])["name"]
        row = {field: value for field, value in row.items() if field != "attributes"}
        (done,) = attempts.write(self.store, self.faults, operation, name, [row], external_id=external_id)
        if not done.success:
            raise _row_error(done)
        return done

    def _id_of(self, call: Call) -> str:
        """Id of the row with a value in an external id field; 404 for none, 300 for several."""
        described, field = self.describe(call.path_params["object"]), call.path_params["field"]
        known = {item["name"].lower(): item for item in described["fields"] if item["externalId"] or item["idLookup"]}
        if field.lower() not in known:
            message = f"Provided external ID field does not exist or is not accessible: {field}"
            raise ApiError(404, "NOT_FOUND", message)
        literal = _literal(call.path_params["value"], known[field.lower()]["type"])
        soql = f"SELECT Id FROM {described['name']} WHERE {field} = {literal} LIMIT 2"
        found = self.run(soql).table["Id"].to_pylist()
        if not found:
            raise not_found()
        if len(found) > 1:
            raise ApiError(300, "DUPLICATE_VALUE", "more than one record found for external id field")
        return found[0]

    # ------------------------------------------------------------------------------------------ replication

    def deleted(self, call: Call) -> Response:
        rows, until = self._changed(call, "IsDeleted = true AND ")
        listed = [{"id": id_, "deletedDate": rest_time(at)} for id_, at in rows]
        earliest = rest_time(until - timedelta(days=15))
        body: dict[str, Any] = {
            "deletedRecords": listed,
            "earliestDateAvailable": earliest,
            "latestDateCovered": rest_time(until),
        }
        return json_response(body, gzipped=call.accepts_gzip)

    def updated(self, call: Call) -> Response:
        rows, until = self._changed(call, "IsDeleted = false AND ")
        body: dict[str, Any] = {"ids": [id_ for id_, _ in rows], "latestDateCovered": rest_time(until)}
        return json_response(body, gzipped=call.accepts_gzip)

    def _changed(self, call: Call, which: str) -> tuple[list[tuple[str, datetime]], datetime]:
        """(id, modstamp) of rows changed between `start` and `end`, and the end."""
        described = self.describe(call.path_params["object"])
        fields = {field["name"] for field in described["fields"]}
        changed = "SystemModstamp" if "SystemModstamp" in fields else "CreatedDate"  # of histories
        start, end = _time(call, "start"), _time(call, "end")
        if start >= end:
            raise ApiError(400, "INVALID_REPLICATION_DATE", "startDate cannot be after or the same as endDate")
        between = f"{changed} >= {start:%Y-%m-%dT%H:%M:%SZ} AND {changed} < {end:%Y-%m-%dT%H:%M:%SZ}"
        deletable = which if "IsDeleted" in fields else ""
        soql = f"SELECT Id, {changed} FROM {described['name']} WHERE {deletable}{between}"
        table = self.run(soql, all_rows=True).table
        pairs = zip(table["Id"].to_pylist(), table[changed].to_pylist(), strict=True)
        return list(pairs), min(end, datetime.now(timezone.utc))


def _row_error(done: RowResult) -> ApiError:
    """A row that was not written, as the answer to a call for one row."""
    first = done.errors[0]
    status = 404 if first["statusCode"] in NOT_FOUND_CODES else 400
    return ApiError(status, first["statusCode"], first["message"], first["fields"])


def _page_rows(call: Call) -> int:
    """Rows of one page: the header Sforce-Query-Options may ask for less than 2000."""
    for part in call.headers.get("sforce-query-options", "").split(","):
        name, _, value = part.strip().partition("=")
        if name.strip() == "batchSize" and value.strip().isdigit():
            return min(max(int(value), MIN_PAGE_ROWS), MAX_PAGE_ROWS)
    return MAX_PAGE_ROWS


def _literal(value: str, type_: str) -> str:
    """A value as SOQL writes it."""
    if type_ in ("int", "double", "currency", "percent"):
        return value
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted}'"


def _time(call: Call, name: str) -> datetime:
    """A time in the query string, its + perhaps read as a space."""
    try:
        time = datetime.fromisoformat(call.params.get(name, "").replace(" ", "+"))
    except ValueError:
        raise ApiError(400, "INVALID_REPLICATION_DATE", f"{name}: invalid or missing date") from None
    return time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)


def row_body(done: RowResult, *, created: bool = False) -> dict[str, Any]:
    """A row's outcome in the answer to a composite call."""
    body: dict[str, Any] = {"id": done.id} if done.success and done.id else {}
    body |= {"success": done.success, "errors": list[Any](done.errors)}
    return {**body, "created": done.created} if created and done.success else body
