"""What Bulk API 2.0 query and ingest jobs have in common: states, their JSON, their list, their threads.

Source: Bulk API 2.0 and Bulk API Developer Guide, "Bulk API 2.0 Query", "Bulk API 2.0 Ingest".
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import CrmrayError
from crmray.salesforce import ids
from crmray.salesforce.sandbox.wire import ApiError, Call, not_found, rest_time

DELIMITERS = {"BACKQUOTE": "`", "CARET": "^", "COMMA": ",", "PIPE": "|", "SEMICOLON": ";", "TAB": "\t"}
LINE_ENDINGS = {"LF": "\n", "CRLF": "\r\n"}
RUNNING = ("Open", "UploadComplete", "InProgress")
ENDED = ("JobComplete", "Failed", "Aborted")
WORKERS = 2
"""jobs that run at the same time"""
LISTED_JOBS = 1000
"""of one page of the list of jobs"""


@dataclasses.dataclass(kw_only=True)
class Job:
    """One job; its state changes while it runs."""

    id: str
    """`750…`"""
    operation: str
    """query, queryAll, insert, …"""
    object: str
    """name of the object"""
    version: str
    """API version that created it; results ask for the same"""
    delimiter: str
    """name of the column delimiter"""
    line_ending: str
    """LF or CRLF"""
    state: str
    """Open, UploadComplete, InProgress, JobComplete, Failed or Aborted"""
    created_by: str
    """id of the user"""
    created: datetime
    """when it was created"""
    changed: datetime
    """when its state last changed"""
    processed: int = 0
    """rows so far, failed ones among them"""
    seconds: float = 0.0
    """time it has run"""
    error: str = ""
    """why it failed"""
    worked: threading.Event = dataclasses.field(default_factory=threading.Event)
    """set once its thread is done with it: an aborted job's rows are settled a little after its state"""

    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    """around changes of the state"""

    def move(self, state: str, *, after: Container[str] = RUNNING) -> bool:
        """Change the state if it is one of `after`; whether it was."""
        with self.lock:
            if self.state not in after:
                return False
            self.state, self.changed = state, datetime.now(timezone.utc)
            return True

    def info(self) -> dict[str, Any]:
        """What every answer about a job holds."""
        return {
            "id": self.id,
            "operation": self.operation,
            "object": self.object,
            "createdById": self.created_by,
            "createdDate": rest_time(self.created),
            "systemModstamp": rest_time(self.changed),
            "state": self.state,
            "concurrencyMode": "Parallel",
            "contentType": "CSV",
            "apiVersion": float(self.version),
            "lineEnding": self.line_ending,
            "columnDelimiter": self.delimiter,
        }

    def detail(self) -> dict[str, Any]:
        """What the answer about one job holds beside it."""
        more: dict[str, Any] = {
            "numberRecordsProcessed": self.processed,
            "retries": 0,
            "totalProcessingTime": int(self.seconds * 1000),
        }
        return {**self.info(), **more, **({"errorMessage": self.error} if self.error else {})}

    def check_version(self, call: Call) -> None:
        """409 where another API version asks than the one that created the job."""
        if float(call.version) != float(self.version):
            message = f"Job was created with API version {self.version}, but was requested with {call.version}"
            raise ApiError(409, "API_VERSION_MISMATCH", message)


def new_job_fields(call: Call, body: dict[str, Any], user_id: str) -> dict[str, Any]:
    """The fields of a Job that a request to create one tells; 400 for a value that is none."""
    delimiter, line_ending = body.get("columnDelimiter", "COMMA"), body.get("lineEnding", "LF")
    if delimiter not in DELIMITERS:
        raise ApiError(400, "INVALIDJOB", f"Invalid column delimiter: {delimiter}")
    if line_ending not in LINE_ENDINGS:
        raise ApiError(400, "INVALIDJOB", f"Invalid line ending: {line_ending}")
    if body.get("contentType", "CSV") != "CSV":
        raise ApiError(400, "INVALIDJOB", "Content type must be CSV")
    now = datetime.now(timezone.utc)
    return {
        "version": call.version,
        "delimiter": delimiter,
        "line_ending": line_ending,
        "created_by": user_id,
        "created": now,
        "changed": now,
    }


def _tell(future: Future) -> None:
    """Let an error that nobody expected be logged, with its traceback."""
    if not future.cancelled():
        future.result()


J = TypeVar("J", bound=Job)


class Jobs(Generic[J]):
    """The jobs of one kind. Thread-safe."""

    def __init__(self, kind: str):
        self.kind = kind
        self._jobs: dict[str, J] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"bulk-{kind}")

    @staticmethod
    def new_id() -> str:
        """Id of a new job."""
        return ids.make("750", np.array([secrets.randbelow(62**9)]))[0].as_py()

    def add(self, job: J) -> None:
        """Keep a new job."""
        with self._lock:
            self._jobs[job.id] = job

    def get(self, call: Call) -> J:
        """The job that the path names; 404 for none."""
        with self._lock:
            job = next((job for job in self._jobs.values() if job.id[:15] == call.path_params["job"][:15]), None)
        if job is None:
            raise not_found()
        return job

    def remove(self, job: J) -> None:
        """Forget a job; 400 while it runs."""
        if job.state not in ENDED and job.state != "Open":
            raise ApiError(400, "INVALIDJOBSTATE", "Deleting job in this state is not allowed.")
        with self._lock:
            self._jobs.pop(job.id, None)

    def start(self, job: J, work: Callable[[J], None]) -> None:
        """Run a job in the background."""
        self._pool.submit(self._run, job, work).add_done_callback(_tell)

    def _run(self, job: J, work: Callable[[J], None]) -> None:
        job.move("InProgress")
        started, failure = time.monotonic(), "UNKNOWN_EXCEPTION: an unexpected error occurred"
        try:
            work(job)
            failure = ""
        except (ApiError, CrmrayError, OSError, ValueError, duckdb.Error, pa.ArrowException) as error:
            failure = error.message if isinstance(error, ApiError) else str(error)
            log.warn("sandbox.job_failed", kind=self.kind, object=job.object, error=type(error).__name__)
        finally:
            job.error, job.seconds = failure, time.monotonic() - started
            job.move("Failed" if failure else "JobComplete")
            job.worked.set()

    def listed(self, call: Call) -> dict[str, Any]:
        """Body of the list of jobs, newest first."""
        with self._lock:
            jobs = list(self._jobs.values())[::-1]
        return {"done": True, "records": [job.info() for job in jobs[:LISTED_JOBS]], "nextRecordsUrl": None}

    def close(self) -> None:
        """Abort what runs, and wait for it."""
        with self._lock:
            for job in self._jobs.values():
                job.move("Aborted")
        self._pool.shutdown(cancel_futures=True)
