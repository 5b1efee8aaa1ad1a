"""Bulk API 2.0 query jobs of a sandbox org.

A job reads a snapshot of the moment it was created and writes it to disk, so changes of rows do not alter its results.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from starlette.responses import Response

from crmray.salesforce.sandbox import soql
from crmray.salesforce.sandbox.faults import Faults
from crmray.salesforce.sandbox.jobs import DELIMITERS, LINE_ENDINGS, Job, Jobs, new_job_fields
from crmray.salesforce.sandbox.pages import Pages
from crmray.salesforce.sandbox.rest import Handler
from crmray.salesforce.sandbox.results import SoqlError, Stream
from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.tree import Call as Aggregate
from crmray.salesforce.sandbox.tree import Query
from crmray.salesforce.sandbox.wire import CSV_TYPE, ApiError, Call, empty_response, json_response, not_found

PAGE_ROWS = 50_000
"""of a page of results when the client does not say"""
MAX_PAGE_ROWS = 1_000_000
PARALLEL_PAGES = 5
"""pages that one answer of /resultPages lists"""


@dataclasses.dataclass(kw_only=True)
class QueryJob(Job):
    """A query and the pages of its result."""

    pages: Pages
    """the rows on disk"""


class BulkQuery:
    """The handlers, and the jobs."""

    def __init__(self, store: Store, faults: Faults, folder: Path, *, page_rows: int = PAGE_ROWS):
        self.store, self.faults, self.folder, self.page_rows = store, faults, folder, page_rows
        self.jobs: Jobs[QueryJob] = Jobs("query")

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, pattern, handler)."""
        job = r"/jobs/query/(?P<job>750\w{12}(?:\w{3})?)"
        return [
            ("POST", "/jobs/query", self.create),
            ("GET", "/jobs/query", lambda call: json_response(self.jobs.listed(call))),
            ("GET", job, self.read),
            ("PATCH", job, self.abort),
            ("DELETE", job, self.delete),
            ("GET", f"{job}/results", self.results),
            ("GET", f"{job}/resultPages", self.result_pages),
        ]

    def create(self, call: Call) -> Response:
        body = call.json_object()
        operation, query = body.get("operation"), body.get("query")
        if operation not in ("query", "queryAll"):
            raise ApiError(400, "INVALIDJOB", f"Unsupported operation for a query job: {operation}")
        if not isinstance(query, str) or not query.strip():
            raise ApiError(400, "INVALIDJOB", "A query string has to be specified")
        fields = new_job_fields(call, body, self.store.user_id)
        try:
            _check(soql.parse(query))
            stream = self.store.stream(query, all_rows=operation == "queryAll")
        except SoqlError as error:
            raise ApiError(400, error.code, error.message) from None
        id_ = self.jobs.new_id()
        pages = Pages(
            self.folder / id_,
            stream.columns,
            delimiter=DELIMITERS[fields["delimiter"]],
            line_ending=LINE_ENDINGS[fields["line_ending"]],
        )
        job = QueryJob(
            id=id_,
            operation=operation,
            object=stream.object,
            state="UploadComplete",
            pages=pages,
            **fields,
        )
        self.jobs.add(job)
        answer = json_response(job.info())
        self.jobs.start(job, partial(self._work, stream=stream))
        return answer

    def _work(self, job: QueryJob, stream: Stream) -> None:
        """Write the rows, then the pages that most clients ask for."""

        def advance(num_rows: int) -> bool:
            job.processed += num_rows
            return job.state != "Aborted"

        try:
            job.pages.write(stream, advance=advance)
        finally:
            stream.batches.close()
        for start in range(0, max(job.pages.num_rows, 1), self.page_rows):
            if job.state == "Aborted":
                return
            job.pages.page(start, self.page_rows)

    def read(self, call: Call) -> Response:
        more = {"jobType": "V2Query", "isPkChunkingSupported": True}
        return json_response({**self.jobs.get(call).detail(), **more})

    def abort(self, call: Call) -> Response:
        job = self.jobs.get(call)
        if call.json_object().get("state") != "Aborted":
            raise ApiError(400, "INVALIDJOBSTATE", "Only the state Aborted can be set on a query job")
        if not job.move("Aborted"):
            raise ApiError(400, "INVALIDJOBSTATE", f"Aborting already {job.state} Job not allowed")
        return json_response(job.info())

    def delete(self, call: Call) -> Response:
        job = self.jobs.get(call)
        self.jobs.remove(job)
        job.pages.remove()
        return empty_response()

    def results(self, call: Call) -> Response:
        job = self.jobs.get(call)
        job.check_version(call)
        if job.state in ("Failed", "Aborted"):
            raise ApiError(400, "INVALIDJOBSTATE", f"Job is {job.state}; it has no results")
        if job.state != "JobComplete":
            return empty_response()
        start = _row(call.params.get("locator", ""))
        if start and start >= job.pages.num_rows:
            raise ApiError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
        num_rows = call.integer("maxRecords", self.page_rows, lowest=1, highest=MAX_PAGE_ROWS)
        self.faults.before_page(job.object, bulk=True)
        stop = min(start + num_rows, job.pages.num_rows)
        headers = {
            "Content-Type": CSV_TYPE,
            "Sforce-NumberOfRecords": str(stop - start),
            "Sforce-Locator": _locator(stop) if stop < job.pages.num_rows else "null",
        }
        try:
            if call.accepts_gzip:
                return Response(job.pages.page(start, num_rows), headers={**headers, "Content-Encoding": "gzip"})
            return Response(job.pages.plain(start, num_rows), headers=headers)
        except FileNotFoundError:  # the job was deleted meanwhile
            raise not_found() from None

    def result_pages(self, call: Call) -> Response:
        """Up to five pages at a time, to be fetched side by side; from version 58.0 on."""
        job = self.jobs.get(call)
        job.check_version(call)
        if float(call.version) < 58:
            raise ApiError(404, "NOT_FOUND", "The requested resource does not exist")
        if job.state != "JobComplete":
            raise ApiError(400, "INVALIDJOBSTATE", f"Job is {job.state}; it has no result pages yet")
        first = _row(call.params.get("locator", ""))
        starts = list(range(first, max(job.pages.num_rows, 1), self.page_rows))
        base = f"{call.base}/jobs/query/{job.id}"
        urls = [f"{base}/results" + (f"?locator={_locator(start)}" if start else "") for start in starts]
        body: dict[str, Any] = {
            "resultPages": [{"resultUrl": url} for url in urls[:PARALLEL_PAGES]],
            "done": len(urls) <= PARALLEL_PAGES,
        }
        if len(starts) > PARALLEL_PAGES:
            body["nextRecordsUrl"] = f"{base}/resultPages?locator={_locator(starts[PARALLEL_PAGES])}"
        return json_response(body)


def _check(query: Query) -> None:
    """SoqlError for what REST queries may have and Bulk queries may not."""
    if query.group_by or any(isinstance(item.operand, Aggregate) for item in query.items):
        raise SoqlError("API_ERROR", "Aggregate Relationships not supported in Bulk V2 Query with CSV content type")
    if query.offset:
        raise SoqlError("API_ERROR", "OFFSET not supported in Bulk V2 Query")


def _locator(row: int) -> str:
    """Opaque text for a row number: base64 without padding, as Salesforce's looks."""
    return base64.urlsafe_b64encode(str(row).encode()).decode().rstrip("=")


def _row(locator: str) -> int:
    """Row number of a locator; 400 for text that is none."""
    try:
        row = int(base64.urlsafe_b64decode(locator + "=" * (-len(locator) % 4)).decode()) if locator else 0
    except (binascii.Error, ValueError):
        row = -1
    if row < 0:
        raise ApiError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
    return row
