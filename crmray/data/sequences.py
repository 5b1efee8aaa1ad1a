"""Event sequences: the last events of each customer before a date, of all tables merged in order of time.

Columns: `event_kind` list<int16> (index into EVENT_KINDS), `event_days_before` list<float32> (> 0), `event_value`
list<float32>; oldest first, equal lengths. Lines of one order are one event.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.asof_purchases import Orders
from crmray.data.asof_rows import Rows, View

MAX_EVENTS = 256
EVENT_KINDS = (
    "",  # code 0 is left to padding
    "purchase", "return", "visit", "send", "open", "click", "case", "email_in", "email_out", "call", "chat", "review",
    "task", "contact", "exposure", "subscription_start", "subscription_end", "change",
)  # fmt: skip
"""kinds of events; the index is the code on disk"""
COLUMNS = ("event_kind", "event_days_before", "event_value")
_CODE = {kind: code for code, kind in enumerate(EVENT_KINDS)}
Events = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""customer (E,) int64, days before as_of (E,) float64, kind (E,) int16, value (E,) float32; a sorted run"""


def of_orders(bought: Orders, returned: Orders) -> list[Events]:
    """One event per order, its value the net amount (negative for a return)."""
    return [
        _events(bought.rows, "purchase", bought.amount),
        _events(returned.rows, "return", returned.amount),
    ]


def _events(rows: Rows, kind: str, values: np.ndarray | None = None) -> Events:
    kinds = np.full(len(rows.code), _CODE[kind], np.int16)
    return rows.code, rows.days, kinds, _values(rows, values)


def _values(rows: Rows, values: np.ndarray | None) -> np.ndarray:
    if values is None:
        return np.zeros(len(rows.code), np.float32)
    return np.nan_to_num(values).astype(np.float32)


def of_tables(view: View, tables: Mapping[str, pa.Table]) -> list[Events]:
    """Events of all tables but transactions."""
    found: list[Events] = []
    if "engagement" in tables:
        rows = view.rows(tables["engagement"], "occurred_at", ("kind", "seconds"))
        codes, names = rows.codes("kind")
        lookup = np.array([_CODE.get(name, _CODE["contact"]) for name in names.to_pylist()] + [_CODE["contact"]], np.int16)
        found.append((rows.code, rows.days, lookup[codes], _values(rows, rows.number("seconds") if rows.has("seconds") else None)))
    if "interactions" in tables:
        rows = view.rows(tables["interactions"], "occurred_at", ("channel", "direction", "rating"))
        values = _values(rows, rows.number("rating") if rows.has("rating") else None)
        found.append((rows.code, rows.days, _contact_kinds(rows), values))
    for name, kind in (("exposures", "exposure"), ("changes", "change")):
        if name in tables:
            found.append(_events(view.rows(tables[name], "occurred_at"), kind))
    if "subscriptions" in tables:
        amount = ("monthly_amount",) if "monthly_amount" in tables["subscriptions"].column_names else ()
        ended = tables["subscriptions"]
        for column, kind in (("started_at", "subscription_start"), ("ended_at", "subscription_end")):
            if column in ended.column_names:
                rows = view.rows(ended, column, amount)
                found.append(_events(rows, kind, rows.number("monthly_amount") if amount else None))
    return found


def _contact_kinds(rows: Rows) -> np.ndarray:
    if not rows.has("channel"):
        return np.full(len(rows.code), _CODE["contact"], np.int16)
    codes, names = rows.codes("channel")
    lookup = np.array([_CODE.get(name, _CODE["contact"]) for name in names.to_pylist()] + [_CODE["contact"]], np.int16)
    for i, name in enumerate(names.to_pylist()):
        if name == "email":
            lookup[i] = _CODE["email_out"]
    kinds = lookup[codes]
    if rows.has("direction"):
        inbound = pc.fill_null(pc.equal(rows.table["direction"], "inbound"), False).to_numpy()
        kinds[(kinds == _CODE["email_out"]) & inbound] = _CODE["email_in"]
    return kinds


def lists(view: View, found: list[Events]) -> dict[str, pa.Array]:
    """The list columns: runs merged by time, the newest MAX_EVENTS of each customer kept."""
    code, days, kind, value = (
        np.concatenate([run[i] for run in found]) if found else np.zeros(0, dtype)
        for i, dtype in enumerate((np.int64, np.float64, np.int16, np.float32))
    )
    order = np.lexsort((-days, code))
    ends = np.searchsorted(code[order], np.arange(view.n), side="right")
    starts = np.maximum(np.searchsorted(code[order], np.arange(view.n), side="left"), ends - MAX_EVENTS)
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = order[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])]
    at = pa.array(offsets.astype(np.int32))
    parts = (kind[kept], days[kept].astype(np.float32), value[kept])
    return {
        name: pa.ListArray.from_arrays(at, pa.array(part)) for name, part in zip(COLUMNS, parts, strict=True)
    }
