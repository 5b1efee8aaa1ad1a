"""The feature columns of an examples table: which they are, and their values as numbers or texts.

A column is numeric (integers, floats, booleans, decimals) or categorical (text, dictionaries of text) by its type. Keys
(`entity_id`, `as_of`, `part`), labels (`label`, `label_*` and the names passed), free text (`text`, `text_*`) and list
columns (sequences) are no features. N rows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import SchemaError
from crmray.schema import KEYS

NO_FEATURES, NO_FEATURE = ("label", "text", "customer_id"), ("label_", "text_")
"""names, and beginnings of names, of labels, of whose row it is, and of free text, which has models of its own"""


def feature_columns(schema: pa.Schema, labels: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Names of the numeric and of the categorical feature columns, in table order.

    SchemaError for a column that is neither, nor a list, key or label (a timestamp, a struct).
    """
    numeric, categorical = [], []
    for field in schema:
        if field.name in KEYS or field.name in labels or field.name in NO_FEATURES or field.name.startswith(NO_FEATURE):
            continue
        kind = _kind(field.type)
        if kind == "numeric":
            numeric.append(field.name)
        elif kind == "categorical":
            categorical.append(field.name)
        elif kind is None:
            raise SchemaError(
                f"column {field.name!r}: got type {field.type}, expected a number, text or a list; "
                "turn it into one in the task's examples()"
            )
    return numeric, categorical


def _kind(type_: pa.DataType) -> str | None:
    if pa.types.is_dictionary(type_):
        return "categorical" if _kind(type_.value_type) == "categorical" else None
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "categorical"
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    if any(test(type_) for test in numbers):
        return "numeric"
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return "sequence"
    return None


def numbers_of(table: pa.Table, name: str) -> np.ndarray:
    """Column as float64 (N,), NaN where missing or not finite. SchemaError when absent or not a number."""
    column = column_of(table, name, "numeric")
    values = np.array(pc.cast(column, pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def texts_of(table: pa.Table, name: str) -> pa.Array:
    """Column as string array (N,), null where missing. SchemaError when absent or not text."""
    column = column_of(table, name, "categorical")
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return pc.cast(column, pa.string())


def column_of(table: pa.Table, name: str, expected: Literal["numeric", "categorical"]) -> pa.ChunkedArray:
    """The column as it is. SchemaError when absent or of another kind than expected; a column of nulls is of any."""
    index = table.schema.get_field_index(name)
    if index < 0:
        raise SchemaError(f"column {name!r} is missing; expected it as a {expected} feature, as in training")
    column = table.column(index)
    if _kind(column.type) != expected and not pa.types.is_null(column.type):
        raise SchemaError(f"column {name!r}: got type {column.type}, expected a {expected} feature, as in training")
    return column
