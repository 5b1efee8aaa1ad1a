"""Rows that a client wants written, on their way into the store: faults strike some, the others are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from crmray.salesforce.sandbox.faults import Faults
from crmray.salesforce.sandbox.results import NoSuchObject, RowResult, SoqlError
from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.wire import ApiError, not_found

OPERATIONS = ("insert", "update", "upsert", "delete", "hardDelete")


def write(
    store: Store,
    faults: Faults,
    operation: str,
    object_: str,
    rows: Sequence[Mapping[str, object]],
    *,
    external_id: str = "Id",
) -> list[RowResult]:
    """Insert, update, upsert, delete (rows that hold an Id) …; one result for each row, in order.

    ApiError where the whole call is wrong: no such object, a field that is no external id.
    """
    struck = faults.row_errors(rows, external_id if operation == "upsert" else "Id")
    sound = [row for row, error in zip(rows, struck, strict=True) if error is None]
    ids = [str(row.get("Id") or "") for row in sound]
    calls: dict[str, Callable[[], list[RowResult]]] = {
        "insert": lambda: store.insert(object_, sound),
        "update": lambda: store.update(object_, sound),
        "upsert": lambda: store.upsert(object_, external_id, sound),
        "delete": lambda: store.delete(object_, ids),
        "hardDelete": lambda: store.hard_delete(object_, ids),
    }
    try:
        written = iter(calls[operation]() if sound else [])
    except NoSuchObject:
        raise not_found() from None
    except SoqlError as error:
        raise ApiError(404 if error.code == "NOT_FOUND" else 400, error.code, error.message) from None
    return [error or next(written) for error in struck]
