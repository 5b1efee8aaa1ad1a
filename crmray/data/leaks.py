"""Fields that are written because of the outcome: what they say at a past date they cannot have said then.

A field is a leak when it is written in the time of the outcome or after it, for far more of those with the outcome
than of those without (the reason why a customer left is filled in once he has left). What is counted depends on what is
known of the field:

    its history    rows of a date: a change in [as_of, as_of + horizon). Against rows with the outcome stand those that
                   are without it at as_of and still at the next date after the horizon: they did not leave in it
    no history     customers: one particular value (numbers and times: any value) held by those who have the outcome at
                   their last date and were modified since a horizon before the first date at which they had it

A lead has its outcome when it is converted (IsConverted, ConvertedDate): every change from that moment on counts.
Counts add up over shards; names and counts leave this module, values never do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import history
from crmray.data.asof_rows import micros_of
from crmray.data.history import Changes, Field
from crmray.data.splits import micros

LEAST_ROWS = 10
"""rows with the outcome that a leak shows in"""
LEAST_SHARE = {"history": 0.05, "value": 0.3}
"""share of the rows with the outcome that it shows in"""
TIMES_MORE = 5.0
"""that share over the share of the rows without"""
NONE = -1
"""label of who is not in the rows of a date"""
_FILLED = "filled"


def is_binary(rows: pa.Table, label: str) -> bool:
    """Whether a label is 0 or 1 in these rows."""
    if not pa.types.is_integer(rows.schema.field(label).type):
        return False
    bounds = pc.min_max(rows[label]).as_py()
    return bounds["min"] is not None and bounds["min"] >= 0 and bounds["max"] <= 1


def labels_of(rows: pa.Table, examples: pa.Table, label: str) -> np.ndarray:
    """(N,) int: the label of each row of a table (by entity_id) among the examples of a date, NONE where it is not."""
    at = pc.index_in(rows["entity_id"], value_set=examples["entity_id"].combine_chunks()).combine_chunks()
    return examples[label].combine_chunks().take(at).cast(pa.int64()).fill_null(NONE).to_numpy()


def count(
    rows: pa.Table, labels: Mapping[datetime, np.ndarray], horizon_days: int, fields: Mapping[Field, Changes | None]
) -> dict[str, Any]:
    """Counts of one shard, for `found`: column -> {rows, how, held, span_us}.

    rows: N rows with the columns; labels: date -> (N,) of labels_of; fields: None for a field without history.
    """
    return {
        field.column: _by_value(rows, field, *_customers(rows, labels, horizon_days))
        if changes is None
        else _by_history(changes, labels, horizon_days)
        for field, changes in fields.items()
    }


def count_leads(leads: pa.Table, fields: Mapping[Field, Changes | None]) -> dict[str, Any]:
    """Counts of the leads of one shard, for `found`: the outcome is the conversion, at converted_at."""
    start = micros_of(leads["converted_at"])
    converted = start != history.NEVER
    found = {}
    for field, changes in fields.items():
        if changes is None:
            since = micros_of(leads["modified_at"]) if "modified_at" in leads.column_names else start
            found[field.column] = _by_value(leads, field, ~converted, converted & (since >= start), converted)
        else:
            late, times = _written(changes, start, np.full(len(start), history.NEVER))
            found[field.column] = _counts(
                "history", [~converted, converted], [~converted & late, converted & late], times
            )
    return found


def _by_history(changes: Changes, labels: Mapping[datetime, np.ndarray], horizon_days: int) -> dict[str, Any]:
    found = []
    for date, truth in labels.items():
        end = date + timedelta(days=horizon_days)
        late, times = _written(changes, np.full(changes.n, micros(date)), np.full(changes.n, micros(end)))
        following = [other for other in sorted(labels) if other >= end]
        stays = (truth == 0) & (labels[following[0]] == 0) if following else truth == 0
        if following or len(labels) == 1:
            found.append({"x": _counts("history", [stays, truth == 1], [stays & late, (truth == 1) & late], times)})
    return total(found)["x"] if found else _counts("history", [], [], np.zeros(0, np.int64))


def _customers(
    rows: pa.Table, labels: Mapping[datetime, np.ndarray], horizon_days: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) masks: without the outcome at their last date; with it, modified since it came; with it."""
    last = np.full(rows.num_rows, NONE)
    first_us = np.full(rows.num_rows, history.NEVER)
    for date in sorted(labels):
        last = np.where(labels[date] == NONE, last, labels[date])
        since = micros(date - timedelta(days=horizon_days))
        first_us = np.where((labels[date] == 1) & (first_us == history.NEVER), since, first_us)
    young = micros_of(rows["modified_at"]) >= first_us if "modified_at" in rows.column_names else last == 1
    return last == 0, (last == 1) & young, last == 1


def _by_value(
    rows: pa.Table, field: Field, without: np.ndarray, young: np.ndarray, with_: np.ndarray
) -> dict[str, Any]:
    column = rows[field.column].combine_chunks()
    if not pa.types.is_string(column.type) and not pa.types.is_boolean(column.type):
        filled = pc.is_valid(column).to_numpy(zero_copy_only=False)
        return _counts("value", [without, with_], [without & filled, young & filled], np.zeros(0, np.int64))
    held: dict[str, list[int]] = {}
    for side, mask in enumerate((without, young)):
        for pair in pc.value_counts(column.filter(pa.array(mask)).drop_null()).to_pylist():
            held.setdefault(str(pair["values"]), [0, 0])[side] = pair["counts"]
    return {"rows": [int(without.sum()), int(with_.sum())], "how": "value", "held": held, "span_us": []}


def _written(changes: Changes, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool: whether a row's field was changed in [start, end) µs, and the times of these changes."""
    inside = (changes.time_us >= start[changes.code]) & (changes.time_us < end[changes.code])
    return np.bincount(changes.code[inside], minlength=changes.n) > 0, changes.time_us[inside]


def _counts(how: str, masks: list[np.ndarray], held: list[np.ndarray], times_us: np.ndarray) -> dict[str, Any]:
    """{rows: [without, with the outcome], how, held: {value or "filled": [without, with]}, span_us: of the writes}."""
    pairs = [[int(mask.sum()) for mask in pair] or [0, 0] for pair in (masks, held)]
    span = [int(times_us.min()), int(times_us.max())] if len(times_us) else []
    return {"rows": pairs[0], "how": how, "held": {_FILLED: pairs[1]}, "span_us": span}


def total(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of dates and shards, each column -> {rows, how, held, span_us} as `_counts` has them, added up."""
    result: dict[str, Any] = {}
    for part in parts:
        for column, counts in part.items():
            into = result.setdefault(column, {"rows": [0, 0], "how": counts["how"], "held": {}, "span_us": []})
            into["rows"] = _added(into["rows"], counts["rows"])
            for value, pair in counts["held"].items():
                into["held"][value] = _added(into["held"].get(value, [0, 0]), pair)
            ends = [*into["span_us"], *counts["span_us"]]
            into["span_us"] = [min(ends), max(ends)] if ends else []
    return result


def _added(one: list[int], other: list[int]) -> list[int]:
    return [first + second for first, second in zip(one, other, strict=True)]


def found(counts: Mapping[str, Any], label: str) -> dict[str, dict[str, Any]]:
    """The leaks among the counts: column -> evidence, which holds no value of any row.

    {label, by, share_with, share_without, rows_with, rows_without, first_day, last_day}
    """
    leaks: dict[str, dict[str, Any]] = {}
    for column, of_column in counts.items():
        without, with_ = of_column["rows"]
        for held_without, held_with in of_column["held"].values():
            share, other = held_with / max(with_, 1), held_without / max(without, 1)
            if held_with < LEAST_ROWS or share < LEAST_SHARE[of_column["how"]] or share < TIMES_MORE * other:
                continue
            if column in leaks and leaks[column]["share_with"] >= share:
                continue
            first, last = [_day(moment) for moment in of_column["span_us"]] or (None, None)
            leaks[column] = {
                "label": label,
                "by": of_column["how"],
                "share_with": round(share, 4),
                "share_without": round(other, 4),
                "rows_with": with_,
                "rows_without": without,
                "first_day": first,
                "last_day": last,
            }
    return leaks


def _day(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us // 1_000_000, timezone.utc).strftime("%Y-%m-%d")
