"""Asking an org for what changed: rows by their modstamp or a parent's, rows by id, and the ids of a slice of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.salesforce import pages, reconcile, withheld
from crmray.salesforce.catalogue import ObjectPlan
from crmray.salesforce.client import Client
from crmray.salesforce.fingerprint import of_rows
from crmray.salesforce.merge import Whole
from crmray.salesforce.reconcile import Slice
from crmray.salesforce.scan import REST_ROWS, scan
from crmray.salesforce.slices import both, literal
from crmray.salesforce.stage import Part, Plan, Query, Reading, Stage

JOBS_AHEAD = 2
"""Bulk jobs that the org works on while the pages of one before them are read"""
MOST_ROUNDS = 5
"""of looking for rows that changed meanwhile"""
IDS_BY_REST = 400
"""of one `Id IN (…)`: the address of a REST query has at most 16,384 bytes"""
IDS_BY_BULK = 4_000
"""the same of a Bulk query, which has at most 100,000 characters"""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the ids of a slice tell."""

    dead: pa.Array
    """ids as the lake has them, which the org no longer has"""
    missing: list[str]
    """the org's ids of rows that did not land"""
    changed: list[str]
    """the org's ids of rows with other values of a formula"""
    withheld: pa.Table
    """what is kept of withheld rows of the slice"""
    released: np.ndarray
    """hashes of rows of the slice that were withheld, and are no longer there or no longer withheld"""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The queries of one object's pull."""

    client: Client
    """the org"""
    plan: ObjectPlan
    """what is read of the object"""
    reading: Reading
    """how its rows become tables"""
    stage: Stage
    """where they are kept"""
    lookback: timedelta
    """overlap with what was read before"""
    clock: Callable[[], datetime]
    """the org's time"""
    bar: log.Progress
    """counts rows"""

    def soql(self, where: str, fields: Sequence[str] = ()) -> str:
        """A query for all fields of the object, or for these."""
        columns = ", ".join(fields or self.plan.fields)
        return f"SELECT {columns} FROM {self.plan.name}" + (f" WHERE {where}" if where else "")

    def all_of(self, work: Plan) -> list[Part]:
        """Rows of all queries that the plan has, fetched or found fetched before."""
        found: list[Part] = []
        queries = [Query(**query) for query in work.queries]
        for index, query in enumerate(queries):
            for ahead in range(index, min(index + 1 + JOBS_AHEAD, len(queries))):
                self.stage.start(self.client, f"q{ahead:04d}", queries[ahead])
            found += self._fetch(f"q{index:04d}", query)
        return found

    def ask(self, work: Plan, query: Query) -> list[Part]:
        """Add a query to the plan and fetch its rows."""
        work.queries.append(asdict(query))
        self.stage.keep_plan(work)
        return self._fetch(f"q{len(work.queries) - 1:04d}", query)

    def _fetch(self, folder: str, query: Query) -> list[Part]:
        return self.stage.fetch(self.client, self.reading, folder, query, self.bar)

    def catch_up(self, work: Plan) -> list[Part]:
        """Rows that changed since the plan's `until`, asked again until none is newer than the round before."""
        found: list[Part] = []
        for number in range(MOST_ROUNDS):
            before = datetime.fromisoformat(work.until)
            if number and not self._count(self._changed(before)):
                break
            now = self.clock()
            where = self._changed(before - self.lookback)
            if rows := self._count(where):
                found += self.ask(work, self._query(where, rows))
            work.until = now.isoformat()
            self.stage.keep_plan(work)
        return found

    def _count(self, where: str) -> int:
        return self.client.count(self.plan.name, where, all_rows=self.plan.archived)

    def _query(self, where: str, rows: int) -> Query:
        return Query(soql=self.soql(where), rows=rows, all_rows=self.plan.archived)

    def _changed(self, since: datetime) -> str:
        """Condition of rows whose values changed as far as a modstamp tells: their own, or that of a parent read."""
        times = [self.plan.modstamp, *(f"{path}.SystemModstamp" for path in self.plan.parents)]
        return both(self.plan.where, " OR ".join(f"{time} >= {literal(since)}" for time in times))

    def recycled(self, since: datetime) -> pa.Array:
        """Ids, as the lake has them, of rows that lie in the recycle bin and were put there since."""
        if not self.plan.has_deleted:
            return pa.array([], pa.string())
        where = f"IsDeleted = true AND {self.plan.modstamp} >= {literal(since - self.lookback)}"
        count = self.client.count(self.plan.name, where, all_rows=True)
        tables = self._scan(("Id",), where, count, all_rows=True) if count else ()
        found = (self.reading.lake_ids(table).combine_chunks() for table in tables)
        return pa.concat_arrays([pa.array([], pa.string()), *found])

    def by_id(self, ids: list[str], folder: str) -> list[Part]:
        """Rows with these ids of the org, those among them that are there; folder: where their pages go."""
        found: list[Part] = []
        at_once = IDS_BY_REST if len(ids) <= REST_ROWS else IDS_BY_BULK
        for start in range(0, len(ids), at_once):
            some = ids[start : start + at_once]
            listed = ",".join(f"'{id_}'" for id_ in some)
            query = self._query(both(self.plan.where, f"Id IN ({listed})"), len(some))
            found += self._fetch(f"{folder}-{start:07d}", query)
        return found

    def sweep(self, whole: Whole, span: Slice, formulas: Sequence[str] = ()) -> Sweep:
        """Compare ids, and the values of formulas, of a slice here and in the org."""
        reading = self.reading
        named = withheld.columns(reading.guarded.about, reading.modstamp, self.plan.fields)
        fields = tuple(dict.fromkeys([*named, *formulas]))
        raw = pa.concat_tables(
            [
                pages.schema_of(fields, self.plan.types).empty_table(),
                *self._scan(fields, span.where(self.plan.where), max(span.landed, span.there)),
            ]
        )
        back = reading.withheld(raw)
        if back.num_rows:
            raw = raw.filter(pc.invert(reading.guard.withheld(raw, reading.guarded, pseudonyms=False)))
        ids = reading.lake_ids(raw).combine_chunks()
        here = reconcile.rows_of(whole, span, ["Id", *formulas])
        ours = here["Id"].combine_chunks() if here is not None else pa.array([], pa.string())
        place = pc.index_in(ids, value_set=ours)
        known = pc.is_valid(place).to_numpy(zero_copy_only=False)
        changed = np.zeros(raw.num_rows, bool)
        if formulas and here is not None:
            now = of_rows(reading.kept(raw), formulas)[known]
            changed[known] = now != of_rows(here, formulas)[place.drop_null().to_numpy()]
        by_time = span.start is not None or span.end is not None
        of_span = (
            whole.withheld.filter(reconcile.inside(span, whole.withheld["created"])) if by_time else whole.withheld
        )
        return Sweep(
            dead=ours.filter(pc.invert(pc.is_in(ours, value_set=ids))),
            missing=raw["Id"].filter(pa.array(~known)).to_pylist(),
            changed=raw["Id"].filter(pa.array(changed)).to_pylist(),
            withheld=back,
            released=np.setdiff1d(of_span["hash"].to_numpy(), back["hash"].to_numpy()),
        )

    def _scan(self, fields: Sequence[str], where: str, rows: int, *, all_rows: bool = False) -> Iterator[pa.Table]:
        """Tables with some fields of the rows that meet a condition; not kept in the stage."""
        types, all_rows = self.plan.types, all_rows or self.plan.archived
        return scan(self.client, self.plan.name, fields, types, where=where, rows=rows, all_rows=all_rows)
