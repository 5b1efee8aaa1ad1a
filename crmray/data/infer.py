"""The types of attributes, decided over all rows of a table before any row is cleaned, so that no chunk differs.

Columns that have a type in the source (Parquet) keep it, widened to one of the attribute types. Text (CSV) becomes a
number, a time or true/false only if every value of the column is one; numbers with leading zeros or more than 15
digits are codes and stay text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import parse
from crmray.errors import DataError

# Names of what a column of text may still be; from the narrowest to the widest.
KINDS = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "time": schema.TIME, "string": pa.string()}
_INTEGER = r"^[+-]?(0|[1-9][0-9]{0,14})$"
_FLOAT = r"^[+-]?(0|[1-9][0-9]{0,14})?([.][0-9]+)?([eE][+-]?[0-9]{1,3})?$"
_SOME_DIGIT = r"[0-9]"
ISO = "ISO 8601"
_DAYS = re.compile(r"^(\d{1,2})([/.-])(\d{1,2})\2(\d{2}|\d{4})(?: (\d{1,2}):(\d{2})(:\d{2})?)?$")
_LOOKED_AT, _MOST = 5000, 0.9


def possible(column: pa.ChunkedArray, decimal: str = ".") -> set[str]:
    """What all values of a column of text can be; every kind for one without values."""
    values = parse.without_missing(parse.text(column)).drop_null()
    if not len(values):
        return set(KINDS)
    kinds = {"string"}
    if pc.all(pc.is_in(pc.utf8_lower(values), pa.array(["true", "false"]))).as_py():
        kinds.add("bool")
    if decimal == ",":  # swap the marks: 1.5 is then no number
        values = pc.replace_substring(pc.replace_substring(pc.replace_substring(values, ".", " "), ",", "."), " ", ",")
    if _all(values, _FLOAT) and _all(values, _SOME_DIGIT):
        kinds |= {"float64", "int64"} if _all(values, _INTEGER) else {"float64"}
    if len(kinds) == 1 and not parse.times(values).problems:
        kinds.add("time")
    return kinds


def _all(values: pa.ChunkedArray, pattern: str) -> bool:
    # A glance at the first rows spares the full scan of most columns of words.
    head = values.slice(0, 100)
    return all(pc.all(pc.match_substring_regex(part, pattern)).as_py() for part in (head, values))


def form_of_dates(column: pa.ChunkedArray) -> str | None:
    """How a column of text writes dates, told by its first values: ISO, or a strptime format; None where fewer than
    nine in ten are dates. Whether the day or the month is first is told by where values above 12 stand more often."""
    values = parse.without_missing(parse.text(column.slice(0, _LOOKED_AT))).drop_null()
    if not len(values):
        return None
    if parse.times(values).values.null_count <= (1 - _MOST) * len(values):
        return ISO
    found = [match for value in values.to_pylist() if (match := _DAYS.match(value))]
    if len(found) < _MOST * len(values):
        return None
    mark, year = found[0][2], "%Y" if len(found[0][4]) == 4 else "%y"
    first, second = (sum(int(match[place]) > 12 for match in found) for place in (1, 3))
    days = f"%m{mark}%d" if second > first else f"%d{mark}%m"
    clock = "" if not found[0][5] else " %H:%M:%S" if found[0][7] else " %H:%M"
    return f"{days}{mark}{year}{clock}"


def decide(kinds: set[str]) -> pa.DataType:
    """The narrowest type among those that all parts of a column can be."""
    if kinds == set(KINDS):  # no value anywhere
        return pa.string()
    return next(type_ for name, type_ in KINDS.items() if name in kinds)


def of_type(table: str, name: str, type_: pa.DataType) -> pa.DataType:
    """The attribute type for a typed source column; DataError for one that is no plain value."""
    if parse.is_text(type_) or pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_boolean(type_):
        return pa.bool_()
    if pa.types.is_integer(type_):
        return pa.int64()
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return pa.float64()
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return schema.TIME
    raise DataError(
        f"table {table}: attribute {name!r} has type {type_}, expected text, a number, a time or true/false; "
        "leave it out"
    )


def common(parts: Sequence[Mapping[str, pa.DataType]]) -> dict[str, pa.DataType]:
    """One type for each attribute over several sources: numbers widen to float64, other differences to text."""
    merged: dict[str, pa.DataType] = {}
    for part in parts:
        for name, type_ in part.items():
            before = merged.setdefault(name, type_)
            if before != type_:
                numbers = {before, type_} == {pa.int64(), pa.float64()}
                merged[name] = pa.float64() if numbers else pa.string()
    return merged
