"""What the rows of an org say of a definition (crmray.data.definitions): who is in its population, and what came.

N entities, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import history, outcomes
from crmray.data.asof_rows import micros_of
from crmray.data.conditions import Canonical, is_date, matches
from crmray.data.definitions import Kind, Outcome, Segment
from crmray.data.splits import micros
from crmray.errors import DataError, did_you_mean


def chosen(tables: Mapping[str, pa.Table], table: str, where: Mapping[str, Any], key: str) -> pa.Table:
    """The rows of a table that meet the conditions; none where nothing of that table is known of somebody described.

    DataError for a column that the table does not have, and for a value that its type cannot be compared with.
    """
    if table not in tables:
        return schema.empty(table)
    rows = tables[table]
    for column in where:
        if column not in rows.column_names:
            raise DataError(
                f"{key}: table {table} has no column {column!r} with a value (that was known at the dates of the "
                f"examples), got {', '.join(rows.column_names)}{did_you_mean(column, rows.column_names)}"
            )
        _check_comparable(rows, column, where[column], f"{key}: table {table}: column {column!r}")
    return rows.filter(matches(rows, where, Canonical(table=table), key=key)) if where else rows


def _check_comparable(rows: pa.Table, column: str, condition: Any, place: str) -> None:
    """DataError for a number, a date or a bool that is compared with something else. Text is compared with anything:
    what reads as a number or a date is compared as one."""
    conditions = condition if isinstance(condition, Mapping) else {"eq": condition}
    type_ = rows.schema.field(column).type
    for name, operand in conditions.items():
        operands = operand if isinstance(operand, list) else [operand]
        expected = _expected(type_, operands) if name not in ("missing", "matches") else None
        if expected:
            raise DataError(f"{place}: {name}: got {operand!r}, expected {expected}: its values are of type {type_}")


def _expected(type_: pa.DataType, operands: Sequence[Any]) -> str | None:
    """What a column of this type is compared with, if one of the operands is something else."""
    are_bool = all(isinstance(one, bool) for one in operands)
    if pa.types.is_boolean(type_):
        return None if are_bool else "true or false"
    if pa.types.is_timestamp(type_):
        return None if all(map(is_date, operands)) else "a date"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return None if not are_bool and all(isinstance(one, (int, float)) for one in operands) else "a number"
    return None


def known_before(rows: pa.Table, table: str, moment: datetime | None) -> pa.Table:
    """The rows as they stood at a moment, as far as the dates in them tell: what a later date says (that a subscription
    ended, that a case was closed) was not known then, nor the rating of a case that was not closed."""
    if moment is None:
        return rows
    if table == "interactions":
        rows = history.until_closed(rows, moment)
    spec, limit = schema.table(table), pa.scalar(moment, schema.TIME)
    for name, type_ in spec.fields.items():
        if name in rows.column_names and pa.types.is_timestamp(type_) and name != spec.time:
            told = pc.if_else(pc.less(rows[name], limit), rows[name], pa.scalar(None, type_))
            rows = rows.set_column(rows.schema.get_field_index(name), name, told)
    return rows


def place_of(ids: pa.ChunkedArray, entities: pa.Array) -> np.ndarray:
    """(R,) index of each row's entity, -1 for none of them."""
    return pc.index_in(ids.cast(pa.string()), value_set=entities).fill_null(-1).to_numpy().astype(np.int64)


def in_segment(
    segment: Segment, rows: pa.Table, ids: str, entities: pa.Array, as_of: datetime | None, *, num: str = ""
) -> np.ndarray:
    """(N,) bool: entities with at_least to at_most of the chosen rows. num: column with how many a row stands for."""
    time = schema.table(segment.table).time
    place = place_of(rows[ids], entities)
    keep = place >= 0
    if time is not None and as_of is not None:
        times = micros_of(rows[time])
        keep &= times < micros(as_of)
        if segment.days is not None:
            keep &= times >= micros(as_of - timedelta(days=segment.days))
    weights = rows[num].to_numpy()[keep] if num else None
    counts = np.bincount(place[keep], weights, len(entities))
    return (counts >= segment.at_least) & (counts <= (np.inf if segment.at_most is None else segment.at_most))


def measured(
    outcome: Outcome, rows: pa.Table, ids: str, entities: pa.Array, start: datetime, end: datetime, kind: Kind,
    *, num: str = "",
) -> pa.Array:  # fmt: skip
    """(N,) label of the chosen rows in [start, end); null where there is no value. num: as in in_segment."""
    times, place = micros_of(rows[schema.table(outcome.table).time or ""]), place_of(rows[ids], entities)
    keep = (place >= 0) & (times >= micros(start)) & (times < micros(end))
    place, size = place[keep], len(entities)
    weights = rows[num].to_numpy()[keep] if num else None
    if outcome.measure in ("exists", "none", "count"):
        counts = np.bincount(place, weights, size)
        if outcome.measure == "count":
            return pa.array(counts.astype(np.float64))
        enough = counts >= outcome.at_least
        return pa.array((enough if outcome.measure == "exists" else ~enough).astype(np.int8))
    if outcome.column not in rows.column_names:
        hint = did_you_mean(outcome.column, rows.column_names)
        raise DataError(f"outcome: table {outcome.table} has no column {outcome.column!r} with a value{hint}")
    values = rows[outcome.column].filter(pa.array(keep)).combine_chunks()
    if outcome.measure in ("first", "last"):
        known = pc.is_valid(values).to_numpy(zero_copy_only=False)
        order = np.lexsort((times[keep], place))
        order = order[known[order]]
        order = order[::-1] if outcome.measure == "last" else order
        found, first = np.unique(place[order], return_index=True)
        at = np.full(size, -1)
        at[found] = order[first]
        return as_label(values.take(pa.array(at, mask=at < 0)), kind, f"table {outcome.table}: {outcome.column!r}")
    numbers = _numbers(values, f"table {outcome.table}: column {outcome.column!r}")
    known = ~np.isnan(numbers)
    sums = np.bincount(place[known], numbers[known], size)
    if outcome.measure == "sum":
        return pa.array(sums)
    counts = np.bincount(place[known], minlength=size)
    return pa.array(np.divide(sums, counts, out=np.zeros(size), where=counts > 0), mask=counts == 0)


def given(outcome: Outcome, table: pa.Table, entities: pa.Array, as_of: datetime | None, horizon_days: int) -> pa.Array:
    """(N,) given labels of that name (in the horizon, where there is time); null where there is none."""
    if outcome.kind in (None, "yes_no"):
        ids, label, _ = outcomes.yes_no(table, outcome.given, as_of, horizon_days)
        return pa.array(label.astype(np.int8)).take(pc.index_in(entities, value_set=ids))
    rows = outcomes.named(table, outcome.given)
    place = place_of(rows["entity_id"], entities)
    keep = place >= 0
    if as_of is not None:
        times = micros_of(rows["as_of"])
        keep &= (times >= micros(as_of)) & (times < micros(as_of + timedelta(days=horizon_days)))
    counts = np.bincount(place[keep], minlength=len(entities))
    sums = np.bincount(place[keep], rows["value"].to_numpy()[keep], len(entities))
    return pa.array(np.divide(sums, counts, out=np.zeros(len(entities)), where=counts > 0), mask=counts == 0)


def mapped_part(outcome: Outcome, table: pa.Table, entities: pa.Array) -> pa.Array | None:
    """(N,) part of each entity where the given labels have a `split`; None where they have none."""
    if "split" not in table.column_names:
        return None
    rows = outcomes.named(table, outcome.given)
    return rows["split"].combine_chunks().take(pc.index_in(entities, value_set=rows["entity_id"].combine_chunks()))


def as_label(values: pa.Array, kind: Kind, where: str) -> pa.Array:
    """Values as int8 0/1, float64 or string. DataError for what is not of that kind."""
    if kind == "class":
        return values.cast(pa.string())
    numbers = _numbers(values, where)
    missing = np.isnan(numbers)
    if kind == "yes_no":
        wrong = ~missing & ~np.isin(numbers, (0.0, 1.0))
        if wrong.any():
            raise DataError(f"{where}: got {numbers[wrong][0]:g}, expected true and false, or 0 and 1, for kind yes_no")
        return pa.array(np.where(missing, 0, numbers).astype(np.int8), mask=missing)
    return pa.array(numbers, mask=missing)


def _numbers(values: pa.Array, where: str) -> np.ndarray:
    """float64, NaN where missing."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise DataError(f"{where}: got {values.type}, expected numbers")
    numbers = pc.cast(pc.cast(values, pa.int8()) if pa.types.is_boolean(values.type) else values, pa.float64())
    return np.array(numbers.to_numpy(zero_copy_only=False), np.float64)
