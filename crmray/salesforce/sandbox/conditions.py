"""Conditions of SOQL as SQL: one field, one operator, one value, with Salesforce's meaning and its refusals.

Texts compare without regard to case; null is unequal to every value and never less or greater; '' is null; an id may
have 15 or 18 characters. All values travel as parameters.
"""

from __future__ import annotations

from datetime import date, datetime, time

from crmray.errors import DataError
from crmray.salesforce import ids
from crmray.salesforce.sandbox.dates import date_range
from crmray.salesforce.sandbox.metadata import NUMBER_TYPES, TEXT_TYPES, Field
from crmray.salesforce.sandbox.results import SoqlError
from crmray.salesforce.sandbox.soql import located, unescape
from crmray.salesforce.sandbox.tree import Literal

FILTER = "INVALID_QUERY_FILTER_OPERATOR"
KINDS = {
    **dict.fromkeys(TEXT_TYPES, ("string",)),
    **dict.fromkeys(NUMBER_TYPES, ("number",)),
    "id": ("string",),
    "reference": ("string",),
    "boolean": ("boolean",),
    "date": ("date", "range"),
    "datetime": ("datetime", "range"),
}
"""Salesforce type -> kinds of literals it may be compared with, null apart"""
SPOKEN = {"datetime": "dateTime", "reference": "id", "currency": "double", "percent": "double"}
"""what error messages call a type"""


class Conditions:
    """Comparisons of one query."""

    def __init__(self, text: str, now: datetime, params: list):
        """The query's text for messages, the time that date literals count from (UTC, naive), and where values go."""
        self._text = text
        self._now = now
        self._params = params

    def compare(self, sql: str, spec: Field, operator: str, literal: Literal) -> str:
        """`sql operator literal` for a field of this kind."""
        if operator == "LIKE":
            return self._like(sql, spec, literal)
        if operator not in ("=", "!=") and spec.type == "boolean":
            raise self.error(FILTER, literal.position, "invalid operator on boolean field")
        if literal.kind == "range":
            return self._within(sql, spec, operator, literal)
        value = self.value(spec, literal)
        if value is None:
            return self._with_null(sql, spec, operator)
        text = spec.type in TEXT_TYPES
        left, right = (f"lower({sql})", "lower(?)") if text else (sql, "?")
        self._params.append(value)
        return f"{left} {'IS DISTINCT FROM' if operator == '!=' else operator} {right}"

    def among(self, sql: str, spec: Field, literals: tuple[Literal, ...]) -> str:
        """`sql IN (literals)`."""
        if any(literal.kind == "range" for literal in literals):
            return "(" + " OR ".join(self.compare(sql, spec, "=", literal) for literal in literals) + ")"
        values = [self.value(spec, literal) for literal in literals]
        known = [value.lower() if spec.type in TEXT_TYPES else value for value in values if value is not None]
        left = f"lower({sql})" if spec.type in TEXT_TYPES else sql
        parts = [f"{sql} IS NULL"] if len(known) < len(values) else []
        if known:
            self._params.append(known)
            parts.append(f"{left} IN (SELECT unnest(?))")
        return "(" + " OR ".join(parts) + ")"

    def value(self, spec: Field, literal: Literal):
        """What the field is compared with; None for null and ''."""
        if literal.kind == "null":
            return False if spec.type == "boolean" else None
        if literal.kind not in KINDS[spec.type]:
            raise self._wrong_type(spec, literal)
        if literal.kind != "string":
            return literal.value
        text = unescape(str(literal.value))
        return self._id(text, literal) if spec.type in ("id", "reference") and text else text or None

    def error(self, code: str, position: int, message: str) -> SoqlError:
        """An error at a place in the query."""
        return SoqlError(code, located(self._text, position, message))

    def _id(self, text: str, literal: Literal) -> str:
        try:
            return ids.to_18(text)
        except DataError:
            raise self.error(FILTER, literal.position, f"invalid ID field: {text}") from None

    def _wrong_type(self, spec: Field, literal: Literal) -> SoqlError:
        quotes = "should be enclosed in quotes" if "string" in KINDS[spec.type] else "should not be enclosed in quotes"
        kind = "string" if spec.type in TEXT_TYPES else SPOKEN.get(spec.type, spec.type)
        message = f"value of filter criterion for field '{spec.name}' must be of type {kind}"
        quoting = (literal.kind == "string") != ("string" in KINDS[spec.type])
        return self.error("INVALID_FIELD", literal.position, f"{message} and {quotes}" if quoting else message)

    def _like(self, sql: str, spec: Field, literal: Literal) -> str:
        if spec.type not in TEXT_TYPES:
            spoken = "number" if spec.type in NUMBER_TYPES else SPOKEN.get(spec.type, spec.type)
            raise self.error(FILTER, literal.position, f"invalid operator on {spoken} field")
        if literal.kind == "null":
            return f"{sql} IS NULL"
        if literal.kind != "string":
            raise self._wrong_type(spec, literal)
        self._params.append(unescape(str(literal.value), like=True))
        return f"lower({sql}) LIKE lower(?) ESCAPE '\\'"

    @staticmethod
    def _with_null(sql: str, spec: Field, operator: str) -> str:
        return {"=": f"{sql} IS NULL", "!=": f"{sql} IS NOT NULL"}.get(operator, "false")

    def _within(self, sql: str, spec: Field, operator: str, literal: Literal) -> str:
        """Compared with a date literal: before, in or after its days."""
        assert isinstance(literal.value, tuple)
        name, count = literal.value
        try:
            found = date_range(name, count, self._now.date())
        except OverflowError:
            raise self.error("INVALID_FIELD", literal.position, f"{name}:{count} is out of range") from None
        if found is None:
            raise self.error("MALFORMED_QUERY", literal.position, f"unexpected token: '{name}'")
        if spec.type not in ("date", "datetime"):
            raise self._wrong_type(spec, literal)
        low, high = (_moment(day) if spec.type == "datetime" else day for day in found)
        if operator in ("=", "!="):
            self._params += [low, high]
            inside = f"({sql} >= ? AND {sql} < ?)"
            return inside if operator == "=" else f"NOT coalesce({inside}, false)"
        self._params.append(high if operator in ("<=", ">") else low)
        return f"{sql} {'<' if operator in ('<', '<=') else '>='} ?"


def _moment(day: date) -> datetime:
    return datetime.combine(day, time.min)
