"""Composite resources of a sandbox org: collections of up to 200 rows, and up to 25 calls in one.

Source: REST API Developer Guide, "sObject Collections", "Composite".
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from starlette.responses import Response

from crmray.salesforce.sandbox import attempts
from crmray.salesforce.sandbox.rest import Handler, Rest, row_body
from crmray.salesforce.sandbox.results import RowResult
from crmray.salesforce.sandbox.wire import ApiError, Call, json_response

MAX_ROWS = 200
MAX_ROWS_READ = 2000
MAX_CALLS = 25
REFERENCE = re.compile(r"@\{(\w+)\.([\w.\[\]]+)\}")


class Composite:
    """The handlers."""

    def __init__(self, rest: Rest, answer: Callable[[Call], Response]):
        self.rest, self._answer = rest, answer

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, pattern, handler)."""
        collection = r"/composite/sobjects/(?P<object>\w+)"
        return [
            ("POST", "/composite", self.composite),
            ("POST", "/composite/sobjects", self.insert),
            ("PATCH", "/composite/sobjects", self.update),
            ("DELETE", "/composite/sobjects", self.delete),
            ("GET", collection, self.read),
            ("POST", collection, self.read),
            ("PATCH", rf"{collection}/(?P<field>\w+)", self.upsert),
        ]

    # ------------------------------------------------------------------------------------------ collections

    def insert(self, call: Call) -> Response:
        return self._write("insert", call, _records(call))

    def update(self, call: Call) -> Response:
        return self._write("update", call, _records(call))

    def upsert(self, call: Call) -> Response:
        return self._write("upsert", call, _records(call), external_id=call.path_params["field"])

    def delete(self, call: Call) -> Response:
        ids = [id_ for id_ in call.params.get("ids", "").split(",") if id_]
        _check_size(len(ids))
        prefixes = {item["keyPrefix"]: item["name"] for item in self.rest.store.describe_global() if item["keyPrefix"]}
        unknown = [id_ for id_ in ids if id_[:3] not in prefixes]
        if unknown:
            raise ApiError(400, "MALFORMED_ID", f"malformed id {unknown[0]}")
        rows = [{"attributes": {"type": prefixes[id_[:3]]}, "Id": id_} for id_ in ids]
        return self._write("delete", call, rows)

    def _write(
        self,
        operation: str,
        call: Call,
        records: list[dict[str, Any]],
        *,
        external_id: str = "Id",
    ) -> Response:
        """Write rows object by object, in the order given."""
        all_or_none = call.params.get("allOrNone", "").lower() == "true"
        all_or_none = all_or_none or (bool(call.body) and call.json_object().get("allOrNone") is True)
        objects = [_object_of(record) for record in records]
        rows = [_fields_of(record) for record in records]
        done: list[RowResult] = []
        with self.rest.store.transaction() as transaction:
            for object_, group in itertools.groupby(zip(objects, rows, strict=True), key=lambda pair: pair[0]):
                part = [row for _, row in group]
                name = self.rest.describe(object_)["name"]
                store, faults = self.rest.store, self.rest.faults
                done += attempts.write(store, faults, operation, name, part, external_id=external_id)
            if all_or_none and not all(result.success for result in done):
                transaction.rollback()
                done = [_rolled_back(result) for result in done]
        return json_response([row_body(result, created=operation == "upsert") for result in done])

    def read(self, call: Call) -> Response:
        """Rows by id, null for one that is not there."""
        asked = call.json_object() if call.method == "POST" else {k: v.split(",") for k, v in call.params.items()}
        ids, fields = asked.get("ids"), asked.get("fields")
        if not ids or not fields:
            raise ApiError(400, "MISSING_ARGUMENT", "ids and fields must be specified")
        if not _are_texts(ids) or not _are_texts(fields):
            raise ApiError(400, "JSON_PARSER_ERROR", "ids and fields: arrays of texts expected")
        if len(ids) > MAX_ROWS_READ:
            raise ApiError(
                400, "EXCEEDED_ID_LIMIT", f"record limit reached. cannot read more than {MAX_ROWS_READ} records"
            )
        one = dataclasses.replace(call, method="GET", params={"fields": ",".join(fields)}, headers={}, body=b"")
        found: list[dict[str, Any] | None] = []
        for id_ in ids:
            try:
                found.append(self.rest.row(one, id_))
            except ApiError as error:
                if error.status != 404:
                    raise
                found.append(None)
        return json_response(found, gzipped=call.accepts_gzip)

    # ------------------------------------------------------------------------------------------ calls in one

    def composite(self, call: Call) -> Response:
        """Calls one after the other; `@{name.id}` in a later one stands for what an earlier one answered. All or none
        of the calls is all or none of their rows too."""
        body = call.json_object()
        requests = body.get("compositeRequest")
        if not isinstance(requests, list) or not 0 < len(requests) <= MAX_CALLS:
            raise ApiError(400, "INVALID_INPUT", f"compositeRequest: 1 to {MAX_CALLS} subrequests expected")
        if not all(isinstance(request, dict) for request in requests):
            raise ApiError(400, "JSON_PARSER_ERROR", "compositeRequest: an array of objects expected")
        if body.get("allOrNone") is True:
            with self.rest.store.transaction() as transaction:
                answers = self._run_all(requests, stop_at_error=True)
                if any(map(_has_failed, answers)):
                    transaction.rollback()
                    answers = [answer if _has_failed(answer) else _halted(answer) for answer in answers]
        else:
            answers = self._run_all(requests, stop_at_error=False)
        return json_response({"compositeResponse": answers}, gzipped=call.accepts_gzip)

    def _run_all(self, requests: list[dict[str, Any]], *, stop_at_error: bool) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        known: dict[str, Any] = {}
        is_halted = False
        for request in requests:
            name = str(request.get("referenceId", ""))
            if is_halted:
                answers.append(_halted({"referenceId": name}))
                continue
            status, known[name] = self._run(request, known, {"allOrNone": "true"} if stop_at_error else {})
            answers.append(_sub_answer(name, status, known[name]))
            is_halted = stop_at_error and _has_failed(answers[-1])
        return answers

    def _run(self, request: Mapping[str, Any], known: Mapping[str, Any], more: Mapping[str, str]) -> tuple[int, Any]:
        """Status and body of one subrequest; `more` goes into its query string."""
        try:
            url = urlsplit(_fill(str(request.get("url", "")), known))
            data = b"" if request.get("body") is None else json.dumps(_fill_all(request["body"], known)).encode()
            params = {**dict(parse_qsl(url.query, keep_blank_values=True)), **more}
            method = str(request.get("method", "GET"))
            path = unquote(url.path).rstrip("/")
            one = Call(method=method, path=path, path_params={}, params=params, headers={}, body=data)
            answer = self._answer(one)
        except ApiError as error:
            return error.status, error.body
        return answer.status_code, json.loads(bytes(answer.body)) if answer.body else None


def _sub_answer(name: str, status: int, body: Any) -> dict[str, Any]:
    return {"body": body, "httpHeaders": {}, "httpStatusCode": status, "referenceId": name}


def _has_failed(answer: Mapping[str, Any]) -> bool:
    """Whether a subrequest failed, or a row of its collection."""
    rows = answer["body"] if isinstance(answer["body"], list) else []
    return answer["httpStatusCode"] >= 400 or any(row is not None and row.get("success") is False for row in rows)


def _halted(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a subrequest that was undone, or never begun, because another one failed."""
    error = ApiError(
        400,
        "PROCESSING_HALTED",
        "The transaction was rolled back since another operation in the same transaction failed.",
    )
    return _sub_answer(answer["referenceId"], error.status, error.body)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _fill(text: str, known: Mapping[str, Any]) -> str:
    """Text with its references to earlier answers resolved; 400 for one that leads nowhere."""

    def value(match: re.Match[str]) -> str:
        found: Any = known.get(match[1])
        for step in re.findall(r"\w+", match[2]):
            try:
                found = found[int(step) if isinstance(found, list) else step]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ApiError(400, "PROCESSING_HALTED", f"Invalid reference specified: {match[0]}") from None
        return str(found)

    return REFERENCE.sub(value, text)


def _fill_all(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _fill_all(part, known) for name, part in value.items()}
    if isinstance(value, list):
        return [_fill_all(part, known) for part in value]
    return _fill(value, known) if isinstance(value, str) else value


def _records(call: Call) -> list[dict[str, Any]]:
    """The records of a collection; 400 for what is none."""
    records = call.json_object().get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ApiError(400, "JSON_PARSER_ERROR", "records: an array of objects expected")
    _check_size(len(records))
    return records


def _check_size(num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise ApiError(400, "EXCEEDED_ID_LIMIT", f"record limit reached. cannot submit more than {MAX_ROWS} records")
    if not num_rows:
        raise ApiError(400, "MISSING_ARGUMENT", "no records were specified")


def _object_of(record: Mapping[str, Any]) -> str:
    attributes = record.get("attributes")
    name = attributes.get("type") if isinstance(attributes, dict) else None
    if not name:
        raise ApiError(400, "INVALID_INPUT", "attributes.type must be specified for each record")
    return str(name)


def _fields_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's fields; its id under the name `Id`."""
    return {("Id" if name.lower() == "id" else name): value for name, value in record.items() if name != "attributes"}


def _rolled_back(result: RowResult) -> RowResult:
    """A row of a collection that was undone because another row failed."""
    if not result.success:
        return result
    message = "Record rolled back because not all records were valid and the request was using AllOrNone header"
    error = {"statusCode": "ALL_OR_NONE_OPERATION_ROLLED_BACK", "message": message, "fields": []}
    return RowResult(id=None, success=False, errors=[error])
