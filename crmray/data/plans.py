"""Before a table is sharded: the plans of its sources, checked against what ingest brought, with all types decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pyarrow as pa

from crmray import schema
from crmray.config import Org
from crmray.data import infer, parse
from crmray.data.clean import Plan
from crmray.data.ingest import Origin, attributes
from crmray.errors import DataError
from crmray.storage import Run

MapShards = Callable[..., Iterator[tuple[Any, Any]]]
"""`cluster.map_shards`, or `inline` where there is no cluster"""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """One source of a table, ready to be read: its raw run and the plan for its rows."""

    run: Run
    """in raw/"""
    plan: Plan
    """how its rows become rows of the table"""
    parts: tuple[str, ...]
    """its Parquet files, in source order"""


def inline(fn: Callable[[Any], Any], items: Iterable[Any], **_: Any) -> Iterator[tuple[Any, Any]]:
    """`map_shards` in this process."""
    for item in items:
        yield item, fn(item)


def feeds(org: Org, pairs: list[tuple[Origin, Run]], map_shards: MapShards = inline) -> list[Feed]:
    """The feeds of one table from its sources and their raw runs.

    DataError or SchemaError names the first column that is not there or cannot be what it is mapped to.
    """
    manifests = [run.manifest() for _, run in pairs]
    found = [_attribute_types(origin, run, manifest, map_shards) for (origin, run), manifest in zip(pairs, manifests, strict=True)]
    types = infer.common(found)
    made = []
    for (origin, run), manifest in zip(pairs, manifests, strict=True):
        source = origin.source
        plan = Plan(
            table=origin.table,
            columns=source.columns,
            values=source.values,
            drop=tuple(source.drop),
            attributes=types,
            time_zone=source.time_zone,
            date_format=source.date_format,
            decimal=source.decimal,
            currency=org.currency,
            latest=_latest(manifest),
        )
        _check(origin, manifest, plan)
        made.append(Feed(run=run, plan=plan, parts=tuple(run.files("*.parquet"))))
    return made


def _latest(manifest: dict[str, Any]) -> datetime:
    """One day after the data's end, where the source knows it, else after it was ingested."""
    end = datetime.fromisoformat(str(manifest.get("data_end") or manifest["created_at"]))
    end = end if end.tzinfo else end.replace(tzinfo=timezone.utc)
    return end + timedelta(days=1)


def _attribute_types(origin: Origin, run: Run, manifest: dict[str, Any], map_shards: MapShards) -> dict[str, pa.DataType]:
    """Type of each attribute of one source, by its own type or, for text, by a pass over all values."""
    parts = run.files("*.parquet")
    there = run.open_parquet(parts[0]).schema_arrow
    names = attributes(origin.source, there.names)
    for name in names:
        if name not in there.names:
            raise DataError(f"table {origin.table}: attribute {name!r} is not in raw/{origin.raw}, expected one of {there.names}")
    open_ = [name for name in names if manifest.get("text") and parse.is_text(there.field(name).type)]
    typed = {name: infer.of_type(origin.table, name, there.field(name).type) for name in names if name not in open_}
    kinds = {name: set(infer.KINDS) for name in open_}
    if open_:
        look = partial(_possible, run, open_, origin.source.decimal)
        for _, seen in map_shards(look, parts, label=f"shard.{origin.table}.types"):
            kinds = {name: kinds[name] & seen[name] for name in open_}
    return {name: typed.get(name) or infer.decide(kinds[name]) for name in names}


def _possible(run: Run, names: list[str], decimal: str, part: str) -> dict[str, set[str]]:
    rows = run.read_table([part], columns=names)
    return {name: infer.possible(rows[name], decimal) for name in names}


def _check(origin: Origin, manifest: dict[str, Any], plan: Plan) -> None:
    """Refuse columns that are absent or of a type that can never be right, before any row is read."""
    there = manifest["columns"]
    conditions = {column: column for entry in plan.drop for column in entry}
    for name, column in {**conditions, **plan.columns}.items():
        if column not in there:
            raise DataError(
                f"table {origin.table}: column {name} is mapped to {column!r}, expected one of {sorted(there)} of raw/{origin.raw}"
            )
    fields = schema.table(origin.table).fields
    for name, column in plan.columns.items():
        if fields[name] == schema.TIME and plan.date_format != parse.ORDINAL and there[column] in _NO_TIMES:
            raise DataError(
                f"table {origin.table}: column {name}: source column {column!r} is {there[column]}, expected times or text; "
                "for positions without a clock set `date_format: ordinal`"
            )


_NO_TIMES = {str(type_) for type_ in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_())}
