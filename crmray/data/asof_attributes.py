"""Customers' attributes as of past dates: which can be had, as what, and the report that says so.

Nothing is decided row by row: whether a row was modified after a date, and so whether its value is unknown, depends on
what happened after the date, and a hole in a column would tell the model. So an attribute is used at a date when it is
known for (nearly) all customers then, is null for all of them at other dates, and is kept out of the examples when it
is known at no training date. Where `history.insist` of the org file names it, it is today's value at those dates; a
leak is kept out nonetheless. At `now` every value is today's.

Where the customers have no time of last modification, an attribute without history is taken as it stands, as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.config import TableSource
from crmray.data import history
from crmray.data.history import NEVER, Field
from crmray.data.splits import Snapshots, micros
from crmray.errors import ConfigError

MAX_UNKNOWN = 0.01
"""share of customers of whom an attribute may be unknown at a date at which it is used"""
KEYS = ("entity_id", "created_at", "modified_at")
"""columns of the customers table that are no attributes"""
TRACKED, PARTLY, NOT, STANDS, UNCHECKED = (
    "tracked", "partly covered", "not reconstructable", "valid as it stands", "not checked",
)  # fmt: skip


def fields_of(sources: Sequence[TableSource], columns: Iterable[str], *, table: str = "customers") -> list[Field]:
    """The attributes among the columns of a table, and how the changes table names them: by the source's object and
    field; an object that is a file is named as the table."""
    fields = []
    for column in columns:
        if column in KEYS:
            continue
        names = {source.columns[column]: source.object for source in sources if column in source.columns}
        first = next(iter(names.items()), (column, sources[0].object if sources else ""))
        fields.append(Field(column=column, object=first[1] or table, field=first[0]))
    return fields


def check_insisted(insist: Sequence[str], sources: Sequence[TableSource], fields: Sequence[Field]) -> None:
    """ConfigError for an insisted field that is no attribute, neither of the mapping nor among those at hand."""
    mapped = {column for source in sources for column in (*source.columns, *source.attributes)}
    names = {field.name for field in (*fields, *fields_of(sources, mapped))}
    if unknown := sorted(set(insist) - names):
        raise ConfigError(
            f"history.insist: got {unknown[0]!r}, expected one of {', '.join(sorted(names)) or 'no field'};"
            " correct the name"
        )


def survey(customers: pa.Table, changes: pa.Table | None, fields: Sequence[Field], dates: Sequence[datetime]) -> dict:
    """Counts of one shard, for `plan`: {"fields": per column, "dates": per ISO date}. Plain numbers that add up.

    Of the customers created before a date: how many there are, how many are valid as they stand, and of how many each
    attribute would be known if its history covered the date.
    """
    empty = pa.table({}) if changes is None else changes
    born = {date: ~history.unborn(customers, micros(date)) for date in dates}
    about: dict[str, dict[str, int]] = {}
    covered: dict[datetime, dict[str, int]] = {date: {} for date in dates}
    for field in fields:
        its = _changes(empty, field, customers)
        breaks = its.breaks_us(customers[field.column].combine_chunks())
        about[field.column] = {
            "changes": len(its),
            "first_us": int(its.time_us.min()) if len(its) else NEVER,
            "breaks": len(breaks),
            "break_us": int(breaks.max()) if len(breaks) else 0,
        }
        for date in dates:
            _, sure = history.values(customers, field, its, date, covered_from_us=0)
            covered[date][field.column] = int((sure & born[date]).sum())
    counts = {
        date.isoformat(): {
            "rows": int(born[date].sum()),
            "standing": int((history.standing(customers, micros(date)) & born[date]).sum()),
            "covered": covered[date],
        }
        for date in dates
    }
    return {"fields": about, "dates": counts}


def _changes(changes: pa.Table, field: Field, customers: pa.Table) -> history.Changes:
    if changes.num_columns:
        return history.changes_of(changes, field, customers)
    none = pa.array([], customers.schema.field(field.column).type)
    zero = np.zeros(0, np.int64)
    return history.Changes(code=zero, time_us=zero, old=none, new=none, kept=zero.astype(bool), n=customers.num_rows)


def merge(surveys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Surveys of all shards in one."""
    first = surveys[0]
    fields = {}
    for column in first["fields"]:
        parts = [part["fields"][column] for part in surveys]
        fields[column] = {
            "changes": sum(part["changes"] for part in parts),
            "first_us": min(part["first_us"] for part in parts),
            "breaks": sum(part["breaks"] for part in parts),
            "break_us": max(part["break_us"] for part in parts),
        }
    dates = {}
    for date in first["dates"]:
        days = [part["dates"][date] for part in surveys]
        dates[date] = {
            "rows": sum(day["rows"] for day in days),
            "standing": sum(day["standing"] for day in days),
            "covered": {column: sum(day["covered"][column] for day in days) for column in fields},
        }
    return {"fields": fields, "dates": dates}


def plan(
    counts: Mapping[str, Any], fields: Sequence[Field], dates: Snapshots, *, has_modified: bool, insist: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What becomes of each attribute: column -> report, which `at` follows. JSON.

    {object, field, status, covered_from (ISO or null), covered_from_us, changes (number), known (ISO date -> share of
    customers), dates (ISO, at which it is used), insisted, used: "as of" | "today's" | "kept out"}.
    """
    return {
        field.column: _one(counts, field, dates, has_modified=has_modified, insisted=field.name in insist)
        for field in fields
    }


def _one(
    counts: Mapping[str, Any], field: Field, dates: Snapshots, *, has_modified: bool, insisted: bool
) -> dict[str, Any]:
    about = counts["fields"][field.column]
    covered_us = about["first_us"]
    if about["breaks"] > MAX_UNKNOWN * about["changes"]:
        covered_us = max(covered_us, about["break_us"])
    known = {}
    for date, day in counts["dates"].items():
        covered = micros(datetime.fromisoformat(date)) >= covered_us
        sure = day["covered"][field.column] if covered else day["standing"]
        known[date] = round(sure / max(day["rows"], 1), 4)
    good = [date for date, share in known.items() if share >= 1 - MAX_UNKNOWN]
    unchecked = not about["changes"] and not has_modified
    if unchecked:
        status = UNCHECKED
    elif len(good) == len(known):
        status = TRACKED if about["changes"] else STANDS
    else:
        status = PARTLY if good or covered_us != NEVER else NOT
    trained = {date.isoformat() for date in dates.train} & set(good)
    used = "as of" if trained else "today's" if insisted or unchecked else "kept out"
    return {
        "object": field.object,
        "field": field.field,
        "status": status,
        "covered_from": _iso(covered_us) or (min(good) if good and status == PARTLY else None),
        "covered_from_us": covered_us,
        "changes": about["changes"],
        "known": known,
        "dates": good,
        "insisted": insisted,
        "used": used,
    }


def _iso(moment_us: int) -> str | None:
    if moment_us == NEVER:
        return None
    return datetime.fromtimestamp(moment_us // 1_000_000, timezone.utc).isoformat()


def histories(
    customers: pa.Table, changes: pa.Table | None, plan: Mapping[str, Mapping[str, Any]]
) -> dict[str, history.Changes]:
    """Column -> its changes, of the attributes that are used as of past dates."""
    past = pa.table({}) if changes is None else changes
    return {
        column: _changes(past, Field(column=column, object=how["object"], field=how["field"]), customers)
        for column, how in plan.items()
        if how["used"] == "as of"
    }


def at(
    customers: pa.Table,
    past: Mapping[str, history.Changes],
    as_of: datetime | None,
    plan: Mapping[str, Mapping[str, Any]],
) -> pa.Table:
    """The customers table as the examples may see it at a date; None: now. past: histories of these rows. Pure."""
    rows = customers.drop_columns([column for column, how in plan.items() if how["used"] == "kept out"])
    if as_of is None:
        return rows
    for column, its in past.items():
        how = plan[column]
        if how["insisted"] and as_of.isoformat() not in how["dates"]:
            continue
        then = pa.nulls(rows.num_rows, rows.schema.field(column).type)
        if as_of.isoformat() in how["dates"]:
            field = Field(column=column, object=how["object"], field=how["field"])
            then, _ = history.values(customers, field, its, as_of, covered_from_us=how["covered_from_us"])
        rows = rows.set_column(rows.schema.get_field_index(column), column, then)
    return rows


def suspects(
    past: Mapping[str, history.Changes], plan: Mapping[str, Mapping[str, Any]]
) -> dict[Field, history.Changes | None]:
    """The attributes in use that may be leaks: those with a history, with their changes, and those that are today's at
    past dates because the org file insists, with None. What is valid as it stands cannot be one."""
    found: dict[Field, history.Changes | None] = {}
    for column, how in plan.items():
        field = Field(column=column, object=how["object"], field=how["field"])
        if how["used"] == "as of" and how["changes"]:
            found[field] = past[column]
        elif how["used"] != "kept out" and how["insisted"] and how["status"] in (PARTLY, NOT):
            found[field] = None
    return found


def block(plan: dict[str, dict[str, Any]], leaks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The plan with the leaks kept out and their evidence beside them."""
    return {
        column: {**how, "used": "kept out", "leak": dict(leaks[column])} if column in leaks else how
        for column, how in plan.items()
    }


def told(plan: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The report as the manifest has it."""
    return {column: {key: how[key] for key in how if key != "covered_from_us"} for column, how in plan.items()}
