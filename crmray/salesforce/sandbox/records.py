"""Rows of a query as REST records: JSON objects with their attributes, parents nested, and the pages between calls."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from crmray.salesforce.sandbox.results import Result
from crmray.salesforce.sandbox.wire import ApiError, Call

MAX_CURSORS = 50
"""results kept for their next pages; the one not read for longest goes first"""
MAX_BYTES = 500_000_000
"""of all results kept; the newest stays whatever its size"""

Describe = Callable[[str], dict[str, Any]]


class Cursors:
    """Results of REST queries with more than one page. Thread-safe."""

    def __init__(self, describe: Describe):
        self._describe = describe
        self._results: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()

    def first(self, call: Call, result: Result, page_rows: int) -> dict[str, Any]:
        """Body of the answer to /query."""
        if result.count is not None:
            return {"totalSize": result.count, "done": True, "records": []}
        name = f"01g5e0000{secrets.token_hex(3)}AAA"
        if result.table.num_rows > page_rows:
            with self._lock:
                self._results[name] = result
                while len(self._results) > 1 and (len(self._results) > MAX_CURSORS or self._bytes() > MAX_BYTES):
                    self._results.popitem(last=False)
        return self._page(call, name, result, 0, page_rows)

    def _bytes(self) -> int:
        return sum(result.table.nbytes for result in self._results.values())

    def next(self, call: Call, locator: str, page_rows: int) -> tuple[str, dict[str, Any]]:
        """The object and the body of the answer to /query/<locator>; 400 for a locator that is none."""
        name, _, start = locator.partition("-")
        with self._lock:
            result = self._results.get(name)
            if result is None or not start.isdigit() or int(start) >= result.table.num_rows:
                raise ApiError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
            self._results.move_to_end(name)
        return result.object, self._page(call, name, result, int(start), page_rows)

    def _page(self, call: Call, name: str, result: Result, start: int, page_rows: int) -> dict[str, Any]:
        total = result.table.num_rows
        stop = min(start + page_rows, total)
        records = to_records(result, start, stop, call.base, self._describe)
        page: dict[str, Any] = {"totalSize": total, "done": stop == total, "records": records}
        if stop < total:
            page["nextRecordsUrl"] = f"{call.base}/query/{name}-{stop}"
        return page


def to_records(result: Result, start: int, stop: int, base: str, describe: Describe) -> list[dict[str, Any]]:
    """Rows start … stop as REST writes them. A parent all of whose fields are null is null."""
    rows = result.table.slice(start, stop - start)
    columns = [rows.column(i).to_pylist() for i in range(rows.num_columns)]
    if result.aggregate:
        attributes = {"type": "AggregateResult"}
        return [
            {"attributes": attributes, **dict(zip(result.columns, row, strict=True))}
            for row in zip(*columns, strict=True)
        ]
    tree: dict[str, Any] = {}
    for name, values in zip(result.columns, columns, strict=True):
        *parents, field = name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[field] = values
    return _nest(tree, result.object, None, rows.num_rows, base, describe)


def _nest(
    tree: dict[str, Any], object_: str, ids: list[str] | None, num_rows: int, base: str, describe: Describe
) -> list[Any]:
    """Records of one level of a tree of columns; `ids` are known from the level above where its lookup was selected."""
    ids = tree.get("Id", ids)
    url = f"{base}/sobjects/{object_}/"
    parts: dict[str, list[Any]] = {}
    for name, values in tree.items():
        if isinstance(values, dict):
            lookup, parent = _parent(describe(object_), name)
            parts[name] = _null_where_empty(_nest(values, parent, tree.get(lookup), num_rows, base, describe))
        else:
            parts[name] = values
    return [
        {
            "attributes": {"type": object_} if ids is None else {"type": object_, "url": f"{url}{ids[i]}"},
            **{name: values[i] for name, values in parts.items()},
        }
        for i in range(num_rows)
    ]


def _null_where_empty(records: list[dict[str, Any]]) -> list[Any]:
    return [
        record if any(value is not None for name, value in record.items() if name != "attributes") else None
        for record in records
    ]


def _parent(description: dict[str, Any], relationship: str) -> tuple[str, str]:
    """Name of the lookup field of a relationship, and the object that it leads to."""
    for field in description["fields"]:
        if (field["relationshipName"] or "").lower() == relationship.lower():
            return field["name"], field["referenceTo"][0]
    return "", relationship
