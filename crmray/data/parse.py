"""Columns as a source has them, to canonical types. What cannot be read is reported row by row, never guessed.

Every function takes a column (text or typed, chunked or not), is vectorised over it, and gives the values, null where
there was nothing or nothing legible, and the problems: pairs of a reason and a Boolean array of the rows concerned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import DataError
from crmray.salesforce.ids import SHORT, suffix
from crmray.schema import TIME

ORDINAL = "ordinal"
SYMBOLS = {
    "$": "USD AUD CAD NZD SGD HKD MXN", "€": "EUR", "£": "GBP", "¥": "JPY CNY", "₹": "INR", "₩": "KRW", "R$": "BRL",
    "zł": "PLN", "kr": "SEK NOK DKK", "₺": "TRY", "₽": "RUB", "₪": "ILS", "CHF": "CHF", "Fr.": "CHF",
}  # fmt: skip
_MISSING = ("", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "-")
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?)?\s?(Z|[+-]\d{2}(:?\d{2})?)?$"
_ZONED = r"\d{2}:\d{2}.*(?:Z|[+-]\d{2}(?::?\d{2})?)$"
_PLAIN = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
_GROUPED = r"^[+-]?\d{1,3}([,  '’]\d{3})+(\.\d+)?$"
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A column in its canonical type."""

    values: pa.ChunkedArray
    """null where there was nothing or nothing legible"""
    problems: tuple[tuple[str, np.ndarray], ...] = ()
    """(reason, rows) for what was there but could not be read"""


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type holds strings, dictionary-encoded or not."""
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def chunked(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as a chunked array of plain (not dictionary-encoded) values."""
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column


def text(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """As strings, without space around them; empty ones are null. Whole floats lose their `.0` (ids that had gaps)."""
    column = chunked(values)
    if pa.types.is_floating(column.type):
        return _float_text(column)
    if not is_text(column.type):
        return column.cast(pa.string())
    column = pc.utf8_trim_whitespace(column)
    shortest = pc.min(pc.binary_length(column)).as_py()
    return pc.if_else(pc.equal(column, ""), None, column) if shortest == 0 else column


def _float_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    numbers = pc.if_else(pc.is_nan(column), None, column)
    whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), 2.0**53))
    integers = pc.if_else(whole, numbers, None).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(integers, numbers.cast(pa.string()))


def ids(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """As text; 15-character Salesforce ids become their 18-character form, which does not depend on case.

    Other values stay as they are: an id counts as Salesforce's when it has 15 letters and digits, a 0 in the sixth
    place and a letter in the fourth or fifth. `salesforce.ids.normalize` does the same to what an endpoint gets.
    """
    column = text(values)
    short = pc.equal(pc.binary_length(column), 15)
    if not pc.any(short).as_py():
        return column
    short = pc.and_(short, pc.match_substring_regex(column, SHORT)).combine_chunks()
    rows = np.flatnonzero(short.fill_null(False).to_numpy(zero_copy_only=False))
    if not len(rows):
        return column
    flat = column.combine_chunks()
    raw = np.frombuffer("".join(flat.take(pa.array(rows)).to_pylist()).encode(), dtype=np.uint8).reshape(-1, 15)
    long = [bytes(row).decode() for row in np.concatenate([raw, suffix(raw)], axis=1)]
    return pa.chunked_array([pc.replace_with_mask(flat, short.fill_null(False), pa.array(long, pa.string()))])


# -- times ---------------------------------------------------------------------------------------------------------


def times(values: pa.Array | pa.ChunkedArray, *, time_zone: str = "UTC", date_format: str | None = None) -> Parsed:
    """As timestamp[us, UTC]. Text is ISO 8601 or exactly `date_format`; what carries no zone is in `time_zone`.

    A local time that a clock change doubles is the earlier one. "ordinal": whole numbers; position k is k seconds after
    1970, a clock that orders and nothing else. DataError for a column that cannot hold times at all.
    """
    column = chunked(values)
    if date_format == ORDINAL:
        return _ordinal(column)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return Parsed(values=_typed_times(column, time_zone))
    if pa.types.is_null(column.type):
        return Parsed(values=column.cast(TIME))
    if not is_text(column.type):
        raise DataError(
            f"got {column.type}, expected times or text; for positions without a clock set date_format: ordinal"
        )
    column = without_missing(text(column))
    if date_format:
        expected = f"not a time of the form {date_format}"
        return _each_value(column, lambda unique: _formatted(unique, date_format, time_zone), expected)
    for type_ in (pa.timestamp("us"), TIME):
        try:
            return Parsed(values=_typed_times(column.cast(type_), time_zone))
        except pa.ArrowInvalid:
            continue
    return _each_value(column, lambda unique: _iso(unique, time_zone), "not a time in ISO 8601 (set date_format?)")


def _ordinal(column: pa.ChunkedArray) -> Parsed:
    parsed = numbers(column)
    whole = pc.equal(pc.floor(parsed.values), parsed.values)
    bad = _rows(pc.invert(whole))
    seconds = pc.if_else(whole, parsed.values, None).cast(pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    problems = (*parsed.problems, *([("not a whole position", bad)] if bad.any() else []))
    return Parsed(values=pc.assume_timezone(seconds, "UTC"), problems=problems)


def _typed_times(column: pa.ChunkedArray, time_zone: str) -> pa.ChunkedArray:
    if pa.types.is_date(column.type) or column.type.unit != "us":
        column = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
    if column.type.tz is None:
        column = pc.assume_timezone(column, time_zone, ambiguous="earliest", nonexistent="latest")
    return column.cast(TIME)


def _formatted(unique: pa.Array, date_format: str, time_zone: str) -> pa.Array:
    parsed = pd.to_datetime(unique.to_pandas(), format=date_format, errors="coerce", utc="%z" in date_format)
    return _from_pandas(parsed, time_zone)


def _iso(unique: pa.Array, time_zone: str) -> pa.Array:
    strings = pd.Series(unique.to_pylist(), dtype=object)
    legible = strings.str.match(_ISO).fillna(False).astype(bool)
    zoned = legible & strings.str.contains(_ZONED).fillna(False).astype(bool)
    parts = [
        _from_pandas(pd.to_datetime(strings.where(rows), format="ISO8601", errors="coerce", utc=utc), time_zone)
        for rows, utc in ((legible & ~zoned, False), (zoned, True))
    ]
    return pc.coalesce(*parts)


def _from_pandas(parsed: pd.Series, time_zone: str) -> pa.Array:
    column = pa.chunked_array([pa.array(parsed, from_pandas=True)])
    return _typed_times(column, time_zone).combine_chunks()


# -- numbers -------------------------------------------------------------------------------------------------------


def numbers(values: pa.Array | pa.ChunkedArray, *, decimal: str = ".", currency: str | None = None) -> Parsed:
    """As float64. Text may group thousands; with `currency` it may carry that currency's symbol or code.

    NaN counts as missing. With decimal "." the text 1,5 is no number, and with "," neither is 1.5: nothing is guessed.
    """
    column = chunked(values)
    if pa.types.is_null(column.type) or pa.types.is_boolean(column.type):
        return Parsed(values=column.cast(pa.float64()))
    if pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
        return Parsed(values=column.cast(pa.float64(), safe=False))
    if pa.types.is_floating(column.type):
        return Parsed(values=_nan_to_null(column.cast(pa.float64())))
    if not is_text(column.type):
        raise DataError(f"got {column.type}, expected numbers or text")
    column = without_missing(text(column))
    if decimal == ".":
        try:
            return Parsed(values=_nan_to_null(column.cast(pa.float64())))
        except pa.ArrowInvalid:
            pass
    return _hard_numbers(column, decimal, currency)


def _hard_numbers(column: pa.ChunkedArray, decimal: str, currency: str | None) -> Parsed:
    own = column
    if currency:
        marks = [currency, *(mark for mark, codes in SYMBOLS.items() if currency in codes.split())]
        mark = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
        own = pc.replace_substring_regex(own, rf"^([+-]?)\s*(?:{mark})\s*([+-]?)", r"\1\2")
        own = pc.replace_substring_regex(own, rf"\s*(?:{mark})$", "")
    if decimal == ",":  # swap the marks, so that one grammar serves both
        own = pc.replace_substring(pc.replace_substring(pc.replace_substring(own, ".", "\0"), ",", "."), "\0", ",")
    grouped = pc.match_substring_regex(own, _GROUPED)
    own = pc.if_else(grouped, pc.replace_substring_regex(own, "[,  '’]", ""), own)
    legible = pc.or_(pc.match_substring_regex(own, _PLAIN), pc.is_in(pc.utf8_lower(own), pa.array(["inf", "-inf"])))
    numbers_ = pc.if_else(legible, own, None).cast(pa.float64())
    bad = pc.invert(legible)
    foreign = pc.and_(bad, pc.match_substring_regex(column, r"^[+-]?\s*([A-Z]{3}|\p{Sc}).*\d|\d\s*([A-Z]{3}|\p{Sc})$"))
    problems = [(f"amount in another currency than {currency}", _rows(foreign))] if currency else []
    problems += [("not a number", _rows(pc.and_not(bad, foreign) if currency else bad))]
    return Parsed(values=numbers_, problems=tuple((why, rows) for why, rows in problems if rows.any()))


def _nan_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    nan = pc.is_nan(column)
    return pc.if_else(nan, None, column) if pc.any(nan).as_py() else column


# -- Booleans ------------------------------------------------------------------------------------------------------


def booleans(values: pa.Array | pa.ChunkedArray) -> Parsed:
    """As bool: true/false, t/f, yes/no, y/n, 1/0 in any case."""
    column = chunked(values)
    if pa.types.is_boolean(column.type) or pa.types.is_null(column.type):
        return Parsed(values=column.cast(pa.bool_()))
    words = without_missing(pc.utf8_lower(text(column)))
    yes, no = pc.is_in(words, pa.array(_TRUE)), pc.is_in(words, pa.array(_FALSE))
    known = pc.or_(yes, no)
    bad = _rows(pc.and_(pc.invert(known), words.is_valid()))
    return Parsed(values=pc.if_else(known, yes, None), problems=(("not true or false", bad),) if bad.any() else ())


# -- shared --------------------------------------------------------------------------------------------------------


def without_missing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Null for the words that exports write where there is nothing."""
    if not pc.any(pc.less_equal(pc.binary_length(column), max(map(len, _MISSING)))).as_py():
        return column
    gone = pc.is_in(column, pa.array(_MISSING))
    return pc.if_else(gone, None, column) if pc.any(gone).as_py() else column


def _each_value(column: pa.ChunkedArray, parse, why: str) -> Parsed:
    """Parse the distinct values only, and spread the result over the rows."""
    encoded = column.combine_chunks().dictionary_encode()
    values = parse(encoded.dictionary).take(encoded.indices)
    bad = _rows(pc.and_(values.is_null(), encoded.indices.is_valid()))
    return Parsed(values=pa.chunked_array([values]), problems=((why, bad),) if bad.any() else ())


def _rows(mask: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A mask as a NumPy array; null is False."""
    mask = pc.fill_null(mask, False)
    return mask.to_numpy() if isinstance(mask, pa.ChunkedArray) else mask.to_numpy(zero_copy_only=False)


def check_zone(name: str) -> None:
    """DataError for a time zone that does not exist."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise DataError(f"got time zone {name!r}, expected an IANA name such as Europe/Berlin") from None
