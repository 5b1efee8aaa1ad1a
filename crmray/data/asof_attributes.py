"""Attributes of customers, or of leads, as of past dates: which can be had, as what, and the report that says so.

Nothing is decided row by row: whether a row was modified after a date, and so whether its value is unknown, depends on
what happened after the date, and a hole in a column would tell the model. So an attribute is used at a date when it is
known for (nearly) all customers then, is null for all of them at other dates, and is kept out of the examples when it
is known at no training date. Where `history.insist` of the org file names it, it is today's value at those dates; a
leak is kept out nonetheless. At `now` every value is today's.

A lead is modified by its conversion, so that among leads a hole would tell the outcome even where it is rare: there an
attribute is known at a date only if it is known for (nearly) all of those with the outcome to come, and of the others.

Where the customers have no time of last modification, an attribute without history is taken as it stands, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.data import history
from crmray.data.history import NEVER, Field
from crmray.data.splits import Snapshots, micros
from crmray.errors import ConfigError
from crmray.sources import TableSource

MAX_UNKNOWN = 0.01
"""share of rows (of each group of them) of whom an attribute may be unknown at a date at which it is used"""
Groups = Callable[[pa.Table, int], list[np.ndarray]]
"""rows (N), date in µs -> masks (N,) of the groups of rows of which an attribute has to be known alike"""
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


def mapped_names(sources: Sequence[TableSource], *, table: str = "customers") -> set[str]:
    """`Object.Field` of every column that the org file maps to a table."""
    mapped = {column for source in sources for column in (*source.columns, *source.attributes)}
    return {field.name for field in fields_of(sources, mapped, table=table)}


def check_insisted(
    insist: Sequence[str], sources: Sequence[TableSource], fields: Sequence[Field], others: Collection[str] = ()
) -> None:
    """ConfigError for an insisted field that is no attribute, neither of the mapping nor among those at hand.

    others: names of attributes of other tables, which may be insisted on too.
    """
    names = {field.name for field in fields} | mapped_names(sources) | set(others)
    if unknown := sorted(set(insist) - names):
        raise ConfigError(
            f"history.insist: got {unknown[0]!r}, expected one of {', '.join(sorted(names)) or 'no field'};"
            " correct the name"
        )


def created(rows: pa.Table, as_of_us: int) -> list[np.ndarray]:
    """One group: the rows created before the date."""
    return [~history.unborn(rows, as_of_us)]


def survey(
    rows: pa.Table,
    changes: pa.Table | None,
    fields: Sequence[Field],
    dates: Sequence[datetime],
    *,
    key: str = "entity_id",
    groups: Groups = created,
) -> dict:
    """Counts of one shard, for `plan`: {"fields": per column, "dates": per ISO date}. Plain numbers that add up.

    Of each group of the rows at a date: how many there are, how many are valid as they stand, and of how many each
    attribute would be known if its history covered the date. key: column that is the changes' entity_id.
    """
    empty = pa.table({}) if changes is None else changes
    masks = {date: groups(rows, micros(date)) for date in dates}
    about: dict[str, dict[str, int]] = {}
    covered: dict[datetime, list[dict[str, int]]] = {date: [{} for _ in masks[date]] for date in dates}
    for field in fields:
        its = _changes(empty, field, rows, key)
        breaks = its.breaks_us(rows[field.column].combine_chunks())
        about[field.column] = {
            "changes": len(its),
            "first_us": int(its.time_us.min()) if len(its) else NEVER,
            "breaks": len(breaks),
            "break_us": int(breaks.max()) if len(breaks) else 0,
        }
        for date in dates:
            _, sure = history.values(rows, field, its, date, covered_from_us=0)
            for of_group, mask in zip(covered[date], masks[date], strict=True):
                of_group[field.column] = int((sure & mask).sum())
    counts = {}
    for date in dates:
        stands = history.standing(rows, micros(date))
        counts[date.isoformat()] = [
            {"rows": int(mask.sum()), "standing": int((stands & mask).sum()), "covered": of_group}
            for of_group, mask in zip(covered[date], masks[date], strict=True)
        ]
    return {"fields": about, "dates": counts}


def _changes(changes: pa.Table, field: Field, rows: pa.Table, key: str) -> history.Changes:
    if changes.num_columns:
        return history.changes_of(changes, field, rows, key=key)
    none = pa.array([], rows.schema.field(field.column).type)
    zero = np.zeros(0, np.int64)
    return history.Changes(code=zero, time_us=zero, old=none, new=none, kept=zero.astype(bool), n=rows.num_rows)


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
        dates[date] = [
            {
                "rows": sum(of_group["rows"] for of_group in shards),
                "standing": sum(of_group["standing"] for of_group in shards),
                "covered": {column: sum(of_group["covered"][column] for of_group in shards) for column in fields},
            }
            for shards in zip(*(part["dates"][date] for part in surveys), strict=True)
        ]
    return {"fields": fields, "dates": dates}


def plan(
    counts: Mapping[str, Any], fields: Sequence[Field], dates: Snapshots, *, has_modified: bool, insist: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What becomes of each attribute: column -> report, which `at` follows. JSON.

    {object, field, status, covered_from (ISO or null), covered_from_us, changes (number), known (ISO date -> share of
    rows, of the group of which least is known), dates (ISO, at which it is used), insisted, used: "as of" | "today's" |
    "kept out"}.
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
    for date, groups in counts["dates"].items():
        covered = micros(datetime.fromisoformat(date)) >= covered_us
        shares = [
            (of_group["covered"][field.column] if covered else of_group["standing"]) / of_group["rows"]
            for of_group in groups
            if of_group["rows"]
        ]
        known[date] = round(min(shares, default=0.0), 4)
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
    rows: pa.Table, changes: pa.Table | None, plan: Mapping[str, Mapping[str, Any]], *, key: str = "entity_id"
) -> dict[str, history.Changes]:
    """Column -> its changes, of the attributes that are used as of past dates. key: as in `survey`."""
    past = pa.table({}) if changes is None else changes
    return {
        column: _changes(past, Field(column=column, object=how["object"], field=how["field"]), rows, key)
        for column, how in plan.items()
        if how["used"] == "as of"
    }


def at(
    customers: pa.Table,
    past: Mapping[str, history.Changes],
    as_of: datetime | None,
    plan: Mapping[str, Mapping[str, Any]],
) -> pa.Table:
    """The table as the examples may see it at a date; None: now. past: histories of these rows. Pure."""
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
