"""Known entities: the `now` rows of one examples run, memory-mapped and found by binary search."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import asof_sentiment
from crmray.data.examples_inputs import Content, content_of
from crmray.data.splits import Snapshots
from crmray.errors import CorruptError, NotFoundError, did_you_mean
from crmray.privacy.consent import whom
from crmray.storage import Run

IMPERSONAL = {"total", "product", "category", "brand", "region"}
"""levels of series whose values name no person"""


@dataclass(frozen=True, kw_only=True)
class Dated:
    """An examples run by its manifest: how old its rows are."""

    run: Run
    """the examples run"""
    manifest: dict[str, Any]
    """its manifest"""

    @staticmethod
    def of(run: Run) -> Dated:
        """Read the manifest; NotFoundError when the run is gone."""
        return Dated(run=run, manifest=run.manifest())

    @property
    def as_of(self) -> datetime | None:
        """Date of the rows; None for an org without time."""
        return Snapshots.of(self.manifest).now

    @property
    def age_days(self) -> float | None:
        """Days from `as_of` to this moment, two decimals; None where there is no time, or an order without a clock."""
        if self.as_of is None or not self._has_clock:
            return None
        return round((datetime.now(timezone.utc) - self.as_of) / timedelta(days=1), 2)

    @cached_property
    def _has_clock(self) -> bool:
        return all(table.has_clock for table in self._tables.values())

    @cached_property
    def _tables(self) -> dict[str, Content]:
        """What the examples were made from."""
        inputs = self.manifest["inputs"]
        return {name: content_of(self.run.lake.run("tables", name, inputs[name])) for name in inputs}


@dataclass(frozen=True, kw_only=True)
class Known(Dated):
    """The rows of one run. Nothing is copied into memory; pages are read as they are needed."""

    rows: pa.Table
    """one row per entity, sorted by entity_id"""
    _ids: Sequence[Any] = field(repr=False)
    """entity_id of each row"""

    @staticmethod
    def open(run: Run) -> Known:
        """Map now.arrow of the run, a local copy where the lake is not local. CorruptError when it is not sorted."""
        path = run.lake.local(run) / "now.arrow"
        if not path.exists():
            raise NotFoundError(f"{run!r}: no file now.arrow; make the examples again")
        try:
            rows = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except pa.ArrowInvalid as error:
            raise CorruptError(f"{path}: not an Arrow file ({error}); make the examples again") from None
        if rows.num_rows and rows["entity_id"].num_chunks > 1:  # many batches: one array makes a search step cheap
            rows = rows.set_column(
                rows.schema.get_field_index("entity_id"), "entity_id", rows["entity_id"].combine_chunks()
            )
        ids = rows["entity_id"].chunk(0) if rows.num_rows else pa.array([], pa.string())
        if len(ids) > 1 and not pc.all(pc.less(ids[:-1], ids[1:])).as_py():
            raise CorruptError(f"{path}: the rows are not sorted by entity_id; make the examples again")
        return Known(run=run, manifest=run.manifest(), rows=rows, _ids=ids)

    def find(self, entity_id: str) -> int | None:
        """Row of an id, or None. Arrow sorts by bytes of UTF-8, which is the order of Python's strings."""
        index = bisect.bisect_left(self._ids, entity_id, key=lambda scalar: scalar.as_py())
        return index if index < len(self._ids) and self._ids[index].as_py() == entity_id else None

    def like(self, sent: str) -> str:
        """End of a message about an unknown product or series: one that may have been meant, and the levels of series.
        Of the levels that may name people no series is told."""
        told = f"; series are named `level:value` or `total`, levels here are {', '.join(self._levels)}"
        return did_you_mean(sent, self._impersonal) + (told if self._levels else "")

    @cached_property
    def _levels(self) -> list[str]:
        """Levels of series; empty where the rows are no series."""
        return sorted(pc.unique(self.rows["level"]).to_pylist()) if "level" in self.rows.column_names else []

    @cached_property
    def _impersonal(self) -> list[str]:
        """Ids that name no person: gathered once, for there is one thread that looks them up."""
        ids = self.rows["entity_id"]
        if self._levels:
            told = [level for level in self._levels if IMPERSONAL.issuperset(level.split(","))]
            ids = ids.filter(pc.is_in(self.rows["level"], value_set=pa.array(told, pa.string())))
        return ids.to_pylist()

    def owner(self, row: int) -> str | None:
        """The person whom a row is about; None for a series of several customers."""
        return self._persons[row].as_py()

    @cached_property
    def _persons(self) -> pa.ChunkedArray:
        return whom(self.rows)

    def take(self, indices: Sequence[int]) -> pa.Table:
        """The rows of these positions."""
        return self.rows.take(pa.array(indices, pa.int64()))

    def schemas(self) -> dict[str, pa.Schema]:
        """Canonical tables that the examples were made from, with the columns that this org has: those with a value.

        Where the examples know what was said in interactions, so may those who send some: `sentiment_score`.
        """
        found = {name: self._empty(name).schema for name in self._tables}
        if self.manifest.get("sentiment"):
            found["interactions"] = found["interactions"].append(pa.field(asof_sentiment.SCORE, pa.float64()))
        return found

    def shared_tables(self) -> dict[str, pa.Table]:
        """The tables that are not sharded (products, campaigns), whole."""
        return {name: self._read(name, 0) for name in self._tables if not schema.TABLES[name].sharded}

    def history(self, entity_id: str) -> dict[str, pa.Table]:
        """The rows of one entity in the sharded tables. Reads its shard from the lake: tens of milliseconds."""
        from crmray.data.partition import shard_of  # imports pandas, which a replica does without otherwise

        shard = int(shard_of(pa.array([entity_id]), self.manifest["num_shards"])[0])
        sharded = (name for name in self._tables if schema.TABLES[name].sharded)
        rows = {name: self._read(name, shard, pc.field(schema.TABLES[name].entity) == entity_id) for name in sharded}
        if self.manifest.get("sentiment"):
            told = self.run.lake.run("predictions", asof_sentiment.TASK, self.manifest["sentiment"])
            rows["interactions"] = asof_sentiment.joined(rows["interactions"], told)
        return rows

    def _read(self, name: str, shard: int, filters: Any = None) -> pa.Table:
        table, file = self._tables[name], f"shard-{shard:05d}.parquet"
        if not table.run.has(file):
            return self._empty(name)
        return table.run.read_table([file], columns=table.columns, filters=filters)

    def _empty(self, name: str) -> pa.Table:
        table = self._tables[name]
        whole = table.run.open_parquet(table.run.files("shard-*.parquet")[0]).schema_arrow.remove_metadata()
        return pa.schema([whole.field(column) for column in table.columns]).empty_table()
