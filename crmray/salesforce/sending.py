"""Sending planned rows by Bulk API 2.0 so that a kill at any moment neither repeats nor skips one.

    receipts/<name>/<run_id>/
        steps.json                      what is done on which object; written last of the plan
        plan-<step>.parquet             chunk, entity_id, record, before.<Field> …, after.<Field> …
        job-<step>-00000-0.json         job id of an attempt at a chunk, written before its rows are uploaded
        result-<step>-00000-0.parquet   what became of the rows of that attempt
        receipt-<step>.parquet          the plan with state, code and message of every row

An ingest job works only once it is closed, so a job id that is not recorded did nothing; one that is recorded and still
open is aborted and made anew; any other is awaited and its results are fetched. Rows of one chunk are in one internal
batch of Salesforce (10,000 records) and chunks go one after the other, so that no two of our batches want the lock of
one parent.
"""

from __future__ import annotations

import csv
import io
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import LimitError, SalesforceError
from crmray.salesforce import bulk, replies, values
from crmray.salesforce.client import Client
from crmray.storage import Run

CHUNK_ROWS = 10_000
CHUNK_BYTES = bulk.MAX_UPLOAD_BYTES // 10 * 9
ATTEMPTS = 6
"""at each row that a further attempt can help"""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
HELPABLE = (
    "UNABLE_TO_LOCK_ROW",
    "SERVER_UNAVAILABLE",
    "REQUEST_RUNNING_TOO_LONG",
    "QUERY_TIMEOUT",
    "ConcurrentPerOrgLongTxn",
)
"""a row that is refused so may be taken the next time, also where a trigger passes it on in its message"""
UNPROCESSED = "UNPROCESSED"
"""our code for rows that Salesforce did not come to"""
THERE = ("DUPLICATE_VALUE", "DUPLICATE_EXTERNAL_ID")

State = Literal["written", "failed", "not_found", "unsent"]
BEFORE, AFTER = "before.", "after."
OUTCOME = pa.schema([("row", pa.int64()), ("state", pa.string()), ("code", pa.string()), ("message", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Step:
    """One kind of change, planned and sent."""

    name: Literal["fields", "tasks", "members"]
    """of its files"""
    object: str
    """API name"""
    operation: Literal["update", "upsert", "insert"]
    """of the ingest jobs"""
    match: str
    """CSV column that tells the rows of a result apart: Id, the external id, or a reference"""
    external_id: str = ""
    """field of an upsert"""


Addresses = Callable[[pa.Array], pa.Table]
"""records as the lake names them -> CSV columns that say to Salesforce which they are; the first null: not there"""


def chunked(plan: pa.Table) -> pa.Table:
    """The plan with a column `chunk` in front: rows in order, within the limits of one upload."""
    texts = [column for name, column in zip(plan.column_names, plan.columns, strict=True) if name.startswith(AFTER)]
    size = np.full(plan.num_rows, 64, np.int64)
    for column in texts:
        size += 3 + 2 * np.array([len((text or "").encode()) for text in column.to_pylist()], np.int64)
    chunk = np.zeros(plan.num_rows, np.int32)
    number = rows = total = 0
    for row, num_bytes in enumerate(size.tolist()):
        if rows == CHUNK_ROWS or total + num_bytes > CHUNK_BYTES:
            number, rows, total = number + 1, 0, 0
        chunk[row], rows, total = number, rows + 1, total + num_bytes
    return plan.add_column(0, "chunk", pa.array(chunk))


class Delivery:
    """The rows of one step of a run on their way. settle: nothing new is sent, only what was sent is looked up."""

    def __init__(self, client: Client, run: Run, step: Step, addresses: Addresses, *, settle: bool = False):
        self.client, self.run, self.step, self.settle = client, run, step, settle
        self.addresses = addresses
        self.plan = run.read_table(f"plan-{step.name}.parquet")

    def deliver(self) -> pa.Table:
        """Send what is not sent yet; the receipt: the plan with state, code and message. Rows that fail hold up none.

        SalesforceError when a whole job is refused; run again to go on from there.
        """
        chunk = self.plan["chunk"].to_numpy()
        outcomes = []
        with log.progress(f"writeback.{self.step.name}", total=len(chunk), unit="rows") as bar:
            for number in np.unique(chunk).tolist():
                rows = np.flatnonzero(chunk == number)
                outcomes.append(self._chunk(number, rows))
                bar.advance(len(rows))
        told = pa.concat_tables(outcomes) if outcomes else OUTCOME.empty_table()
        told = told.sort_by("row").drop_columns(["row"])
        receipt = self.plan.drop_columns(["chunk"])
        for name in told.column_names:
            receipt = receipt.append_column(name, told[name])
        return receipt

    def _chunk(self, number: int, rows: np.ndarray) -> pa.Table:
        """OUTCOME of all rows of a chunk."""
        done: list[pa.Table] = []
        for attempt in range(ATTEMPTS):
            outcome = self._attempt(number, attempt, rows)
            again = np.array([_helps(code, message) for code, message in _told(outcome)], bool)
            again &= np.array([state == "failed" for state in outcome["state"].to_pylist()], bool)
            if attempt == ATTEMPTS - 1:
                again[:] = False
            done.append(outcome.filter(pa.array(~again)))
            rows = outcome["row"].to_numpy()[again]
            if not len(rows):
                break
        return pa.concat_tables(done)

    def _attempt(self, number: int, attempt: int, rows: np.ndarray) -> pa.Table:
        """OUTCOME of one attempt at some rows of a chunk; found done, or done now."""
        place = f"{self.step.name}-{number:05d}-{attempt}"
        result_rel, job_rel = f"result-{place}.parquet", f"job-{place}.json"
        if self.run.has(result_rel):
            return self.run.read_table(result_rel)
        table = self._csv_table(rows)
        known = np.array(table.column(0).is_valid())
        sent = table.filter(pa.array(known))
        job_id = json.loads(self.run.read_bytes(job_rel))["job"] if self.run.has(job_rel) else None
        job = self._resumed(job_id) if job_id else None
        if job is None and self.settle:
            return _outcome(rows, "unsent")
        if job is None and sent.num_rows:
            if attempt:
                time.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)))
            job = self._send(sent, job_rel)
        parts = [_outcome(rows[~known], "not_found")]
        if job is not None:
            parts.append(self._results(job["id"], rows[known], sent[self.step.match].to_pylist()))
        outcome = pa.concat_tables(parts).sort_by("row")
        self.run.write_table(result_rel, outcome)
        return outcome

    def _csv_table(self, rows: np.ndarray) -> pa.Table:
        """What is uploaded for these rows: the address, then a column for each field that any of them changes."""
        plan = self.plan.take(pa.array(rows))
        table = self.addresses(plan["record"].combine_chunks())
        for name in plan.column_names:
            if name.startswith(AFTER):
                field = name.removeprefix(AFTER)
                before, after = plan[BEFORE + field].to_pylist(), plan[name].to_pylist()
                cells = values.cells(before, after)
                if field == self.step.match or any(cells):
                    table = table.append_column(field, pa.array(cells, pa.string()))
        return table

    def _resumed(self, job_id: str) -> dict[str, Any] | None:
        """A job of an earlier start once it has ended; None when it did nothing and its rows are to be sent again."""
        found = bulk.known(self.client, "ingest", job_id)
        if found is None:  # seven days old: what it wrote is written, and writing it again changes nothing
            return None
        if found["state"] == "Open":
            bulk.abort(self.client, job_id)
        job = bulk.wait(self.client, "ingest", job_id, accept=bulk.ENDED)
        log.event("writeback.resumed", step=self.step.name, state=job["state"])
        return None if job["state"] != "JobComplete" and not int(job.get("numberRecordsProcessed") or 0) else job

    def _send(self, sent: pa.Table, job_rel: str) -> dict[str, Any]:
        """Upload rows as one job and wait for its end."""
        content = _csv_bytes(sent)
        for left in reversed(range(3)):
            job_id = bulk.create_ingest(
                self.client, self.step.object, self.step.operation, external_id=self.step.external_id
            )
            self.run.write_bytes(job_rel, json.dumps({"job": job_id}).encode())
            try:
                bulk.upload(self.client, job_id, content)
                break
            except LimitError:
                raise
            except SalesforceError:  # the job is still open, so it did nothing: another one takes its place
                bulk.abort(self.client, job_id)
                if not left:
                    raise
        job = bulk.wait(self.client, "ingest", job_id, accept=("JobComplete", "Failed"))
        if job["state"] == "Failed" and not int(job.get("numberRecordsProcessed") or 0):
            told = replies.safe("", str(job.get("errorMessage") or "no reason told"))
            raise SalesforceError(
                f"Bulk {self.step.operation} of {self.step.object}: got a failed job ({told}), expected the rows to be "
                "taken; put it right and run again, which goes on from here"
            )
        return job

    def _results(self, job_id: str, rows: np.ndarray, keys: Sequence[str]) -> pa.Table:
        """OUTCOME of the rows that were sent, told apart by the `match` column."""
        found: dict[str, tuple[str, str, str]] = {}
        results = bulk.results(self.client, job_id)
        for key in _column(results["successful"], self.step.match):
            found[key] = ("written", "", "")
        failed = results["failed"]
        for key, error in zip(_column(failed, self.step.match), _column(failed, "sf__Error"), strict=True):
            code, message = _code(error)
            there = self.step.operation == "insert" and code in THERE
            found[key] = ("written", code, "") if there else ("failed", code, message)
        missing = ("failed", UNPROCESSED, "Salesforce did not come to this row")
        told = [found.get(key, missing) for key in keys]
        state, code_, message_ = (pa.array([entry[i] for entry in told], pa.string()) for i in range(3))
        return pa.table([pa.array(rows, pa.int64()), state, code_, message_], schema=OUTCOME)


def _outcome(rows: np.ndarray, state: State) -> pa.Table:
    """OUTCOME of rows that were not sent."""
    texts = [pa.array([text] * len(rows), pa.string()) for text in (state, "", "")]
    return pa.table([pa.array(rows, pa.int64()), *texts], schema=OUTCOME)


def _csv_bytes(table: pa.Table) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return sink.getvalue().encode()


def _column(table: pa.Table, name: str) -> list[str]:
    return [text or "" for text in table[name].to_pylist()] if table.num_rows else []


def _told(outcome: pa.Table) -> list[tuple[str, str]]:
    return list(zip(outcome["code"].to_pylist(), outcome["message"].to_pylist(), strict=True))


def _helps(code: str, message: str) -> bool:
    return code == UNPROCESSED or any(word in code or word in message for word in HELPABLE)


def _code(error: str) -> tuple[str, str]:
    """`CODE:message:fields --` of sf__Error as code and a message without record values."""
    code, _, rest = error.partition(":")
    return code, replies.safe(code, rest.rstrip("- ").rstrip(":"))


def counts(receipt: pa.Table) -> dict[str, Any]:
    """Rows by state, and the failed ones by code."""
    states, codes = receipt["state"].to_pylist(), receipt["code"].to_pylist()
    failed: dict[str, int] = {}
    for state, code in zip(states, codes, strict=True):
        if state == "failed":
            failed[code] = failed.get(code, 0) + 1
    return {state: states.count(state) for state in sorted(set(states))} | ({"codes": failed} if failed else {})


def steps_of(run: Run) -> list[Step]:
    """Steps of a planned run."""
    plan: Mapping[str, Any] = json.loads(run.read_bytes("steps.json"))
    return [Step(**step) for step in plan["steps"]]
