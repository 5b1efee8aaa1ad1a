"""What a pull has fetched so far, on disk, so that it goes on at the page after a kill.

    _work/pull/<object>/plan.json            what is pulled, and its queries, each written down before it is sent
                        q0003/job.json       the Bulk job that answers the query; it lives on in the org
                        q0003/p00007.parquet a page, typed and guarded; p00007.json, written after it, says it is whole
                        q0003/done.json      the query is answered
                        r0000/…              rows asked for by their ids, which are written down nowhere
    _work/pull_state/<object>/state.json     what the last complete pull saw

Pages are the parts of the run to come: they are adopted as they are where nothing in them has changed since.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote_plus

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import NotFoundError, ReconcileError, SalesforceError
from crmray.privacy import Guard, GuardPlan
from crmray.salesforce import bulk, memory, pages, withheld
from crmray.salesforce.bulk import TRIES, PageBrokenError
from crmray.salesforce.client import Client
from crmray.salesforce.fingerprint import Fingerprint, hash_ids, of_rows
from crmray.salesforce.scan import REST_ROWS
from crmray.storage import Lake, Run

MOST_ADDRESS_BYTES = 16_000
"""of the text of a REST query, encoded; Salesforce takes addresses of 16,384 bytes"""
_KEYS = pa.schema([field for field in withheld.SCHEMA if field.name != "changed"])


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file with rows of an object: a page, or a part of an earlier run."""

    run: Run
    """where it lies"""
    rel: str
    """its path there"""
    rows: int
    """how many"""
    fingerprint: Fingerprint
    """of its rows"""
    keys: str = ""
    """file beside it with the hashes of its ids and CreatedDate; empty: they are read from the rows"""
    withheld: str = ""
    """file beside it with what is kept of withheld rows; empty: there are none"""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of a pull."""

    soql: str
    """with all fields of the object"""
    rows: int
    """expected, for progress and to choose the API"""
    rest: bool = False
    """asked by REST, however many"""
    all_rows: bool = False
    """asked by queryAll, which gives archived rows too"""


@dataclass(kw_only=True)
class Plan:
    """A pull under way, as it stands in plan.json."""

    mark: str
    """of all that its pages depend on; pages of another mark are of no use"""
    base: str = ""
    """run_id that it adds to; empty: everything is pulled"""
    since: str = ""
    """ISO time up to which the base was read, or at which a full pull began"""
    until: str = ""
    """ISO time up to which changes have been looked for"""
    names: str = ""
    """digest of the names that were taken out of texts: pages redacted with others are of no use"""
    queries: list[dict[str, Any]] = field(default_factory=list)
    """of Query, in the order in which they were asked: a later row wins over an earlier one"""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows of one object are read."""

    name: str
    """of the object"""
    fields: tuple[str, ...]
    """SOQL paths"""
    types: dict[str, str]
    """path -> Salesforce's type"""
    hashed: tuple[str, ...]
    """columns of the fingerprint, those among them that the guard keeps"""
    modstamp: str
    """column of the time by which of two versions of a row the later one is known"""
    guard: Guard
    """takes out what must not reach the lake"""
    guarded: GuardPlan
    """what becomes of the columns"""

    def kept(self, table: pa.Table) -> pa.Table:
        """Rows of the org as they may lie in the lake; those withheld are gone."""
        return self.guard.apply(table, self.guarded)

    def lake_ids(self, table: pa.Table) -> pa.ChunkedArray:
        """The ids of rows of the org, as the lake has them."""
        return self.guard.lake_ids(table["Id"], self.guarded)

    def withheld(self, table: pa.Table) -> pa.Table:
        """What is kept of those rows of the org that are withheld."""
        if not self.guard.withholds:
            return withheld.SCHEMA.empty_table()
        rows = table.filter(self.guard.withheld(table, self.guarded, pseudonyms=False))
        return withheld.of_rows(hash_ids(self.lake_ids(rows)), rows, self.modstamp)

    def hashes(self, table: pa.Table, ids: np.ndarray | None = None) -> np.ndarray:
        """(rows,) uint64 over the columns of the fingerprint. ids: hashes of the column Id, where they are known."""
        known = {} if ids is None else {"Id": ids}
        return of_rows(table, [name for name in self.hashed if name in table.column_names], known)


class Stage:
    """The folder of one object's pull. One process at a time: hold `claim`."""

    def __init__(self, lake: Lake, name: str):
        self.lake, self.name = lake, name
        self.run = Run(lake, "_work", "pull", name)
        self._kept = Run(lake, "_work", "pull_state", name)
        self.state_path = f"_work/pull_state/{name}/state.json"
        """under the root of the lake"""

    def claim(self) -> contextlib.AbstractContextManager[bool]:
        """Exclusive work on this object's pull."""
        return self.run.claim("ingest")

    def state(self) -> dict[str, Any] | None:
        """What the last complete pull saw; None before the first."""
        return self._json(self.lake.read, self.state_path)

    def keep_state(self, state: dict[str, Any], back: pa.Table) -> None:
        """Write down what a complete pull saw. back: what is kept of withheld rows."""
        before = self._kept.files("*.parquet")
        state["withheld"] = ""
        if back.num_rows:
            state["withheld"] = f"withheld-{state['run_id']}-{uuid.uuid4().hex[:8]}.parquet"
            self._kept.write_table(state["withheld"], back)
        self.lake.write(self.state_path, json.dumps(state).encode())
        for rel in before:
            self.lake.fs.rm_file(f"{self._kept.path}/{rel}")

    def withheld(self, state: dict[str, Any]) -> pa.Table:
        """What the last complete pull kept of withheld rows."""
        if not state["withheld"]:
            return withheld.SCHEMA.empty_table()
        return self._kept.read_table(state["withheld"])

    def plan(self) -> Plan | None:
        """The pull under way."""
        found = self._json(self.run.read_bytes, "plan.json")
        return Plan(**found) if found else None

    def keep_plan(self, plan: Plan) -> None:
        """Write the pull under way down."""
        self.run.write_bytes("plan.json", json.dumps(asdict(plan)).encode())

    def clear(self) -> None:
        """Forget the pull under way."""
        for rel in self.run.files("plan.json"):  # first: pages without a plan are nobody's
            self.lake.fs.rm_file(f"{self.run.path}/{rel}")
        for folder in {rel.split("/")[0] for rel in self.run.files("*/*")}:
            self.clear_folder(folder)

    def clear_repairs(self) -> None:
        """Forget rows fetched by their ids: which are needed is found out anew."""
        for folder in {rel.split("/")[0] for rel in self.run.files("r*/*")}:
            self.clear_folder(folder)

    def clear_folder(self, folder: str) -> None:
        path = f"{self.run.path}/{folder}"
        if self.lake.fs.exists(path):
            self.lake.fs.rm(path, recursive=True)

    def _json(self, read: Callable[[str], bytes], rel: str) -> Any:
        try:
            return json.loads(read(rel))
        except NotFoundError:
            return None

    # -- queries -------------------------------------------------------------------------------------------------------

    def fetch(self, client: Client, reading: Reading, folder: str, query: Query, bar: log.Progress) -> list[Part]:
        """The rows of a query, whose pages lie in a folder of the stage: fetched, or found fetched before."""
        done = self._json(self.run.read_bytes, f"{folder}/done.json")
        if done is None:
            answer = _Answer(self, client, reading, folder, bar)
            count = answer.by_bulk(query) if by_bulk(query) else answer.by_rest(query)
            done = {"pages": count}
            self.run.write_bytes(f"{folder}/done.json", json.dumps(done).encode())
            memory.give_back()
        found = (self.page(folder, number) for number in range(done["pages"]))
        return [part for part in found if part is not None and (part.rows or part.withheld)]

    def start(self, client: Client, folder: str, query: Query) -> None:
        """Let the org begin with a query that is fetched later."""
        if by_bulk(query) and not any(self.run.has(f"{folder}/{name}.json") for name in ("job", "done")):
            self.keep_job(folder, bulk.start_query(client, query.soql, all_rows=query.all_rows))

    def keep_job(self, folder: str, job_id: str) -> None:
        """Write down which Bulk job answers a query."""
        self.run.write_bytes(f"{folder}/job.json", json.dumps({"id": job_id}).encode())

    def page(self, folder: str, number: int) -> Part | None:
        """A page that is whole; None for one still to be read."""
        rel = f"{folder}/p{number:05d}"
        facts = self._json(self.run.read_bytes, f"{rel}.json")
        if facts is None:
            return None
        mark = Fingerprint.parse(facts["fingerprint"])
        beside = f"{rel}.withheld.parquet" if facts["withheld"] else ""
        keys = f"{rel}.keys.parquet" if facts["rows"] else ""
        return Part(
            run=self.run, rel=f"{rel}.parquet", rows=facts["rows"], fingerprint=mark, keys=keys, withheld=beside
        )


def by_bulk(query: Query) -> bool:
    """Whether a query is asked by a Bulk job: for many rows, or when its text is too long for an address."""
    return (not query.rest and query.rows > REST_ROWS) or len(quote_plus(query.soql)) > MOST_ADDRESS_BYTES


class _Answer:
    """Fetching the pages of one query into its folder."""

    def __init__(self, stage: Stage, client: Client, reading: Reading, folder: str, bar: log.Progress):
        self.stage, self.client, self.reading, self.folder, self.bar = stage, client, reading, folder, bar
        self._lock = threading.Lock()

    def by_rest(self, query: Query) -> int:
        """Ask by REST; pages there are."""
        records = self.client.query(query.soql, all_rows=query.all_rows)
        number = 0
        reading = self.reading
        while block := list(itertools.islice(records, REST_ROWS)):
            self._write(number, [pages.from_records(reading.name, block, reading.fields, reading.types)])
            number += 1
        return number

    def by_bulk(self, query: Query) -> int:
        """Ask by a Bulk job, or go on with the one that was asked before; pages there are.

        A job that the org has lost, or that failed before this process began, is asked anew.
        """
        for _ in range(TRIES):
            job_id = self._job(query)
            try:
                bulk.wait(self.client, "query", job_id)
                return self._pages(job_id)
            except SalesforceError:
                if bulk.known(self.client, "query", job_id) is not None:
                    raise
                log.warn("ingest.job_lost", object=self.reading.name)
                self.stage.clear_folder(self.folder)
        raise SalesforceError(
            f"object {self.reading.name}: the org lost {TRIES} jobs one after the other; try again later"
        )

    def _job(self, query: Query) -> str:
        known = self.stage._json(self.stage.run.read_bytes, f"{self.folder}/job.json")
        if known is not None:
            job = bulk.known(self.client, "query", known["id"])
            if job is not None and job["state"] not in ("Failed", "Aborted"):
                return known["id"]
            self.stage.clear_folder(self.folder)  # its pages may be cut otherwise in another job
        job_id = bulk.start_query(self.client, query.soql, all_rows=query.all_rows)
        self.stage.keep_job(self.folder, job_id)
        return job_id

    def _pages(self, job_id: str) -> int:
        source = self.client.source
        urls, complete = bulk.page_urls(self.client, job_id, source.page_rows)
        if not complete:
            return self._chain(urls[0])
        todo = [number for number in range(len(urls)) if not self._told(number)]
        pool = ThreadPoolExecutor(source.parallel_pages, thread_name_prefix="pages")
        try:
            for _ in pool.map(lambda number: self._page(number, urls[number]), todo):
                pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return len(urls)

    def _chain(self, url: str | None) -> int:
        """Pages of an org without resultPages: each tells where the next one is."""
        number = 0
        while url:
            url = self._page(number, url)
            number += 1
        return number

    def _told(self, number: int) -> bool:
        """Whether a page lies there whole; its rows are counted then."""
        part = self.stage.page(self.folder, number)
        if part is not None:
            self.bar.advance(part.rows)
        return part is not None

    def _page(self, number: int, url: str) -> str | None:
        """Read one page, again from its start when the connection breaks; address of the next one."""
        name = self.reading.name
        for attempt in range(TRIES):
            try:
                with bulk.open_page(self.client, url) as page:
                    if page.rows == 0:
                        self._write(number, [])
                    else:
                        tables = pages.from_csv(name, page, self.reading.fields, self.reading.types)
                        self._write(number, tables, page.rows)
                    return page.next_url
            except (PageBrokenError, _ShortPage) as error:
                log.warn("ingest.page_again", object=name, attempt=attempt + 1, why=str(error))
                last = error
        raise ReconcileError(f"object {name}: page {number} of a query: {last}, {TRIES} times; pull again")

    def _write(self, number: int, tables: Iterable[pa.Table], promised: int | None = None) -> None:
        """Guard and write one page, then the facts that say it is whole."""
        rel, rows, kept, mark = f"{self.folder}/p{number:05d}", 0, 0, Fingerprint()
        run, back = self.stage.run, []
        with contextlib.ExitStack() as open_file:
            writer = keys = None
            for raw in tables:
                rows += raw.num_rows
                back.append(self.reading.withheld(raw))
                table = self.reading.kept(raw)
                if writer is None or keys is None:
                    writer = open_file.enter_context(run.parquet_writer(f"{rel}.parquet", table.schema, plain=True))
                    keys = open_file.enter_context(run.parquet_writer(f"{rel}.keys.parquet", _KEYS, plain=True))
                writer.write_table(table)
                ids = hash_ids(table["Id"])
                keys.write_table(withheld.of_rows(ids, table, self.reading.modstamp).select(_KEYS.names))
                kept += table.num_rows
                mark += Fingerprint.of(self.reading.hashes(table, ids))
            if promised is not None and rows != promised:
                raise _ShortPage(f"got {rows} rows, expected {promised} as its header says")
        if rows > kept:
            run.write_table(f"{rel}.withheld.parquet", pa.concat_tables(back))
        facts = {"rows": kept, "withheld": rows - kept, "fingerprint": str(mark)}
        run.write_bytes(f"{rel}.json", json.dumps(facts).encode())
        with self._lock:
            self.bar.advance(rows)


class _ShortPage(Exception):
    """A page with other rows than it promised."""
