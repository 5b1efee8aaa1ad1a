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
        values = _values(rows, rows.number("seconds") if rows.has("seconds") else None)
        found.append((rows.code, rows.days, _kinds(rows, "kind"), values))
    if "interactions" in tables:
        rows = view.rows(tables["interactions"], "occurred_at", ("channel", "direction", "rating"))
        values = _values(rows, rows.number("rating") if rows.has("rating") else None)
        found.append((rows.code, rows.days, _contact_kinds(rows), values))
    for name, kind in (("exposures", "exposure"), ("changes", "change")):
        if name in tables:
            found.append(_events(view.rows(tables[name], "occurred_at"), kind))
    if "subscriptions" in tables:
        amount = ("monthly_amount",) if "monthly_amount" in tables["subscriptions"].column_names else ()
        for column, kind in (("started_at", "subscription_start"), ("ended_at", "subscription_end")):
            if column in tables["subscriptions"].column_names:
                rows = view.rows(tables["subscriptions"], column, amount)
                found.append(_events(rows, kind, rows.number("monthly_amount") if amount else None))
    return found


def _kinds(rows: Rows, column: str, **renamed: str) -> np.ndarray:
    """(R,) int16 event kinds of a column's values; "contact" for those that EVENT_KINDS does not name."""
    codes, names = rows.codes(column)
    kinds = [_CODE.get(renamed.get(name, name), _CODE["contact"]) for name in names.to_pylist()]
    return np.array([*kinds, _CODE["contact"]], np.int16)[codes]


def _contact_kinds(rows: Rows) -> np.ndarray:
    if not rows.has("channel"):
        return np.full(len(rows.code), _CODE["contact"], np.int16)
    kinds = _kinds(rows, "channel", email="email_out")
    if rows.has("direction"):
        inbound = pc.fill_null(pc.equal(rows.table["direction"], "inbound"), False).to_numpy()
        kinds[(kinds == _CODE["email_out"]) & inbound] = _CODE["email_in"]
    return kinds


def lists(view: View, found: list[Events]) -> dict[str, pa.Array]:
    """The list columns: runs merged by time, the newest MAX_EVENTS of each customer kept.

    Events of different runs within one millisecond stand in the order of the runs.
    """
    newest = [_newest(run, view.n) for run in found]
    code, days, kind, value = (
        np.concatenate([run[i] for run in newest]) if newest else np.zeros(0, dtype)
        for i, dtype in enumerate((np.int64, np.float64, np.int16, np.float32))
    )
    before_ms = np.floor(days * 86_400_000).astype(np.int64)
    # runs are sorted already, so a stable sort (timsort) of one integer key merges them in linear time
    order = np.argsort(code * (before_ms.max(initial=0) + 1) - before_ms, kind="stable")
    at, lengths = _tails(code[order], view.n)
    order = order[at]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    parts = (kind[order], days[order].astype(np.float32), value[order])
    return {name: pa.ListArray.from_arrays(offsets, pa.array(part)) for name, part in zip(COLUMNS, parts, strict=True)}


def _newest(run: Events, n: int) -> Events:
    """Each customer's newest MAX_EVENTS of one run."""
    at, lengths = _tails(run[0], n)
    return run if lengths.sum() == len(run[0]) else (run[0][at], run[1][at], run[2][at], run[3][at])


def _tails(code: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the last MAX_EVENTS entries of each customer in an ascending `code`, and how many each has (n,)."""
    ends = np.searchsorted(code, np.arange(n), side="right")
    starts = np.maximum(np.searchsorted(code, np.arange(n), side="left"), ends - MAX_EVENTS)
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum()), lengths
