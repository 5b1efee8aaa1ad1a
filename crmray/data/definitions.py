"""What a prediction of one's own is about, as an org file defines it: whom, what came, and within which time.

    population: [{table: transactions, where: {channel: web}, days: 365, at_least: 2}]
    outcome:    {table: interactions, where: {channel: case}, measure: exists}

`where` has the conditions of `drop:` (crmray.data.conditions), on columns and attributes of a canonical table. What the
rows of an org say of a definition: crmray.data.measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from crmray import schema
from crmray.config import Part
from crmray.errors import did_you_mean
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
            raise ValueError(
                f"got {' and '.join(said) or 'none'} of table, given, attribute; expected exactly one of them, for "
                "example {table: interactions} or {attribute: plan, kind: class}"
            )
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
            said = (
                f"table: {table}, measure: {self.measure}, column: {column}" if self.table else f"attribute: {column}"
            )
            raise ValueError(
                f"outcome.kind: got nothing for attribute {column!r} of {table}, expected yes_no, number or class, for "
                f"example outcome: {{{said}, kind: yes_no}}"
            )
        return "class" if pa.types.is_string(fields[column]) else "number"


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
