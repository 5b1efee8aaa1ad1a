"""Bulk API 2.0 ingest jobs of a sandbox org: one CSV uploaded, its rows written in the background, three results."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv
from starlette.responses import Response

from crmray.salesforce.sandbox import attempts
from crmray.salesforce.sandbox.faults import Faults
from crmray.salesforce.sandbox.jobs import DELIMITERS, ENDED, LINE_ENDINGS, Job, Jobs, new_job_fields
from crmray.salesforce.sandbox.pages import encode, header
from crmray.salesforce.sandbox.rest import Handler
from crmray.salesforce.sandbox.results import NoSuchObject, RowResult
from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.wire import CSV_TYPE, ApiError, Call, empty_response, json_response

MAX_UPLOAD_BYTES = 150_000_000
BATCH_ROWS = 10_000
"""rows written at once; an abort takes effect between two batches"""
SETTLE_TIMEOUT_S = 60.0
"""until the batch that was being written when a job was aborted is done"""
NULL = "#N/A"
"""makes a field null; an empty value leaves it as it is"""
RESULTS = ("successfulResults", "failedResults", "unprocessedrecords")


@dataclasses.dataclass(kw_only=True)
class IngestJob(Job):
    """Rows to be written, and what became of them."""

    external_id: str
    """field that an upsert goes by; empty otherwise"""
    folder: Path
    """where the upload and the results lie"""
    is_uploaded: bool = False
    """whether there are rows"""
    failed: int = 0
    """rows that were not written"""

    def detail(self) -> dict[str, Any]:
        """What the answer about one job holds."""
        more = {"numberRecordsFailed": self.failed, "apexProcessingTime": 0, "jobType": "V2Ingest"}
        return {**super().detail(), **more, "apiActiveProcessingTime": int(self.seconds * 1000), **self.upload()}

    def upload(self) -> dict[str, Any]:
        """Where the rows go."""
        where = {"contentUrl": f"services/data/v{self.version}/jobs/ingest/{self.id}/batches"}
        return where | ({"externalIdFieldName": self.external_id} if self.external_id else {})


class BulkIngest:
    """The handlers, and the jobs."""

    def __init__(self, store: Store, faults: Faults, folder: Path):
        self.store, self.faults, self.folder = store, faults, folder
        self.jobs: Jobs[IngestJob] = Jobs("ingest")

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, pattern, handler)."""
        job = r"/jobs/ingest/(?P<job>750\w{12}(?:\w{3})?)"
        return [
            ("POST", "/jobs/ingest", self.create),
            ("GET", "/jobs/ingest", lambda call: json_response(self.jobs.listed(call))),
            ("GET", job, lambda call: json_response(self.jobs.get(call).detail())),
            ("PATCH", job, self.change),
            ("DELETE", job, self.delete),
            ("PUT", f"{job}/batches", self.upload),
            ("GET", rf"{job}/(?P<result>(?i:{'|'.join(RESULTS)}))", self.results),
        ]

    def create(self, call: Call) -> Response:
        body = call.json_object()
        operation = body.get("operation")
        if operation not in attempts.OPERATIONS:
            raise ApiError(400, "INVALIDJOB", f"Unsupported operation for an ingest job: {operation}")
        external_id = body.get("externalIdFieldName", "")
        if operation == "upsert" and not external_id:
            raise ApiError(400, "INVALIDJOB", "External ID was blank. An external ID must be specified for upsert.")
        try:
            described = self.store.describe(str(body.get("object", "")))
        except NoSuchObject:
            raise ApiError(400, "INVALIDENTITY", f"Unable to find object: {body.get('object')}") from None
        id_ = self.jobs.new_id()
        job = IngestJob(
            id=id_,
            operation=operation,
            object=described["name"],
            state="Open",
            external_id=external_id,
            folder=self.folder / id_,
            **new_job_fields(call, body, self.store.user_id),
        )
        job.folder.mkdir(parents=True)
        self.jobs.add(job)
        return json_response({**job.info(), **job.upload()})

    def upload(self, call: Call) -> Response:
        job = self.jobs.get(call)
        if len(call.body) > MAX_UPLOAD_BYTES:
            message = f"Maximum size of request reached. Maximum size of request is {MAX_UPLOAD_BYTES} bytes."
            raise ApiError(413, "EXCEEDED_MAX_SIZE_REQUEST", message)
        if job.state != "Open":
            raise ApiError(400, "INVALIDJOBSTATE", f"Cannot upload to a job that is {job.state}")
        if job.is_uploaded:
            message = f"Found multiple contents for job: <{job.id}>, please make sure you only do one PUT per job."
            raise ApiError(400, "INVALIDJOBSTATE", message)
        (job.folder / "upload.csv").write_bytes(call.body)
        job.is_uploaded = True
        return empty_response(201)

    def change(self, call: Call) -> Response:
        job, state = self.jobs.get(call), call.json_object().get("state")
        if state == "UploadComplete" and job.move("UploadComplete", after=("Open",)):
            answer = json_response(job.info())
            self.jobs.start(job, self._work)
            return answer
        if state == "Aborted":
            if job.move("Aborted", after=("Open",)):
                job.worked.set()
                return json_response(job.info())
            if job.move("Aborted"):
                return json_response(job.info())
        raise ApiError(400, "INVALIDJOBSTATE", f"State {state} cannot follow {job.state}")

    def delete(self, call: Call) -> Response:
        job = self.jobs.get(call)
        self.jobs.remove(job)
        for path in job.folder.iterdir():
            path.unlink()
        job.folder.rmdir()
        return empty_response()

    def results(self, call: Call) -> Response:
        job, name = self.jobs.get(call), call.path_params["result"].lower()
        if job.state not in ENDED:
            raise ApiError(400, "INVALIDJOBSTATE", f"Job is {job.state}; it has no results yet")
        job.worked.wait(SETTLE_TIMEOUT_S)
        path = job.folder / f"{name}.csv"
        return Response(path.read_bytes() if path.exists() else b"", headers={"Content-Type": CSV_TYPE})

    # ------------------------------------------------------------------------------------------ the work

    def _work(self, job: IngestJob) -> None:
        """Write the uploaded rows batch by batch. A job whose CSV is wrong fails as a whole."""
        rows = _read(job)
        self._check_columns(job, rows.column_names)
        with _Results(job, rows.column_names) as results:
            try:
                while job.processed < rows.num_rows and job.state != "Aborted":
                    self._write(job, rows.slice(job.processed, BATCH_ROWS), results)
            finally:
                results.unprocessed(rows.slice(job.processed))

    def _write(self, job: IngestJob, batch: pa.Table, results: _Results) -> None:
        """Write a batch and what became of its rows."""
        external_id = job.external_id or "Id"
        rows = _to_rows(batch)
        done = attempts.write(self.store, self.faults, job.operation, job.object, rows, external_id=external_id)
        results.add(batch, done)
        job.processed += len(done)
        job.failed += sum(not result.success for result in done)

    def _check_columns(self, job: IngestJob, columns: Sequence[str]) -> None:
        """Every column is a field, or leads to an external id of a parent."""
        fields = self.store.describe(job.object)["fields"]
        known = {field["name"].lower() for field in fields}
        parents = {str(field["relationshipName"]).lower() for field in fields if field["relationshipName"]}
        if len({name.lower() for name in columns}) < len(columns):
            raise ValueError("InvalidBatch : a field is named twice in the header")
        for name in columns:
            first, dot, _ = name.lower().partition(".")
            if first not in (parents if dot else known):
                raise ValueError(f"InvalidBatch : Field name not found : {name}")
        needed = {"update": "id", "delete": "id", "hardDelete": "id", "upsert": job.external_id.lower()}
        if needed.get(job.operation, columns[0].lower()) not in {name.lower() for name in columns}:
            raise ValueError(f"InvalidBatch : Field name not found : {needed[job.operation]}")


def _read(job: IngestJob) -> pa.Table:
    """The upload as text columns."""
    path, delimiter = job.folder / "upload.csv", DELIMITERS[job.delimiter]
    if not path.exists():
        raise ValueError("InvalidBatch : no rows were uploaded")
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(io.StringIO(file.readline()), delimiter=delimiter), [])
    if not names:
        raise ValueError("InvalidBatch : the upload has no header")
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"InvalidBatch : the upload is no CSV: {error}") from None
    return table.combine_chunks()


def _to_rows(batch: pa.Table) -> list[dict[str, object]]:
    """Rows for the store: empty values left out, #N/A as null."""
    names = ["Id" if name.lower() == "id" else name for name in batch.column_names]
    rows = batch.rename_columns(names).to_pylist()
    return [{name: None if value == NULL else value for name, value in row.items() if value != ""} for row in rows]


class _Results:
    """The three result files of a job, written as its batches are done."""

    def __init__(self, job: IngestJob, columns: Sequence[str]):
        self._format = DELIMITERS[job.delimiter], LINE_ENDINGS[job.line_ending]
        first = {"successfulresults": ["sf__Id", "sf__Created"], "failedresults": ["sf__Id", "sf__Error"]}
        self._files = {name.lower(): open(job.folder / f"{name.lower()}.csv", "wb") for name in RESULTS}  # noqa: SIM115
        for name, file in self._files.items():
            file.write(header([*first.get(name, []), *columns], *self._format))

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, batch: pa.Table, done: Sequence[RowResult]) -> None:
        """What became of a batch."""
        success = pa.array([result.success for result in done], pa.bool_())
        ids = pa.array([result.id or "" for result in done], pa.string())
        created = pa.array(["true" if result.created else "false" for result in done], pa.string())
        errors = pa.array([_error_text(result) for result in done], pa.string())
        self._append("successfulresults", batch, {"sf__Id": ids, "sf__Created": created}, success)
        self._append("failedresults", batch, {"sf__Id": ids, "sf__Error": errors}, pc.invert(success))

    def unprocessed(self, batch: pa.Table) -> None:
        """A batch that the job never came to."""
        self._append("unprocessedrecords", batch, {}, None)

    def _append(self, name: str, batch: pa.Table, more: dict[str, pa.Array], which: pa.Array | None) -> None:
        table = pa.table([*more.values(), *batch.columns], names=[*more, *batch.column_names])
        table = table if which is None else table.filter(which)
        for part in table.combine_chunks().to_batches():
            if part.num_rows:
                self._files[name].write(encode(part, *self._format)[0])


def _error_text(result: RowResult) -> str:
    """`CODE:message:fields --`, as in the column sf__Error."""
    if result.success:
        return ""
    first = result.errors[0]
    return f"{first['statusCode']}:{first['message']}:{' '.join(first['fields'])} --"
