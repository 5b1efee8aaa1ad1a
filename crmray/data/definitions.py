"""What a prediction of one's own is about, as an org file defines it: whom, what came, and within which time.

    population: [{table: transactions, where: {channel: web}, days: 365, at_least: 2}]
    outcome:    {table: interactions, where: {channel: case}, measure: exists}

`where` has the conditions of `drop:` (crmray.data.conditions), on columns and attributes of a canonical table. N
entities, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from crmray import schema
from crmray.config import Part
from crmray.data import history, outcomes
from crmray.data.asof_rows import micros_of
from crmray.data.conditions import Canonical, is_date, matches
from crmray.data.splits import micros
from crmray.errors import DataError, did_you_mean
from crmray.sources import CONDITIONS

Entity = Literal["customer", "lead", "product"]
Kind = Literal["yes_no", "number", "class"]
OWN_TABLES: dict[Entity, str] = {"customer": "customers", "lead": "leads", "product": "products"}
"""entity -> the table that has one row of each"""
EVENTS: dict[Entity, dict[str, str]] = {
    "customer": dict.fromkeys(
        ("transactions", "interactions", "engagement", "exposures", "subscriptions", "changes"), "entity_id"
    ),
    "lead": dict.fromkeys(("interactions", "engagement", "exposures", "changes"), "entity_id"),
    "product": {"transactions": "product_id", "engagement": "product_id"},
}
"""entity -> tables of what happened to it, and the column there that holds its id"""
FREE_TEXT = ("text", "subject", "name")
KINDS: dict[str, Kind | None] = {
    "exists": "yes_no", "none": "yes_no", "count": "number", "sum": "number", "mean": "number", "first": None,
    "last": None,
}  # fmt: skip
"""measure -> kind of the label; None: that of the column"""


def _check_where(where: Mapping[str, Any]) -> None:
    for column, condition in where.items():
        conditions = condition if isinstance(condition, Mapping) else {"eq": condition}
        unknown = set(conditions) - set(CONDITIONS)
        if unknown or not conditions:
            raise ValueError(f"where: column {column}: got condition {sorted(unknown)}, expected one of {CONDITIONS}")
        for name, operand in conditions.items():
            if wrong := _wrong_operand(name, operand):
                raise ValueError(f"where: column {column}: {name}: {wrong}")


def _wrong_operand(name: str, operand: Any) -> str | None:
    """What is wrong with it, whatever the column; None where nothing is."""
    operands = operand if name == "in" and isinstance(operand, list) else [operand]
    if not operands or any(one is None for one in operands):
        return "got nothing, expected a value; {missing: true} is for rows without one"
    if name == "in" and operands is not operand:
        return f"got {operand!r}, expected a list of values"
    if name == "missing" and not isinstance(operand, bool):
        return f"got {operand!r}, expected true or false"
    if name == "matches":
        try:
            pc.match_substring_regex(pa.array([""]), str(operand))
        except pa.ArrowInvalid as error:
            return f"got {operand!r}, expected a regular expression (RE2): {error}"
    return None


class Segment(Part):
    """A condition on whom the prediction is about."""

    table: str
    """the entity's own table, or one of what happened to it before as_of"""
    where: dict[str, Any] = Field(default_factory=dict)
    """conditions on its rows: column -> value, or {eq|ne|lt|le|gt|ge|in|matches|missing: …}"""
    days: Annotated[int, Field(ge=1, le=3650)] | None = None
    """rows at most so many days before as_of count; default: all before it"""
    at_least: Annotated[int, Field(ge=0)] = 1
    """rows that match"""
    at_most: Annotated[int, Field(ge=0)] | None = None
    """rows that match; 0 with at_least 0: none"""

    @model_validator(mode="after")
    def _checked(self) -> Segment:
        _check_where(self.where)
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"got at_most {self.at_most}, expected at_least ({self.at_least}) or more")
        return self


class Outcome(Part):
    """What is predicted: something that happens within the horizon, a given label, or a field where it is not known."""

    table: str = ""
    """where the events of the horizon stand"""
    where: dict[str, Any] = Field(default_factory=dict)
    """which of its rows count, as in `population`"""
    measure: Literal["exists", "none", "count", "sum", "mean", "first", "last"] = "exists"
    """of these rows: is there one (or none), how many, the sum, mean, first or last value of `column`"""
    column: str = ""
    """with sum, mean, first and last"""
    at_least: Annotated[int, Field(ge=1)] = 1
    """with exists and none: rows that it takes"""
    given: str = ""
    """instead of a table: name of a label in the outcomes table"""
    attribute: str = ""
    """instead of a table: column of the entity's own table; learned where it has a value, predicted for everyone"""
    kind: Kind | None = None
    """yes_no | number | class; default: what follows from the measure, or from the column's type"""

    @model_validator(mode="after")
    def _checked(self) -> Outcome:
        said = [name for name in ("table", "given", "attribute") if getattr(self, name)]
        if len(said) != 1:
            raise ValueError(f"got {said or 'none'} of table, given, attribute; expected exactly one of them")
        if self.table:
            self._check_measure()
        elif self.where or self.column or self.measure != "exists":
            raise ValueError(f"got where, column or measure with {said[0]}; expected them with table only")
        if (self.column or self.attribute) in FREE_TEXT:
            raise ValueError(
                f"got {self.column or self.attribute!r}, expected a column with few values: free text is none"
            )
        if self.given and self.kind == "class":
            raise ValueError("kind: got class with given, expected yes_no or number: given labels are numbers")
        _check_where(self.where)
        return self

    def _check_measure(self) -> None:
        needs_column = self.measure in ("sum", "mean", "first", "last")
        if needs_column != bool(self.column):
            raise ValueError(
                f"column: got {self.column!r} with measure {self.measure}, expected "
                f"{'the column to take it of' if needs_column else 'none'}"
            )
        if self.at_least > 1 and self.measure not in ("exists", "none"):
            raise ValueError(f"at_least: got {self.at_least} with measure {self.measure}, expected exists or none")
        fixed = KINDS[self.measure]
        if fixed is not None and self.kind not in (None, fixed):
            raise ValueError(f"kind: got {self.kind} with measure {self.measure}, expected {fixed} or nothing")

    def kind_for(self, entity: Entity) -> Kind:
        """Kind of the label. ValueError where it has to be said."""
        if self.kind is not None:
            return self.kind
        if self.given:
            return "yes_no"
        fixed = KINDS[self.measure] if self.table else None
        if fixed is not None:
            return fixed
        table, column = (self.table, self.column) if self.table else (OWN_TABLES[entity], self.attribute)
        fields = schema.table(table).fields
        if column not in fields:
            raise ValueError(f"kind: got nothing for attribute {column!r} of {table}, expected yes_no, number or class")
        return "class" if pa.types.is_string(fields[column]) else "number"


# -- rows and masks ----------------------------------------------------------------------------------------------------


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


def label_type(kind: Kind) -> pa.DataType:
    """Arrow type of the label column."""
    return {"yes_no": pa.int8(), "number": pa.float64(), "class": pa.string()}[kind]


def check_table(entity: Entity, table: str, *, own: bool) -> None:
    """ValueError for a table that says nothing of this entity. own: whether its own table will do."""
    allowed = [*EVENTS[entity], *([OWN_TABLES[entity]] if own else [])]
    if table not in allowed:
        hint = did_you_mean(table, allowed)
        raise ValueError(f"table: got {table!r} for entity {entity}, expected one of {', '.join(allowed)}{hint}")


def columns_of(table: str, *names: str) -> tuple[str, ...]:
    """The given names that are canonical columns of the table, with those that its rows cannot do without."""
    spec = schema.table(table)
    return tuple(dict.fromkeys([*spec.required, *(name for name in names if name in spec.fields)]))
