"""The sandbox org's store: records, metadata and queries of one made-up Salesforce org, in an embedded DuckDB.

    store = Store("org.duckdb")
    store.insert("Account", [{"Name": "Acme"}])
    store.query("SELECT Id, Name FROM Account").table

Reads go through cursors of their own and see the moment they began; writes take turns. Every method may be called from
any thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import pyarrow as pa

from crmray.errors import StorageError
from crmray.salesforce.sandbox import deletes, loading, soql, writes
from crmray.salesforce.sandbox.describe import describe_object, summary
from crmray.salesforce.sandbox.metadata import SQL_TYPES, Field, ObjectType
from crmray.salesforce.sandbox.org import Org
from crmray.salesforce.sandbox.paths import broken_formulas, check_formula
from crmray.salesforce.sandbox.results import Result, RowResult, SoqlError, Stream
from crmray.salesforce.sandbox.standard import standard_objects
from crmray.salesforce.sandbox.translate import Compiled, translate
from crmray.salesforce.sandbox.tree import Query

USERNAME = "integration@sandbox.example"
"""the org's one user"""
VERSION = "64.0"
"""API version in the addresses that describe names, unless asked for another"""


def utc_now() -> datetime:
    """UTC without a zone."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


class Transaction:
    """Writes that stand or fall together."""

    def __init__(self) -> None:
        """All are to be kept, so far."""
        self.undone = False

    def rollback(self) -> None:
        """Take all of them back at the end."""
        self.undone = True


class _Undone(Exception):
    """Ends a transaction that is taken back."""


class Store:
    """One org. Field and object names are taken in any case and given as describe spells them."""

    def __init__(self, path: Path | str = ":memory:", *, memory_mb: int = 1024, now: Callable[[], datetime] = utc_now):
        """Open or create; a new org has the standard objects, its Organization and one User, the System Administrator.

        `memory_mb` bounds DuckDB's memory (an in-memory org must fit in it); `now` gives UTC without a zone.
        """
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_mb}MB",
            "python_enable_replacements": "false",
        }
        if str(path) == ":memory:":
            config["temp_directory"] = ""  # else a folder .tmp appears where the process runs
        try:
            self._connection = duckdb.connect(str(path), config=config)
        except duckdb.IOException as error:
            raise StorageError(
                f"sandbox org {path}: cannot be opened, is another sandbox using it? ({str(error).splitlines()[0]})"
            ) from None
        self._connection.execute("SET TimeZone = 'UTC'")
        self._lock = threading.RLock()
        self._transaction: Transaction | None = None
        self._inside: int | None = None
        self._org = Org(self._connection, now)
        if not self._org.objects:
            self._found()
        self.user_id = self._org.user_id
        self.organization_id = self._org.organization_id

    def _found(self) -> None:
        org = self._org
        with org.transaction():
            for spec in standard_objects().values():
                org.create(spec)
            moment = org.stamp()
            system = {
                "CreatedDate": moment, "CreatedById": org.user_id, "LastModifiedDate": moment,
                "LastModifiedById": org.user_id, "SystemModstamp": moment,
            }  # fmt: skip
            user = {
                "Id": org.user_id, "Username": USERNAME, "LastName": "Administrator",
                "FirstName": "System", "Email": USERNAME, "Alias": "admin", "IsActive": True,
            }  # fmt: skip
            own = {
                "Id": org.organization_id, "Name": "Sandbox", "OrganizationType": "Developer Edition",
                "InstanceName": "LOCAL", "IsSandbox": True,
            }  # fmt: skip
            for name, row in (("User", user), ("Organization", own)):
                org.append(org.object(name), {field: [value] for field, value in {**row, **system}.items()})

    def close(self) -> None:
        """Let go of the database; streams that were begun may be read to their end."""
        with self._lock:
            self._connection.close()

    # what the org looks like

    def objects(self) -> list[str]:
        """Names of all objects."""
        return list(self._org.objects)

    def object(self, name: str) -> ObjectType:
        """An object's metadata; NoSuchObject."""
        return self._org.object(name)

    def describe(self, name: str, *, version: str = VERSION) -> dict:
        """The body of sobjects/<name>/describe; NoSuchObject."""
        return describe_object(self.object(name), self._org.objects, version)

    def describe_global(self, *, version: str = VERSION) -> list[dict]:
        """The `sobjects` of GET sobjects."""
        return [summary(spec, version) for spec in self._org.objects.values()]

    # queries and transactions

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Writes of this thread that stand or fall together; its queries see them. An exception takes them back, as
        `rollback()` on what it gives does; one within another is part of it."""
        with self._lock:
            if self._transaction is not None:
                yield self._transaction
                return
            self._transaction, self._inside = Transaction(), threading.get_ident()
            try:
                with suppress(_Undone), self._org.transaction():
                    yield self._transaction
                    if self._transaction.undone:
                        raise _Undone
            finally:
                self._transaction = self._inside = None

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of its own, or the connection of this thread's transaction."""
        if self._inside == threading.get_ident():
            yield self._connection
            return
        cursor = self._connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def query(self, text: str, *, all_rows: bool = False) -> Result:
        """All rows of a SOQL query, with the recycle bin's if `all_rows`; SoqlError."""
        query = soql.parse(text)
        try:
            compiled, table = self._read(query, all_rows)
        except (duckdb.BinderException, duckdb.CatalogException):
            with self._lock:  # a field came or went between the translation and the start
                compiled, table = self._read(query, all_rows)
        if compiled.count_only:
            count = max(table.column(0)[0].as_py() - query.offset, 0)
            return Result(object=compiled.object, columns=[], types=[], table=pa.table({}),
                          count=count if query.limit is None else min(count, query.limit))  # fmt: skip
        return Result(object=compiled.object, columns=compiled.columns, types=compiled.types,
                      table=table.cast(zoned(table.schema)), aggregate=compiled.aggregate)  # fmt: skip

    def stream(self, text: str, *, all_rows: bool = False, batch_rows: int = 50_000) -> Stream:
        """The rows of a query batch by batch, as of this moment, in bounded memory; SoqlError, COUNT() included."""
        with self._lock:  # no field may go between the translation and the start
            compiled = self._compiled(soql.parse(text), all_rows)
            if compiled.count_only:
                raise SoqlError("MALFORMED_QUERY", "COUNT() has no rows to stream, query it")
            cursor = self._connection.cursor()
            rows = cursor.sql(compiled.sql, params=compiled.params).to_arrow_reader(batch_rows)
        schema = zoned(rows.schema)
        batches = pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in rows))
        weakref.finalize(batches, cursor.close)
        return Stream(object=compiled.object, columns=compiled.columns, types=compiled.types, batches=batches)

    def _compiled(self, query: Query, all_rows: bool) -> Compiled:
        return translate(query, self._org.objects, self._org.now(), all_rows=all_rows)

    def _read(self, query: Query, all_rows: bool) -> tuple[Compiled, pa.Table]:
        compiled = self._compiled(query, all_rows)
        with self._reading() as reader:
            return compiled, reader.sql(compiled.sql, params=compiled.params).to_arrow_table()

    # records

    def insert(self, object_: str, rows: Sequence[writes.Row]) -> list[RowResult]:
        """New rows, one result each in order; NoSuchObject, SoqlError where the object takes none.

        A row is field -> value, of JSON's types or text as in a CSV ("true", "1.5", ISO times); None and "" are null. A
        parent may be named by external id: {"Account.Key__c": value} or {"Account": {"Key__c": value}}.
        """
        with self._lock:
            return writes.insert(self._org, self.object(object_), rows)

    def update(self, object_: str, rows: Sequence[writes.Row]) -> list[RowResult]:
        """Rows changed, each with its Id; else as insert."""
        with self._lock:
            return writes.update(self._org, self.object(object_), rows)

    def upsert(self, object_: str, external_id: str, rows: Sequence[writes.Row]) -> list[RowResult]:
        """Rows changed where one has the value of the external id field (or Id), else new; SoqlError for others."""
        spec = self.object(object_)
        key = spec.get(external_id)
        if key is None or not (key.external_id or key.type == "id"):
            message = f"Provided external ID field does not exist or is not accessible: {external_id}"
            raise SoqlError("NOT_FOUND", message)
        with self._lock:
            return writes.upsert(self._org, spec, key, rows)

    def delete(self, object_: str, ids: Sequence[str]) -> list[RowResult]:
        """Into the recycle bin, with what hangs on the rows."""
        with self._lock:
            return deletes.delete(self._org, self.object(object_), ids)

    def undelete(self, object_: str, ids: Sequence[str]) -> list[RowResult]:
        """Out of the recycle bin, with what went in along."""
        with self._lock:
            return deletes.undelete(self._org, self.object(object_), ids)

    def hard_delete(self, object_: str, ids: Sequence[str]) -> list[RowResult]:
        """Removed without a trace, with what hangs on the rows."""
        with self._lock:
            return deletes.hard_delete(self._org, self.object(object_), ids)

    def load(self, tables: Mapping[str, Iterable[pa.Table]]) -> dict[str, int]:
        """Append raw rows as they are, ids and times included; columns such as "Order.AccountId" and those that the org
        derives are left out. Object -> rows; ValueError for an unknown column."""
        with self._lock:
            return loading.load(self._org, tables)

    # metadata

    def add_object(self, spec: ObjectType) -> None:
        """A new object; ValueError if its name or prefix is taken."""
        with self._lock, self._org.transaction():
            for one in self._org.objects.values():
                if one.name.lower() == spec.name.lower() or one.prefix == spec.prefix:
                    raise ValueError(
                        f"got object {spec.name} with prefix {spec.prefix}, expected neither to be {one.name}'s"
                    )
            self._org.create(spec)

    def add_field(self, object_: str, spec: Field) -> None:
        """A new field, its default (false for a checkbox) in every row; ValueError if its name is taken."""
        with self._lock, self._org.transaction():
            parent = self.object(object_)
            if parent.get(spec.name):
                raise ValueError(f"got field {spec.name}, expected one that {parent.name} does not have")
            if spec.formula is not None:
                check_formula(parent, spec.formula, self._org.objects)
            else:
                default = False if spec.type == "boolean" and spec.default is None else spec.default
                table = f'ALTER TABLE "{parent.name}" ADD COLUMN "{spec.name}" {SQL_TYPES[spec.type]}'
                self._connection.execute(table)
                if default is not None:
                    self._connection.execute(f'UPDATE "{parent.name}" SET "{spec.name}" = ?', [default])
            self._org.save(parent.with_field(spec))

    def drop_field(self, object_: str, name: str) -> None:
        """Remove a custom field and its values; ValueError for a standard one or one that a formula uses."""
        with self._lock, self._org.transaction():
            spec, one = self._org.field(object_, name)
            if not one.custom:
                raise ValueError(f"got {one.name}, expected a custom field: standard ones cannot be dropped")
            changed = spec.without_field(one.name)
            for other in (self._org.objects | {spec.name: changed}).values():
                for user in broken_formulas(other, self._org.objects | {spec.name: changed}):
                    message = f"got {one.name}, which formula {other.name}.{user} uses, expected one that none uses"
                    raise ValueError(message)
            if one.stored:
                self._connection.execute(f'ALTER TABLE "{spec.name}" DROP COLUMN "{one.name}"')
            self._org.save(changed)

    def retype_field(self, object_: str, name: str, type_: str) -> None:
        """Give a stored field another type; values that do not fit become null."""
        with self._lock, self._org.transaction():
            spec, one = self._org.field(object_, name)
            changed = replace(
                one, type=type_, length=0, scale=one.scale or (2 if type_ in ("double", "currency") else 0)
            )
            sql = f'ALTER TABLE "{spec.name}" ALTER "{one.name}" TYPE {SQL_TYPES[type_]}'
            self._connection.execute(f'{sql} USING try_cast("{one.name}" AS {SQL_TYPES[type_]})')
            self._org.save(spec.with_field(changed))

    def rename_picklist_value(self, object_: str, name: str, old: str, new: str) -> None:
        """Rename a value in the picklist and in all rows, whose SystemModstamp stands still, as in Salesforce."""
        with self._lock, self._org.transaction():
            spec, one = self._org.field(object_, name)
            if old not in one.values:
                raise ValueError(f"got value {old!r}, expected one of {one.name}: {', '.join(one.values)}")
            self._org.save(spec.with_field(replace(one, values=tuple(new if v == old else v for v in one.values))))
            self._connection.execute(f'UPDATE "{spec.name}" SET "{one.name}" = ? WHERE "{one.name}" = ?', [new, old])

    def set_formula(self, object_: str, name: str, formula: str) -> None:
        """Change a formula field: SQL over {Field} and {Parent.Field}, as "{Amount} * {Account.Factor__c}". Its values
        change at once, no row's SystemModstamp moves. ValueError for a field that is no formula, SoqlError for a path
        that is not there."""
        with self._lock, self._org.transaction():
            spec, one = self._org.field(object_, name)
            if not one.calculated:
                raise ValueError(f"got {one.name}, expected a formula field")
            changed = spec.with_field(replace(one, formula=formula))
            check_formula(changed, formula, {**self._org.objects, spec.name: changed})
            self._org.save(changed)


def zoned(schema: pa.Schema) -> pa.Schema:
    """The schema with its times in UTC."""
    utc = pa.timestamp("us", "UTC")
    return pa.schema([one.with_type(utc) if pa.types.is_timestamp(one.type) else one for one in schema])
