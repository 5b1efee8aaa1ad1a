"""From the columns of a source to a canonical table: renamed, typed, and without rows that cannot be true.

Pure functions over a frame: a pandas frame with Arrow-backed columns, which is what Modin maps `clean` over, or an
Arrow table. A row leaves only with a reason, so rows in = rows out + rows rejected. Set aside are rows that an org
file drops, rows without a required value, values that cannot be read as what the column is (text in a number, a date
in another format, money in another currency), times before 1990 or later than the source can know, and amounts that
are not finite or beyond all reason. Negative quantities (returns) and zero prices are legal. Lines that repeat are
legal too: only tables with a row key lose repeats, in the second pass (`partition.merge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import parse
from crmray.data.conditions import matches
from crmray.data.splits import PARTS
from crmray.errors import CrmrayError, DataError, SchemaError

EARLIEST = datetime(1990, 1, 1, tzinfo=timezone.utc)
_ABSURD_AMOUNT, _ABSURD_NUMBER = 1e12, 1e9
_NOT_NEGATIVE = ("seconds",)
# Times of what has happened; others (the end of a contract, a launch) may lie ahead.
_HAPPENED = ("occurred_at", "created_at", "closed_at", "converted_at")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the rows of one source become rows of one canonical table. Made once, sent to every worker."""

    table: str
    """canonical table"""
    columns: Mapping[str, str]
    """canonical column -> source column"""
    values: Mapping[str, Any] = field(default_factory=dict)
    """canonical column -> constant"""
    drop: tuple[Mapping[str, Any], ...] = ()
    """rows set aside, as in the org file"""
    attributes: Mapping[str, pa.DataType] = field(default_factory=dict)
    """column -> type, over all sources of the table and decided over all its rows, not per chunk"""
    time_zone: str = "UTC"
    """zone of times that carry none"""
    date_format: str | None = None
    """strptime format, "ordinal", or None for ISO 8601"""
    decimal: str = "."
    """decimal mark of numbers in text"""
    currency: str = "USD"
    """ISO 4217 code of amounts"""
    latest: datetime | None = None
    """no event can be later than this; None: not checked"""

    def __post_init__(self) -> None:
        spec = schema.table(self.table)
        for name in (*self.columns, *self.values):
            if name not in spec.fields:
                raise SchemaError(f"table {self.table}: got column {name!r}, expected one of {list(spec.fields)}")
        for name in spec.required:
            if name not in self.columns and name not in self.values:
                raise SchemaError(
                    f"table {self.table}: column {name!r} is not mapped, expected all of {list(spec.required)}; "
                    "add it under `columns:` or `values:`"
                )
        for name in self.attributes:
            if name in spec.fields:
                raise SchemaError(
                    f"table {self.table}: got attribute {name!r}, which is the name of a canonical column; map it "
                    "under `columns:` instead"
                )
        parse.check_zone(self.time_zone)

    @property
    def schema(self) -> pa.Schema:
        """Of the rows that `clean` gives: canonical columns, then attributes."""
        return pa.schema([*schema.table(self.table).fields.items(), *self.attributes.items()])


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """The result of `clean`."""

    rows: pa.Table
    """canonical columns and attributes, in a fixed order and in the order of the rows"""
    rejected: pa.Table
    """`key` (the entity id as text), `reason`: one row for each row set aside"""
    first: Mapping[str, list[int]] = field(default_factory=dict)
    """reason -> the first few rows set aside for it, from 0; without those that the mapping asks for"""


def clean(frame: pd.DataFrame | pa.Table, plan: Plan) -> Cleaned:
    """The canonical rows of some rows of a source. Row by row: cutting the input elsewhere changes nothing.

    DataError for a column that cannot hold what it is mapped to, whatever its rows.
    """
    data = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
    spec = schema.table(plan.table)
    verdict = _Verdict(data.num_rows)
    for entry in plan.drop:
        verdict.reject(ASKED_FOR, matches(data, entry, plan))
    columns = {name: _canonical(data, name, type_, plan, verdict) for name, type_ in spec.fields.items()}
    if plan.table == "transactions":
        columns["net_amount"] = _net_amount(columns)
    for name in spec.required:
        verdict.reject(f"{name}: missing", columns[name].is_null())
    for name, type_ in plan.attributes.items():
        here = name in data.column_names  # another source of the table may have it
        nothing = pa.chunked_array([pa.nulls(data.num_rows, type_)])
        columns[name] = _attribute(data[name], name, type_, plan) if here else nothing
    rows = pa.table(columns, schema=plan.schema)
    if not verdict.any:
        return Cleaned(rows=rows, rejected=REJECTED.empty_table())
    keep = pa.array(verdict.codes == 0)
    keys = columns[spec.entity].filter(pc.invert(keep))
    rejected = pa.table([keys, verdict.reasons()], schema=REJECTED)
    return Cleaned(rows=rows.filter(keep), rejected=rejected, first=verdict.first())


ASKED_FOR = "left out by the mapping"
FEW = 3
"""rows of which a reason says where they stand"""
REJECTED = pa.schema([("key", pa.string()), ("reason", pa.dictionary(pa.int16(), pa.string()))])


class _Verdict:
    """The first reason against each row."""

    def __init__(self, num_rows: int):
        self.codes = np.zeros(num_rows, np.int16)
        self.names: list[str] = []

    @property
    def any(self) -> bool:
        return bool(self.names)

    def reject(self, reason: str, rows: pa.ChunkedArray | np.ndarray) -> None:
        """Set aside the rows of a mask (null: not) that have no reason yet."""
        if isinstance(rows, pa.ChunkedArray):
            if not pc.any(rows).as_py():
                return
            rows = pc.fill_null(rows, False).to_numpy()
        new = rows & (self.codes == 0)
        if new.any():
            if reason not in self.names:
                self.names.append(reason)
            self.codes[new] = self.names.index(reason) + 1

    def reasons(self) -> pa.DictionaryArray:
        """Reasons of the rejected rows, in row order."""
        codes = self.codes[self.codes > 0] - 1
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int16()), pa.array(self.names, pa.string()))

    def first(self) -> dict[str, list[int]]:
        """The first FEW rows of each reason that somebody has to look at."""
        return {
            name: np.flatnonzero(self.codes == code)[:FEW].tolist()
            for code, name in enumerate(self.names, 1)
            if name != ASKED_FOR
        }


def _canonical(data: pa.Table, name: str, type_: pa.DataType, plan: Plan, verdict: _Verdict) -> pa.ChunkedArray:
    """One canonical column; its problems go to the verdict."""
    if name in plan.values:
        source: pa.ChunkedArray = pa.chunked_array([pa.repeat(pa.scalar(plan.values[name]), data.num_rows)])
    elif name in plan.columns:
        source = data[plan.columns[name]]
    else:
        return pa.chunked_array([pa.nulls(data.num_rows, type_)])
    try:
        parsed = _parse(source, name, type_, plan)
    except CrmrayError as error:
        raise DataError(
            f"table {plan.table}: column {name} (source column {plan.columns.get(name)!r}): {error}"
        ) from None
    for reason, rows in parsed.problems:
        verdict.reject(f"{name}: {reason}", rows)
    for reason, rows in _impossible(parsed.values, name, type_, plan):
        verdict.reject(f"{name}: {reason}", rows)
    return parsed.values


def _parse(source: pa.ChunkedArray, name: str, type_: pa.DataType, plan: Plan) -> parse.Parsed:
    if type_ == schema.TIME:
        # A constant of the org file is ISO, whatever form the file's own times have.
        date_format = None if name in plan.values else plan.date_format
        return parse.times(source, time_zone=plan.time_zone, date_format=date_format)
    if type_ == pa.float64():
        currency = plan.currency if name.endswith("_amount") else None
        parsed = parse.numbers(source, decimal=plan.decimal, currency=currency)
        if name == "value" and parsed.problems:  # an outcome may be written yes/no
            truth = parse.booleans(source)
            return parsed if truth.problems else parse.Parsed(values=truth.values.cast(type_))
        return parsed
    if type_ == pa.bool_():
        return parse.booleans(source)
    return parse.Parsed(values=parse.ids(source) if name.endswith("_id") else parse.text(source))


def _impossible(values: pa.ChunkedArray, name: str, type_: pa.DataType, plan: Plan) -> list[tuple[str, Any]]:
    """(reason, rows) for values that cannot be true. Looks at the extremes first: most columns have no such value."""
    if name == "split":
        wrong = pc.invert(pc.is_in(values, pa.array(PARTS)))
        return [(f"not one of {', '.join(PARTS)}", pc.and_(wrong, values.is_valid()))]
    if type_ not in (schema.TIME, pa.float64()) or values.null_count == len(values):
        return []
    low, high = pc.min_max(values).values()
    found: list[tuple[str, Any]] = []
    if type_ == schema.TIME and plan.date_format != parse.ORDINAL:
        if low.as_py() < EARLIEST:
            found.append(("before 1990", pc.less(values, pa.scalar(EARLIEST, schema.TIME))))
        if name in _HAPPENED and plan.latest and high.as_py() > plan.latest:
            found.append(("later than the source can know", pc.greater(values, pa.scalar(plan.latest, schema.TIME))))
    elif type_ == pa.float64():
        absurd = _ABSURD_AMOUNT if name.endswith("_amount") else _ABSURD_NUMBER
        if not (-absurd <= low.as_py() and high.as_py() <= absurd):
            found.append(("not finite or absurdly large", pc.greater(pc.abs(values), absurd)))
        if name in _NOT_NEGATIVE and low.as_py() < 0:
            found.append(("negative", pc.less(values, 0.0)))
    return found


def _net_amount(columns: Mapping[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """The line total, and where there is none units times unit price."""
    given = columns["net_amount"]
    if not given.null_count:
        return given
    return pc.coalesce(given, pc.multiply(columns["num_units"], columns["unit_price_amount"]))


def _attribute(source: pa.ChunkedArray, name: str, type_: pa.DataType, plan: Plan) -> pa.ChunkedArray:
    """An attribute in the type that was decided for the whole table."""
    if type_ == pa.string():
        return parse.text(source)
    if type_ == pa.bool_():
        parsed = parse.booleans(source)
    elif type_ == schema.TIME:
        parsed = parse.times(source, time_zone=plan.time_zone)
    else:
        parsed = parse.numbers(source, decimal=plan.decimal)
    assert not parsed.problems, f"attribute {name}: decided as {type_} over all rows"
    return parsed.values.cast(type_)
