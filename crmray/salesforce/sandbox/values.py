"""Values as a client sends them, JSON's types or a CSV's text, made into what a field holds, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import date, datetime, timezone
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from crmray.errors import DataError
from crmray.salesforce import ids
from crmray.salesforce.sandbox.describe import label_of
from crmray.salesforce.sandbox.metadata import NUMBER_TYPES, Field

EMAIL = re.compile(r"^[^\s@,;:<>()\[\]\\\"]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$")
YEARS = range(1700, 4001)
"""years a date may have"""


class Refused(Exception):
    """A row that is not written; becomes the row's error."""

    def __init__(self, code: str, message: str, fields: Sequence[str] = ()):
        super().__init__(code, message)
        self.error = {"statusCode": code, "message": message, "fields": list(fields)}


def parse(spec: Field, value: object) -> str | float | int | bool | date | datetime | None:
    """What the field holds for a value sent; None for null and ''. Raises Refused."""
    if value is None or value == "":
        return False if spec.type == "boolean" else None
    if spec.type == "boolean":
        return _boolean(spec, value)
    if spec.type in NUMBER_TYPES:
        return _number(spec, value)
    if spec.type == "date":
        return _date(spec, value)
    if spec.type == "datetime":
        return _datetime(spec, value)
    if not isinstance(value, str):
        if isinstance(value, dict | list):
            raise _wrong(spec, value)
        value = str(value).lower() if isinstance(value, bool) else str(value)
    return _id(spec, value) if spec.type in ("id", "reference") else _text(spec, value)


def label(spec: Field) -> str:
    """What messages call a field."""
    return spec.label or label_of(spec.name)


def _wrong(spec: Field, value: object) -> Refused:
    message = f"{label(spec)}: value not of required type: {value}"
    return Refused("INVALID_TYPE_ON_FIELD_IN_RECORD", message, [spec.name])


def _boolean(spec: Field, value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("true", "1"):
        return True
    if word in ("false", "0"):
        return False
    raise _wrong(spec, value)


def _number(spec: Field, value: object) -> float | int:
    """Rounded half up to the field's scale."""
    if isinstance(value, bool):
        raise _wrong(spec, value)
    try:
        exact = Decimal(str(value).strip())
    except InvalidOperation:
        raise _wrong(spec, value) from None
    if not exact.is_finite():
        raise _wrong(spec, value)
    if exact and exact.adjusted() + 1 > spec.precision - spec.scale:
        message = f"{label(spec)}: value outside of valid range on numeric field: {value}"
        raise Refused("NUMBER_OUTSIDE_VALID_RANGE", message, [spec.name])
    rounded = exact.quantize(Decimal(1).scaleb(-spec.scale), ROUND_HALF_UP)
    return int(rounded) if spec.type == "int" else float(rounded) + 0.0


def _date(spec: Field, value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        made = date.fromisoformat(str(value).strip()[:10])
    except ValueError:
        raise _wrong(spec, value) from None
    if made.year not in YEARS:
        raise _wrong(spec, value)
    return made


def _datetime(spec: Field, value: object) -> datetime:
    """UTC without a zone, in whole milliseconds."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
        if moment.tzinfo is not None:
            moment = moment.astimezone(timezone.utc).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise _wrong(spec, value) from None
    if moment.year not in YEARS:
        raise _wrong(spec, value)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _id(spec: Field, value: str) -> str:
    try:
        return ids.to_18(value.strip())
    except DataError:
        message = (
            f"malformed id {value}" if spec.type == "id" else f"{label(spec)}: id value of incorrect type: {value}"
        )
        raise Refused("MALFORMED_ID", message, [spec.name]) from None


def _text(spec: Field, value: str) -> str | None:
    if spec.type != "textarea":
        value = value.strip()
    if len(value) > spec.size:
        message = f"{label(spec)}: data value too large: {value} (max length={spec.size})"
        raise Refused("STRING_TOO_LONG", message, [spec.name])
    if spec.type == "email" and value and not EMAIL.match(value):
        raise Refused("INVALID_EMAIL_ADDRESS", f"{label(spec)}: invalid email address: {value}", [spec.name])
    if spec.type == "picklist" and spec.restricted and value not in spec.values:
        message = f"{label(spec)}: bad value for restricted picklist field: {value}"
        raise Refused("INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", message, [spec.name])
    return value or None


def as_history(value: object) -> str | None:
    """A value as a history object keeps it; numbers without a needless fraction."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds") + "Z"
    return str(value)
