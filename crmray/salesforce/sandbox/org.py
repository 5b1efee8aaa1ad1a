"""The tables of a sandbox org in DuckDB: one per object, with the metadata, the clock and the serial numbers beside.

Beside the objects' tables lie `_objects` (metadata as JSON) and `_state` (counters). Only the holder of the store's
lock uses an Org's connection; readers have cursors of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa

from crmray.salesforce import ids
from crmray.salesforce.sandbox.metadata import SQL_TYPES, Field, ObjectType, from_json, to_json
from crmray.salesforce.sandbox.results import NoSuchObject

FIRST_SERIAL = 62**8
"""serial number of the first id made here: above those of loaded rows"""
MILLISECOND = timedelta(milliseconds=1)
ARROW_TYPES = {
    "VARCHAR": pa.string(), "BOOLEAN": pa.bool_(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
}  # fmt: skip


class Org:
    """Tables, metadata and counters; not thread-safe by itself."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, now: Callable[[], datetime]):
        """An open database; `now` gives UTC without a zone."""
        self.connection = connection
        self._now = now
        self._in_transaction = False
        connection.execute("CREATE TABLE IF NOT EXISTS _objects (name VARCHAR, place INTEGER, spec VARCHAR)")
        connection.execute("CREATE TABLE IF NOT EXISTS _state (name VARCHAR, value BIGINT)")
        rows = connection.execute("SELECT spec FROM _objects ORDER BY place").fetchall()
        self.objects: dict[str, ObjectType] = {one.name: one for one in (from_json(json.loads(row[0])) for row in rows)}
        self.user_id = ids.make("005", np.array([1]))[0].as_py()
        self.organization_id = ids.make("00D", np.array([1]))[0].as_py()

    def object(self, name: str) -> ObjectType:
        """An object by its name in any case; NoSuchObject."""
        found = self.objects.get(name) or next(
            (one for one in self.objects.values() if one.name.lower() == name.lower()), None
        )
        if found is None:
            raise NoSuchObject(f"got object {name!r}, expected one of the org's: see `objects()`")
        return found

    def field(self, object_: str, name: str) -> tuple[ObjectType, Field]:
        """A field by its name in any case; NoSuchObject."""
        spec = self.object(object_)
        one = spec.get(name)
        if one is None:
            raise NoSuchObject(f"got field {name!r}, expected one of {spec.name}")
        return spec, one

    def of_prefix(self, prefix: str) -> ObjectType | None:
        """The object whose ids begin so."""
        return next((one for one in self.objects.values() if one.prefix == prefix), None)

    def now(self) -> datetime:
        """UTC without a zone."""
        return self._now()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; one within another is part of it."""
        if self._in_transaction:
            yield
            return
        before = self.objects
        self.connection.begin()
        self._in_transaction = True
        try:
            yield
        except BaseException:
            self.connection.rollback()
            self.objects = before
            raise
        else:
            self.connection.commit()
        finally:
            self._in_transaction = False

    def create(self, spec: ObjectType) -> None:
        """Make an object and its table."""
        columns = ", ".join(f'"{one.name}" {SQL_TYPES[one.type]}' for one in spec.fields if one.stored)
        self.connection.execute(f'CREATE TABLE "{spec.name}" ({columns})')
        place = len(self.objects)
        self.connection.execute("INSERT INTO _objects VALUES (?, ?, ?)", [spec.name, place, json.dumps(to_json(spec))])
        self.objects = {**self.objects, spec.name: spec}

    def save(self, spec: ObjectType) -> None:
        """Keep changed metadata of an object."""
        self.connection.execute("UPDATE _objects SET spec = ? WHERE name = ?", [json.dumps(to_json(spec)), spec.name])
        self.objects = {**self.objects, spec.name: spec}

    def stamp(self) -> datetime:
        """The time of a write, in whole milliseconds, after that of every write and every loaded row before it."""
        now = self._now()
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        last = self._state("stamp")
        made = max(now, from_microseconds(last) + MILLISECOND) if last is not None else now
        self._set_state("stamp", to_microseconds(made))
        return made

    def raise_stamp(self, moment: datetime | None) -> None:
        """Let all later writes come after this time."""
        last = self._state("stamp")
        if moment is not None and (last is None or to_microseconds(moment) > last):
            self._set_state("stamp", to_microseconds(moment))

    def new_ids(self, spec: ObjectType, count: int) -> list[str]:
        """Ids for rows to be made."""
        first = self.take_numbers("id", count, FIRST_SERIAL)
        return ids.make(spec.prefix, first + np.arange(count)).to_pylist()

    def take_numbers(self, name: str, count: int, start: int = 1) -> int:
        """The first of so many consecutive numbers that nothing had before."""
        last = self._state(name)
        first = start if last is None else last + 1
        self._set_state(name, first + count - 1)
        return first

    def _state(self, name: str) -> int | None:
        rows = self.connection.execute("SELECT value FROM _state WHERE name = ?", [name]).fetchall()
        return rows[0][0] if rows else None

    def _set_state(self, name: str, value: int) -> None:
        if self._state(name) is None:
            self.connection.execute("INSERT INTO _state VALUES (?, ?)", [name, value])
        else:
            self.connection.execute("UPDATE _state SET value = ? WHERE name = ?", [value, name])

    def rows(self, sql: str, params: Sequence = (), staged: pa.Table | None = None) -> list[tuple]:
        """Run SQL and fetch its rows; `staged` is a table that it may call so."""
        with self.staging(staged):
            return self.connection.execute(sql, list(params)).fetchall()

    @contextmanager
    def staging(self, table: pa.Table | None) -> Iterator[None]:
        """Let SQL see an Arrow table as `staged`."""
        if table is None:
            yield
            return
        self.connection.register("staged", table)
        try:
            yield
        finally:
            with suppress(duckdb.TransactionException):  # what ended the transaction is raised already
                self.connection.unregister("staged")

    def append(self, spec: ObjectType, columns: dict[str, list]) -> None:
        """Append rows given as columns of Python values; fields not given are null."""
        table = typed(spec, columns)
        names = ", ".join(f'"{name}"' for name in table.column_names)
        with self.staging(table):
            self.connection.execute(f'INSERT INTO "{spec.name}" ({names}) SELECT {names} FROM staged')

    def children(self, spec: ObjectType) -> Iterator[tuple[ObjectType, Field]]:
        """Objects and fields that refer to an object."""
        for child in self.objects.values():
            for one in child.fields:
                if spec.name in one.reference_to and one.stored:
                    yield child, one


def typed(spec: ObjectType, columns: Mapping[str, Sequence]) -> pa.Table:
    """Columns of Python values with the types of their fields."""
    arrays = {}
    for name, values in columns.items():
        one = spec.get(name)
        assert one is not None
        arrays[name] = pa.array(values, ARROW_TYPES[SQL_TYPES[one.type]])
    return pa.table(arrays)


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def from_microseconds(value: int) -> datetime:
    """The moment, UTC without a zone."""
    return datetime(1970, 1, 1) + timedelta(microseconds=value)
