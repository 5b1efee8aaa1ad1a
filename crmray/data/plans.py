"""Before a table is sharded: the plans of its sources, checked against what ingest brought, with all types decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """The feeds of one table from its sources and their raw runs; sources without rows are left out.

    DataError or SchemaError names the first column that is not there or cannot be what it is mapped to.
    """
    filled = [(origin, run, parts) for origin, run in pairs if (parts := tuple(run.files("*.parquet")))]
    there = [run.open_parquet(parts[0]).schema_arrow for _, run, parts in filled]
    found = [
        _attribute_types(origin, run, parts, columns, map_shards)
        for (origin, run, parts), columns in zip(filled, there, strict=True)
    ]
    types = infer.common(found)
    made = []
    for (origin, run, parts), columns in zip(filled, there, strict=True):
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
            latest=_latest(run.manifest()),
        )
        _check(origin, columns, plan)
        made.append(Feed(run=run, plan=plan, parts=parts))
    return made


def _latest(manifest: Mapping[str, Any]) -> datetime:
    """One day after the data's end, where the source knows it, else after it was ingested."""
    end = datetime.fromisoformat(str(manifest.get("data_end") or manifest["created_at"]))
    end = end if end.tzinfo else end.replace(tzinfo=timezone.utc)
    return end + timedelta(days=1)


def _attribute_types(
    origin: Origin, run: Run, parts: Sequence[str], there: pa.Schema, map_shards: MapShards
) -> dict[str, pa.DataType]:
    """Type of each attribute of one source: its own or, for text of a CSV file, that of all its values."""
    names = attributes(origin.source, there.names)
    for name in names:
        if name not in there.names:
            raise DataError(
                f"table {origin.table}: attribute {name!r} is not there, expected one of {there.names} of "
                f"raw/{origin.raw}; correct `attributes:`"
            )
    untyped = run.manifest().get("text", False)
    open_ = [name for name in names if untyped and parse.is_text(there.field(name).type)]
    typed = {name: infer.of_type(origin.table, name, there.field(name).type) for name in names if name not in open_}
    kinds = {name: set(infer.KINDS) for name in open_}
    if open_:
        look = partial(_possible, run, open_, origin.source.decimal)
        for _, seen in map_shards(look, parts, label=f"shard.{origin.table}.types"):
            kinds = {name: kinds[name] & seen[name] for name in open_}
    return {name: typed[name] if name in typed else infer.decide(kinds[name]) for name in names}


def _possible(run: Run, names: list[str], decimal: str, part: str) -> dict[str, set[str]]:
    rows = run.read_table([part], columns=names)
    return {name: infer.possible(rows[name], decimal) for name in names}


def _check(origin: Origin, there: pa.Schema, plan: Plan) -> None:
    """Refuse columns that are absent or of a type that can never be right, before any row is read."""
    looked_at = [("drop", column) for entry in plan.drop for column in entry]
    for name, column in [*looked_at, *plan.columns.items()]:
        if column not in there.names:
            raise DataError(
                f"table {origin.table}: {name}: source column {column!r} is not there, expected one of {there.names} "
                f"of raw/{origin.raw}; correct the mapping"
            )
    fields = schema.table(origin.table).fields
    for name, column in plan.columns.items():
        type_ = there.field(column).type
        number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)
        if fields[name] == schema.TIME and plan.date_format != parse.ORDINAL and number:
            raise DataError(
                f"table {origin.table}: column {name}: source column {column!r} is {type_}, expected times or text; "
                "for positions without a clock set `date_format: ordinal`"
            )
