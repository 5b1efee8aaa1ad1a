"""Bulk API 2.0: query jobs and their pages, ingest jobs and their results. Source: Salesforce Bulk API 2.0 Guide.

Creating a job twice does no harm, so it is repeated when its answer is lost: a query job only reads, and an ingest job
does nothing before it is closed. What was lost is an idle job that Salesforce removes after seven days.
"""

from __future__ import annotations

import csv
import io
import random
import time
from collections.abc import Container
from typing import Any, Literal, cast
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.csv as pacsv
import requests
import urllib3
from isal import isal_zlib

from crmray.errors import SalesforceError
from crmray.salesforce import replies
from crmray.salesforce.client import Client

MAX_UPLOAD_BYTES = 100_000_000
"""of one ingest job: 150 MB after base64, which Salesforce applies"""
FIRST_POLL_S = 0.1
LONGEST_POLL_S = 5.0
PATIENCE_S = 3600.0
"""with a job that does not end"""
ENDED = ("JobComplete", "Failed", "Aborted")
TRIES = 5
"""of one page whose connection breaks, or of a job that the org loses"""
GZIP_WBITS = 31
"""zlib's word for: a gzip header and trailer"""
UNZIP_BYTES = 256 << 10
"""compressed bytes taken from the connection at once"""
PAGES_VERSION = 58.0
"""first API version with resultPages"""
_BadGzipError = cast(type[Exception], isal_zlib.error)  # which isal's stub calls an instance

JobKind = Literal["query", "ingest"]


class PageBrokenError(SalesforceError):
    """The connection went while a page was read; the page can be read again from its start."""


# -- query -------------------------------------------------------------------------------------------------------------


def start_query(client: Client, soql: str, *, all_rows: bool = False) -> str:
    """Create a query job; its id. all_rows: deleted rows too (queryAll)."""
    body = {
        "operation": "queryAll" if all_rows else "query",
        "query": soql,
        "columnDelimiter": "COMMA",
        "lineEnding": "LF",
    }
    return client.json("POST", "jobs/query", json=body, repeat=True)["id"]


def page_urls(client: Client, job_id: str, page_rows: int) -> tuple[list[str], bool]:
    """Addresses of the result pages of a completed query job, and whether these are all.

    All of them where the org has resultPages: they can be fetched in parallel and in any order, and stay the same while
    the job lives (seven days). Else the first one: each page then tells `next_url`.
    """
    if float(client.version) < PAGES_VERSION:
        return [_first_page(client, job_id, page_rows)], False
    urls: list[str] = []
    path: str | None = f"jobs/query/{job_id}/resultPages?maxRecords={page_rows}"
    while path:
        response = client.request("GET", path, ok=(200, 404))
        if response.status_code == 404 and not urls:
            return [_first_page(client, job_id, page_rows)], False
        body = response.json()
        urls += [entry["resultUrl"] for entry in body["resultPages"]]
        # Salesforce's table of fields and its example name it differently.
        path = None if body.get("done", True) else body.get("nextRecordsUrl") or body.get("nextRecordUrl")
    return urls, True


def _first_page(client: Client, job_id: str, page_rows: int) -> str:
    return f"/services/data/v{client.version}/jobs/query/{job_id}/results?maxRecords={page_rows}"


class Page(io.RawIOBase):
    """A result page as a binary stream of CSV, decompressed, read as it comes. Close it, or use it in `with`.

    PageBrokenError when the connection goes before the end.
    """

    def __init__(self, response: requests.Response, next_url: str | None):
        super().__init__()
        self._response = response
        self._raw = response.raw
        # ISA-L takes half the time of zlib, which urllib3 would use: a quarter of what a page costs otherwise.
        zipped = response.headers.get("Content-Encoding", "") == "gzip"
        self._unzip = isal_zlib.decompressobj(GZIP_WBITS) if zipped else None
        rows = response.headers.get("Sforce-NumberOfRecords", "")
        self.rows = int(rows) if rows.isdecimal() else None
        """rows promised; None where a proxy dropped the header"""
        self.next_url = next_url
        """address of the page after it; None for the last"""

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Some bytes, up to `size` of them; b"" at the end."""
        most = None if size is None or size < 0 else size
        try:
            if self._unzip is None:
                return self._raw.read(most, decode_content=True)
            return self._unzipped(self._unzip, most)
        except (urllib3.exceptions.HTTPError, OSError, _BadGzipError) as error:
            raise PageBrokenError(f"a page of Bulk results: got {type(error).__name__} before its end") from None

    def _unzipped(self, unzip: Any, most: int | None) -> bytes:
        """The same of a compressed page. _BadGzipError for bytes that are not gzip, or end before its end."""
        if most is None:
            return b"".join(iter(lambda: self._unzipped(unzip, UNZIP_BYTES), b""))
        found = b""
        while not found and not unzip.eof:
            block = unzip.unconsumed_tail or self._raw.read(UNZIP_BYTES, decode_content=False)
            if not block:
                raise _BadGzipError("the stream ends early")
            found = unzip.decompress(block, most)
        return found

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Give the connection back."""
        if not self.closed:
            self._response.close()
        super().close()


def open_page(client: Client, url: str) -> Page:
    """Open one result page; columns come quoted, in the order of the query, with a header line."""
    response = client.request("GET", url, headers={"Accept": "text/csv"}, stream=True, ok=(200,))
    locator = response.headers.get("Sforce-Locator", "null")
    if locator in ("", "null"):
        return Page(response, None)
    path, _, query = url.partition("?")
    kept = [part for part in query.split("&") if part.startswith("maxRecords=")]
    return Page(response, f"{path}?{'&'.join([*kept, urlencode({'locator': locator})])}")


def read_all(client: Client, soql: str, *, page_rows: int = 50_000) -> pa.Table:
    """All rows of a query as text columns, for what fits into memory; a page that breaks is read again."""
    job_id = start_query(client, soql)
    wait(client, "query", job_id)
    urls, is_all = page_urls(client, job_id, page_rows)
    tables = []
    while urls:
        table, next_url = _read_page(client, urls.pop(0))
        tables.append(table)
        if not is_all and next_url:
            urls.append(next_url)
    delete_query(client, job_id)
    return pa.concat_tables(tables)


def _read_page(client: Client, url: str) -> tuple[pa.Table, str | None]:
    for left in reversed(range(TRIES)):
        with open_page(client, url) as page:
            try:
                table = read_csv(page.read())
            except PageBrokenError:
                if not left:
                    raise
                continue
        if page.rows not in (None, table.num_rows):
            raise SalesforceError(f"a page of Bulk results: got {table.num_rows} rows, expected {page.rows}; try again")
        return table, page.next_url
    raise AssertionError("unreachable")


def delete_query(client: Client, job_id: str) -> None:
    """Remove an ended query job and its results; one that is gone already is fine."""
    client.request("DELETE", f"jobs/query/{job_id}", ok=(204, 200, 404))


# -- ingest ------------------------------------------------------------------------------------------------------------


def create_ingest(client: Client, name: str, operation: str, *, external_id: str = "") -> str:
    """Create an ingest job for an object; its id. operation: insert, update, upsert (by external_id) or delete."""
    body = {
        "object": name,
        "operation": operation,
        "contentType": "CSV",
        "columnDelimiter": "COMMA",
        "lineEnding": "LF",
    }
    if external_id:
        body["externalIdFieldName"] = external_id
    return client.json("POST", "jobs/ingest", json=body, repeat=True)["id"]


def upload(client: Client, job_id: str, rows: bytes) -> None:
    """Give an open ingest job its CSV, once, and close it, which sets it to work.

    When the answer to the closing is lost, the job's state tells whether it was done. An upload whose answer was lost
    and that is refused when repeated raises SalesforceError: abort the job and make another; nothing was processed.
    """
    if len(rows) > MAX_UPLOAD_BYTES:
        raise SalesforceError(f"Bulk upload: got {len(rows)} bytes, expected at most {MAX_UPLOAD_BYTES}; send less")
    headers = {"Content-Type": "text/csv; charset=UTF-8"}
    client.request("PUT", f"jobs/ingest/{job_id}/batches", data=rows, headers=headers)
    try:
        client.request("PATCH", f"jobs/ingest/{job_id}", json={"state": "UploadComplete"})
    except SalesforceError:
        if status(client, "ingest", job_id)["state"] == "Open":
            raise


def abort(client: Client, job_id: str) -> None:
    """Stop an ingest job; one that has ended or is gone stays as it is."""
    response = client.request("PATCH", f"jobs/ingest/{job_id}", json={"state": "Aborted"}, ok=(200, 400, 404, 409))
    job = None if response.status_code == 200 else known(client, "ingest", job_id)
    if job is not None and job["state"] not in ENDED:
        raise SalesforceError(f"Bulk ingest job: got state {job['state']} after Aborted was asked for; try again")


def results(client: Client, job_id: str) -> dict[str, pa.Table]:
    """Rows of an ended ingest job: "successful" (sf__Id, sf__Created, …), "failed" (sf__Id, sf__Error, …) and
    "unprocessed".

    All columns are text, null where empty; those after sf__… are the uploaded ones.
    """
    kinds = {"successful": "successfulResults", "failed": "failedResults", "unprocessed": "unprocessedrecords"}
    return {kind: _table(client, f"jobs/ingest/{job_id}/{path}") for kind, path in kinds.items()}


def _table(client: Client, path: str) -> pa.Table:
    return read_csv(client.request("GET", path, headers={"Accept": "text/csv"}).content)


def read_csv(content: bytes) -> pa.Table:
    """A CSV of Salesforce, with its header line, as text columns; an empty value is null."""
    if not content.strip():
        return pa.table({})
    names = next(csv.reader(io.StringIO(content[: content.find(b"\n")].decode("utf-8-sig"))))
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        null_values=[""],
    )
    try:
        return pacsv.read_csv(
            io.BytesIO(content), parse_options=pacsv.ParseOptions(newlines_in_values=True), convert_options=convert
        )
    except pa.ArrowInvalid as error:  # its message holds the line
        raise SalesforceError(f"CSV of Salesforce: got {type(error).__name__}, expected rows of equal length") from None


# -- any job -----------------------------------------------------------------------------------------------------------


def status(client: Client, kind: JobKind, job_id: str) -> dict[str, Any]:
    """The job as Salesforce shows it: state, numberRecordsProcessed, …"""
    return client.get(f"jobs/{kind}/{job_id}")


def known(client: Client, kind: JobKind, job_id: str) -> dict[str, Any] | None:
    """The same; None where it is gone, as jobs are after seven days."""
    response = client.request("GET", f"jobs/{kind}/{job_id}", ok=(200, 404))
    return response.json() if response.status_code == 200 else None


def wait(
    client: Client,
    kind: JobKind,
    job_id: str,
    *,
    accept: Container[str] = ("JobComplete",),
) -> dict[str, Any]:
    """Wait until a job is complete; its last status. SalesforceError when it failed, was aborted or takes too long.

    accept: states that end the wait well; an ingest job that Failed has results too.
    """
    started, pause_s = time.monotonic(), FIRST_POLL_S
    while True:
        job = status(client, kind, job_id)
        if job["state"] in accept:
            return job
        if job["state"] in ENDED:
            told = replies.safe("", str(job.get("errorMessage") or "no reason told"))
            raise SalesforceError(f"Bulk {kind} job of {job.get('object')}: got state {job['state']}: {told}")
        if time.monotonic() - started > PATIENCE_S:
            raise SalesforceError(
                f"Bulk {kind} job of {job.get('object')}: got state {job['state']} after {PATIENCE_S:.0f} s, expected "
                "JobComplete; it goes on in the org, run again to look at it"
            )
        time.sleep(pause_s * random.uniform(0.8, 1.0))
        pause_s = min(LONGEST_POLL_S, pause_s * 2)
