"""Values on their way between predictions, Bulk CSV and fields: one spelling for each, so that equal means equal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

import pyarrow as pa

from crmray.errors import SalesforceError

NUMBERS = ("double", "currency", "percent", "int")
TEXTS = ("string", "textarea", "picklist")
SEPARATOR = "; "
"""between the entries of a list"""
CLEAR = "#N/A"
"""what empties a field in a Bulk CSV; an empty cell leaves it alone"""


def spelled(values: pa.ChunkedArray, field: Mapping[str, Any], *, shorten: bool = False) -> list[str | None]:
    """Prediction values as the field will hold them; None for missing, not finite or empty ones.

    field: its entry of describe. Numbers are rounded to the field's scale; a fraction in a percent field is times 100;
    lists become one text, fields of their entries in a row. shorten: last entries are left out of a text that is longer
    than the field; the first stays.
    """
    most = int(field.get("length") or 0) if shorten else 0
    factor = 100 if field["type"] == "percent" else 1
    result: list[str | None] = []
    for value in values.to_pylist():
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        elif isinstance(value, list):
            value = _joined([_part(one) for one in value], most)
        elif isinstance(value, float | int) and not isinstance(value, bool):
            value = Decimal(repr(value)) * factor
        elif isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, datetime):
            value = value.astimezone(timezone.utc).isoformat()
        result.append(canonical(None if value is None else str(value), field))
    return result


def _joined(parts: list[str], most: int) -> str:
    while most and len(parts) > 1 and len(SEPARATOR.join(parts)) > most:
        parts = parts[:-1]
    return SEPARATOR.join(parts)


def _part(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(map(_part, value.values()))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def canonical(text: str | None, field: Mapping[str, Any]) -> str | None:
    """A value in the one spelling of its field's type; None for an empty one.

    Raises SalesforceError that names the field, never the value.
    """
    text = (text or "").strip()
    if not text:
        return None
    kind = field["type"]
    try:
        if kind in NUMBERS:
            return _number(Decimal(text), 0 if kind == "int" else int(field.get("scale") or 0))
        if kind == "boolean":
            return text.lower()
        if kind == "date":
            return text[:10]
        if kind == "datetime":
            moment = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
            return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
    except (InvalidOperation, ValueError):
        raise SalesforceError(f"field {field['name']}: got a value that is no {kind}, expected one") from None
    return text.replace("\r\n", "\n")


def _number(value: Decimal, scale: int) -> str:
    rounded = value.quantize(Decimal(1).scaleb(-scale), rounding=ROUND_HALF_EVEN)
    text = f"{rounded:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def moved(before: Sequence[str | None], after: Sequence[str | None], kind: str, min_change: float) -> list[bool]:
    """Whether each value differs, for numbers by at least `min_change`."""
    if kind not in NUMBERS or min_change <= 0:
        return [old != new for old, new in zip(before, after, strict=True)]
    least = Decimal(repr(min_change))
    return [
        old != new and (old is None or new is None or abs(Decimal(new) - Decimal(old)) >= least)
        for old, new in zip(before, after, strict=True)
    ]


def cells(before: Sequence[str | None], after: Sequence[str | None]) -> list[str]:
    """CSV cells that turn `before` into `after`: "" leaves alone, #N/A empties."""
    return ["" if old == new else CLEAR if new is None else new for old, new in zip(before, after, strict=True)]
