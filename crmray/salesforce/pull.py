"""Bring the objects of a Salesforce org into raw/, whole and proven: all of them, or what changed since the last time.

    persons   who withdrew, and whose names stand in texts: known to the guard before a row is written
    plan      slices by modstamp up to now (all rows), or nothing yet (what changed)
    rounds    rows changed since, again and again until a round finds none: by their own modstamp, or that of a parent
              which a field is read through
    proof     COUNT() by slices of CreatedDate against the rows that landed; where they differ, the ids of the slice
              tell what was deleted for good or not read. Formula fields, of which no modstamp tells, are compared too
    run       pages adopted, with changed rows left out of the older ones; then the state for the next time

What was fetched lies in _work/pull/<object> (see `stage`), so a pull that dies goes on at the page. A run's id comes
from its rows: an org that did not change gives the run that is there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from crmray import log
from crmray.config import Org, SalesforceSource
from crmray.errors import DataError, LimitError, ReconcileError, SalesforceError, SchemaError
from crmray.privacy import Guard
from crmray.salesforce import catalogue, drift, mapping, memory, merge, pages, persons, renewal, slices
from crmray.salesforce.catalogue import Describes, ObjectPlan
from crmray.salesforce.changes import Asking
from crmray.salesforce.client import Client
from crmray.salesforce.drift import Change
from crmray.salesforce.fingerprint import Fingerprint
from crmray.salesforce.limits import CallLedger
from crmray.salesforce.merge import Whole
from crmray.salesforce.proof import AnewError, prove
from crmray.salesforce.reconcile import Slice
from crmray.salesforce.stage import Part, Plan, Query, Reading, Stage
from crmray.storage import Lake, Run, run_id

FORMAT = 1
_FIELD_LOST = ("INVALID_FIELD", "No such column", "InvalidField", "state Failed")
"""what an org says to a query for a field that is no longer there"""


def pull(org: Org, lake: Lake) -> dict[str, Run]:
    """Bring every object of the mapping that the org has into raw/, and raw/consent; object -> run.

    An object that cannot be had whole (SchemaError, ReconcileError) keeps its last good run; the others are pulled
    first, then its error is raised. SalesforceError, LimitError and AuthError end the pull at once; the next one goes
    on where it stopped.
    """
    source = org.source
    assert isinstance(source, SalesforceSource), source.kind
    ledger = CallLedger(source.calls_reserve)
    with memory.frugal(), Client.connect(source, org.folder, ledger=ledger) as client:
        try:
            return _pull_all(org, lake, client)
        finally:
            log.event("ingest.calls", total=ledger.total(), limit=ledger.limit, kinds=dict(ledger.calls))


def _pull_all(org: Org, lake: Lake, client: Client) -> dict[str, Run]:
    found, describes = catalogue.read(client, org), Describes(client)
    found.check()
    guard = Guard.open(org, lake, client.describe)
    clock = _clock(client)
    began = clock()
    persons.learn(client, guard, describes, lake, list(client.objects()))
    memory.give_back()
    runs: dict[str, Run] = {}
    refused: list[DataError] = []
    for plan in found.objects.values():
        try:
            read, reading = _reading(guard, describes, plan)
            stage = Stage(lake, plan.name)
            runs[plan.name] = _Pull(client=client, clock=clock, plan=read, reading=reading, stage=stage).run()
        except (SchemaError, ReconcileError) as error:
            log.warn("ingest.refused", object=plan.name, why=str(error))
            refused.append(error)
    if refused:
        raise refused[0]
    runs["consent"] = persons.finish(guard, lake, began)
    return runs


def _clock(client: Client) -> Callable[[], datetime]:
    """The org's time, asked once: watermarks must not hang on this machine's clock."""
    asked, there = time.monotonic(), client.server_time()
    return lambda: there + timedelta(seconds=int(time.monotonic() - asked))


def _reading(guard: Guard, describes: Describes, plan: ObjectPlan) -> tuple[ObjectPlan, Reading]:
    """The plan with the fields that the guard lets through, and how they are read."""
    guarded = guard.plan(plan.name, plan.fields)
    plan = _with_fields(plan, guarded.read, describes)
    redacted = (*guarded.texts, *(("OldValue", "NewValue") if guarded.changes else ()))
    reading = Reading(
        name=plan.name,
        fields=plan.fields,
        types=dict(plan.types),
        hashed=tuple(dict.fromkeys(["Id", plan.modstamp, *plan.derived, *redacted])),
        modstamp=plan.modstamp,
        guard=guard,
        guarded=guarded,
    )
    return plan, reading


def _with_fields(plan: ObjectPlan, fields: Sequence[str], describes: Describes) -> ObjectPlan:
    """The plan with those fields that the guard lets through, and those that it needs itself."""
    found = {path: field for path in fields if (field := describes.field(plan.name, path)[0]) is not None}
    parents: dict[str, str] = {}
    for path in found:
        parents |= describes.parents(plan.name, path)[0]
    return replace(
        plan,
        fields=tuple(found),
        types={path: field["type"] for path, field in found.items()},
        formulas=tuple(path for path in plan.formulas if path in found),
        parents=parents,
    )


@dataclass(frozen=True, kw_only=True)
class _Pull:
    """The pull of one object."""

    client: Client
    """of the org"""
    clock: Callable[[], datetime]
    """the org's time"""
    plan: ObjectPlan
    """what is read"""
    reading: Reading
    """how it is read"""
    stage: Stage
    """what was fetched so far, in the lake"""

    def run(self) -> Run:
        """Pull, prove and write."""
        with self.stage.claim():
            schema = drift.seen(self.client.describe(self.plan.name)["fields"], self._paths())
            state = self.stage.state()
            changes = drift.compare(state["schema"], schema, self._read()) if state else []
            for change in changes:
                log.warn("ingest.drift", object=self.plan.name, **change.to_json())
            self._refuse(changes)
            base = self._base(state, changes)
            try:
                run, work, whole = self._pulled(base, state, schema, changes)
            except AnewError:
                self.stage.clear()
                run, work, whole = self._pulled(None, state, schema, changes)
            seen = {"run_id": run.run_id, "until": work.until, "mark": work.mark, "schema": schema}
            self.stage.keep_state(seen, whole.withheld)
            self.stage.clear()
        return run

    def _pulled(
        self, base: Run | None, state: dict[str, Any] | None, schema: drift.Seen, changes: list[Change]
    ) -> tuple[Run, Plan, Whole]:
        """The new run, how it was pulled, and its rows: from the base and what changed since, or from all there are."""
        name, how = self.plan.name, "changes" if base is not None else "all"
        work, resumed = self._begin(base, state)
        total = sum(query["rows"] for query in work.queries) or None
        with log.progress(f"ingest.{name}", total=total, unit="rows") as bar:
            asking = self._asking(bar)
            try:
                parts, back = self._base_parts(base, state)
                fetched = asking.all_of(work)
                if resumed:  # pages of before the wishes that have come since
                    back += renewal.withdrawn(self.reading, fetched)
                parts += fetched
                if self.plan.via == "bulk":
                    parts += asking.catch_up(work)
                formulas = self.plan.formulas if base is not None or resumed else ()
                whole, proof = prove(asking, work, parts, back, formulas=formulas)
            except LimitError:
                raise
            except SalesforceError as error:
                if any(sign in str(error) for sign in _FIELD_LOST):
                    self._refuse_drift(schema)
                raise
        if self.plan.via == "bulk":
            self._refuse_drift(schema)  # some pages may have been read before, others after a change
        run = self._write(whole, proof, work, schema, changes, how)
        log.event("ingest.wrote", object=name, rows=whole.rows, run_id=run.run_id, how=how, slices=len(proof))
        return run, work, whole

    # -- the schema ----------------------------------------------------------------------------------------------------

    def _paths(self) -> dict[str, str]:
        """Types of the fields that are read through relationships."""
        return {path: type_ for path, type_ in self.plan.types.items() if "." in path}

    def _read(self) -> list[str]:
        """Paths that the mapping reads, whether they are there or not."""
        wanted = mapping.wanted(self.client.source).values()
        sources = [part for parts in wanted for part in parts if part.object == self.plan.name]
        named = {path for source in sources for path in catalogue.kept_columns(source, [])}
        named |= {*self.plan.fields, *catalogue.SYSTEM, *catalogue.CONSENT.get(self.plan.name, ())}
        return sorted(named - set(self.reading.guarded.dropped))

    def _refuse(self, changes: list[Change]) -> None:
        """SchemaError when a field that is read is gone or of another type."""
        state = f"{self.stage.lake.root}/{self.stage.state_path}"
        drift.refuse(self.plan.name, changes, f"take it out of the mapping, or remove {state} to begin anew")

    def _refuse_drift(self, schema: drift.Seen) -> None:
        """The same for what changed since this pull began: describe is asked anew."""
        described = self.client.describe(self.plan.name, anew=True)["fields"]
        self._refuse(drift.compare(schema, drift.seen(described, self._paths()), self._read()))

    # -- what is to be pulled ------------------------------------------------------------------------------------------

    def _asking(self, bar: log.Progress) -> Asking:
        return Asking(
            client=self.client,
            plan=self.plan,
            reading=self.reading,
            stage=self.stage,
            lookback=timedelta(minutes=self.client.source.lookback_minutes),
            clock=self.clock,
            bar=bar,
        )

    def _settings(self) -> dict[str, Any]:
        """What a run depends on besides the org's rows."""
        return {
            "types": self.reading.types,
            "fields": self.reading.fields,
            "where": self.plan.where,
            "privacy": self.reading.guard.fingerprint,
        }

    def _mark(self) -> str:
        """Of what pages depend on besides the org's rows."""
        source = self.client.source
        settings = {**self._settings(), "page_rows": source.page_rows, "login": source.login.url, "format": FORMAT}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _base(self, state: dict[str, Any] | None, changes: list[Change]) -> Run | None:
        """The run to which changes can be added; None when everything is pulled."""
        if state is None or self.plan.via == "rest" or state["mark"] != self._mark():
            return None
        if drift.anew(changes) or self.reading.guard.must_reread:
            return None
        run = self.stage.lake.run("raw", self.plan.name, state["run_id"])
        return run if run.exists() else None

    def _base_parts(self, base: Run | None, state: dict[str, Any] | None) -> tuple[list[Part], list[pa.Table]]:
        """Parts of the base as the guard would have them now, and what is kept of rows that are withheld."""
        if base is None or state is None:
            return [], []
        parts = [
            Part(run=base, rel=rel, rows=facts["rows"], fingerprint=Fingerprint.parse(facts["fingerprint"]))
            for rel, facts in base.manifest()["parts"].items()
        ]
        back = [self.stage.withheld(state), *renewal.withdrawn(self.reading, parts)]
        return renewal.renewed(self.stage, self.reading, parts), back

    def _begin(self, base: Run | None, state: dict[str, Any] | None) -> tuple[Plan, bool]:
        """The plan of this pull, and whether it is that of one that died."""
        found, mark = self.stage.plan(), self._mark()
        names = self.reading.guard.names_digest(self.reading.guarded)
        base_id = base.run_id if base is not None else ""
        same = found is not None and (found.mark, found.base, found.names) == (mark, base_id, names)
        if found is not None and same and self.plan.via == "bulk":
            log.event("ingest.resumed", object=self.plan.name, queries=len(found.queries))
            return found, True
        self.stage.clear()
        if base is not None and state is not None:
            work = Plan(mark=mark, names=names, base=base_id, since=state["until"], until=state["until"])
        else:
            now = self.clock()
            work = Plan(mark=mark, names=names, since=now.isoformat(), until=now.isoformat())
            work.queries = [asdict(query) for query in self._whole(now)]
        self.stage.keep_plan(work)
        return work, False

    def _whole(self, now: datetime) -> list[Query]:
        """Queries for all rows there are."""
        plan, where, all_rows = self.plan, self.plan.where, self.plan.archived
        select = f"SELECT {', '.join(plan.fields)} FROM {plan.name}"
        if plan.via == "rest":
            soql = f"{select} WHERE {where}" if where else select
            return [Query(soql=soql, rows=plan.rows, rest=True, all_rows=all_rows)]
        parts = slices.plan(self.client, plan.name, plan.modstamp, now, where, slices.SLICE_ROWS, all_rows=all_rows)
        return [Query(soql=f"{select} WHERE {condition}", rows=rows, all_rows=all_rows) for condition, rows in parts]

    # -- the run -------------------------------------------------------------------------------------------------------

    def _write(
        self, whole: Whole, proof: list[Slice], work: Plan, schema: drift.Seen, changes: list[Change], how: str
    ) -> Run:
        """The run of these rows: there already, or written now."""
        inputs = {"rows": f"{whole.rows}-{whole.fingerprint(self.reading)}"}
        # a picklist value that is renamed changes rows whose modstamp stands still
        values = {path: schema[path].get("values") for path in self.plan.fields if path in schema}
        settings = {**self._settings(), "values": values}
        number = run_id("ingest", inputs=inputs, settings=settings, seed=0, format=FORMAT)
        run = self.stage.lake.run("raw", self.plan.name, number)
        with run.claim("ingest") as mine:
            if not mine:
                return run
            parts = merge.write(run, whole, self.reading)
            landed, counted = whole.rows + whole.withheld.num_rows, sum(span.there for span in proof)
            run.commit(
                rows=whole.rows,
                columns={field.name: str(field.type) for field in self._columns(run, list(parts))},
                text=False,
                data_end=work.until,
                parts=parts,
                reconciled={
                    "slices": len(proof),
                    "rows": counted,
                    "withheld": whole.withheld.num_rows,
                    "later": landed - counted,
                    "until": work.until,
                },
                drift=[change.to_json() for change in changes],
                facts={"how": how, "base": work.base},
            )
        return run

    def _columns(self, run: Run, parts: list[str]) -> pa.Schema:
        """Columns of the run's parts, or what they would be."""
        if parts:
            return run.open_parquet(parts[0]).schema_arrow
        return self.reading.kept(pages.schema_of(self.plan.fields, self.plan.types).empty_table()).schema
