"""The conditions of an org file (`drop:` of a source, `where:` of a prediction of one's own), evaluated on columns.

An operand that is a number compares as numbers, one that is a date or time as times, any other as text; a value that
is missing or cannot be read so matches nothing but `missing: true`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import parse
from crmray.errors import DataError

_COMPARE: dict[str, Callable] = {
    "eq": pc.equal, "ne": pc.not_equal, "lt": pc.less, "le": pc.less_equal, "gt": pc.greater, "ge": pc.greater_equal,
}  # fmt: skip
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[+-]\d{2}:?\d{2})?$")


def is_date(value: Any) -> bool:
    """Whether an operand is a date or a time, or a text that says one."""
    return isinstance(value, date) or _DATE.match(str(value)) is not None


class Plan(Protocol):
    """How the columns are to be read: clean.Plan for those of a source, Canonical for those of a canonical table."""

    @property
    def table(self) -> str:
        """Canonical table, for messages."""

    @property
    def decimal(self) -> str:
        """Decimal mark of numbers in text."""

    @property
    def time_zone(self) -> str:
        """Zone of times that carry none."""

    @property
    def date_format(self) -> str | None:
        """strptime format of times; None for ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """The columns of a canonical table, which have their types already."""

    table: str
    """its name"""
    decimal: str = "."
    """of numbers in text"""
    time_zone: str = "UTC"
    """of times in conditions that carry none"""
    date_format: str | None = None
    """of times in text"""


def matches(data: pa.Table, entry: Mapping[str, Any], plan: Plan, *, key: str = "drop") -> pa.ChunkedArray:
    """Boolean column: rows that meet all conditions of one entry, {column: value | {condition: operand}}.

    key: of the org file where the entry stands, for messages.
    """
    masks = []
    for column, condition in entry.items():
        conditions = condition if isinstance(condition, Mapping) else {"eq": condition}
        for name, operand in conditions.items():
            try:
                masks.append(pc.fill_null(_mask(data[column], name, operand, plan), name == "ne"))
            except DataError as error:
                raise DataError(f"table {plan.table}: {key}: column {column!r}: {name}: {error}") from None
    if not masks:
        raise DataError(f"table {plan.table}: {key}: got an entry without conditions, expected at least one")
    result = masks[0]
    for mask in masks[1:]:
        result = pc.and_(result, mask)
    return result


def _mask(column: pa.ChunkedArray, name: str, operand: Any, plan: Plan) -> pa.ChunkedArray:
    if name == "missing":
        missing = parse.text(column).is_null()
        return missing if operand else pc.invert(missing)
    if name == "matches":
        return pc.match_substring_regex(parse.text(column), str(operand))
    operands = operand if name == "in" else [operand]
    if not isinstance(operands, list) or not operands:
        raise DataError(f"got {operand!r}, expected a list of values")
    values, typed = _comparable(column, operands, plan)
    if name == "in":
        return pc.is_in(values, typed)
    return _COMPARE[name](values, typed[0])


def _comparable(column: pa.ChunkedArray, operands: list[Any], plan: Plan) -> tuple[pa.ChunkedArray, pa.Array]:
    """Column and operands in the one type in which they compare."""
    if all(isinstance(value, bool) for value in operands):
        return parse.booleans(column).values, pa.array(operands, pa.bool_())
    if all(isinstance(value, (int, float)) for value in operands):
        return parse.numbers(column, decimal=plan.decimal).values, pa.array(map(float, operands), pa.float64())
    if all(map(is_date, operands)):
        times = parse.times(column, time_zone=plan.time_zone, date_format=plan.date_format).values
        iso = pa.array([value.isoformat() if isinstance(value, date) else value for value in operands])
        return times, parse.times(iso, time_zone=plan.time_zone).values.combine_chunks()
    return parse.text(column), pa.array([str(value) for value in operands], pa.string())
