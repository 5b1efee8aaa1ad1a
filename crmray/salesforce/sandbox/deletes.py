"""Rows put into the recycle bin, taken out of it, and removed for good, with what hangs on them.

A deletion takes along the rows whose reference says so (`Field.on_delete`), clears the other references to the row,
and is refused while a restricting one is left. Rows deleted together carry one SystemModstamp, by which
undelete finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import pyarrow as pa

from crmray.errors import DataError
from crmray.salesforce import ids as record_ids
from crmray.salesforce.sandbox.checks import states
from crmray.salesforce.sandbox.metadata import Field, ObjectType
from crmray.salesforce.sandbox.org import Org
from crmray.salesforce.sandbox.results import RowResult, SoqlError


def delete(org: Org, spec: ObjectType, ids: Sequence[str]) -> list[RowResult]:
    """Into the recycle bin; one result each, in order."""
    _deletable(spec, "delete")
    with org.transaction():
        known, results = _checked(org, spec, ids, deleted=False)
        held = _held(org, spec, known)
        moment = org.stamp()
        _remove(org, spec, [id_ for id_ in known if id_ not in held], moment, set())
    return _with_held(results, held)


def undelete(org: Org, spec: ObjectType, ids: Sequence[str]) -> list[RowResult]:
    """Out of the recycle bin, with the rows that went in along with them."""
    _deletable(spec, "undelete")
    with org.transaction():
        known, results = _checked(org, spec, ids, deleted=True)
        moment = org.stamp()
        _restore(org, spec, known, moment)
    return results


def hard_delete(org: Org, spec: ObjectType, ids: Sequence[str]) -> list[RowResult]:
    """Removed without a trace, from the recycle bin or past it, with the rows that hang on them."""
    _deletable(spec, "hard delete")
    with org.transaction():
        known, results = _checked(org, spec, ids, deleted=None)
        held = _held(org, spec, known)
        gone = [id_ for id_ in known if id_ not in held]
        moment = org.stamp()
        _remove(org, spec, gone, moment, set())
        _erase(org, spec, gone)
    return _with_held(results, held)


def _deletable(spec: ObjectType, verb: str) -> None:
    if not spec.writable or spec.get("IsDeleted") is None:
        raise SoqlError("INVALID_TYPE_FOR_OPERATION", f"entity type {spec.name} does not support {verb}")


def _with_held(results: list[RowResult], held: dict[str, str]) -> list[RowResult]:
    """The results, with an error for each row that others hold."""
    return [RowResult.refused(one.id, "DELETE_FAILED", held[one.id]) if one.id in held else one for one in results]


def _checked(
    org: Org, spec: ObjectType, ids: Sequence[str], *, deleted: bool | None
) -> tuple[list[str], list[RowResult]]:
    """Ids that can be done, and each row's result if it is; `deleted` is what the rows must be."""
    names: list[str | None] = []
    for id_ in ids:
        try:
            names.append(record_ids.to_18(id_))
        except DataError:
            names.append(None)
    there = states(org, spec, {name for name in names if name is not None})
    known: dict[str, None] = {}
    results = []
    for id_, name in zip(ids, names, strict=True):
        if name is None:
            results.append(RowResult.refused(None, "MALFORMED_ID", f"malformed id {id_}"))
        elif name not in there:
            results.append(RowResult.refused(name, "INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id"))
        elif name in known or (deleted is False and there[name]):
            results.append(RowResult.refused(name, "ENTITY_IS_DELETED", "entity is deleted"))
        elif deleted is True and not there[name]:
            results.append(RowResult.refused(name, "UNDELETE_FAILED", "Entity is not in the recycle bin"))
        else:
            known[name] = None
            results.append(RowResult(id=name, success=True))
    return list(known), results


def _children(org: Org, child: ObjectType, link: Field, ids: Iterable[str], alive: str) -> list[tuple[str, str]]:
    """(row, parent) of the rows that refer to these, alive or as `alive` (SQL) says."""
    staged = _staged(ids)
    sql = f'SELECT "Id", "{link.name}" FROM "{child.name}" WHERE "{link.name}" IN (SELECT id FROM staged)'
    return org.rows(f"{sql}{alive}", staged=staged) if staged.num_rows else []


def _staged(ids: Iterable[str]) -> pa.Table:
    return pa.table({"id": pa.array(sorted(set(ids)), pa.string())})


def _alive(spec: ObjectType) -> str:
    return ' AND NOT "IsDeleted"' if spec.get("IsDeleted") else ""


def _held(org: Org, spec: ObjectType, ids: Sequence[str]) -> dict[str, str]:
    """Id -> why it cannot be deleted: rows that restrict it."""
    found: dict[str, str] = {}
    for child, link in org.children(spec):
        if link.on_delete == "restrict":
            number = child.name_field.name if child.name_field.stored else "Id"
            staged = _staged(ids)
            sql = f"""SELECT "{link.name}", string_agg("{number}", ', ' ORDER BY "{number}") FROM "{child.name}"
                      WHERE "{link.name}" IN (SELECT id FROM staged){_alive(child)} GROUP BY 1"""
            for id_, names in org.rows(sql, staged=staged):
                what = (child.plural or f"{child.label or child.name}s").lower()
                found[id_] = (f"Your attempt to delete {id_} could not be completed because it is associated with the "
                              f"following {what}.: {names}")  # fmt: skip
    return found


def _remove(org: Org, spec: ObjectType, ids: Sequence[str], moment: datetime, seen: set[str]) -> None:
    """Mark rows deleted, and what hangs on them."""
    ids = [id_ for id_ in ids if id_ not in seen]
    if not ids:
        return
    seen.update(ids)
    org.rows(*_mark(spec, True, moment), _staged(ids))
    for child, link in org.children(spec):
        if link.on_delete == "cascade":
            rows = _children(org, child, link, ids, _alive(child))
            _remove(org, child, [row for row, _ in rows], moment, seen)
        elif link.on_delete == "clear":
            stamp = ', "SystemModstamp" = ?' if child.get("SystemModstamp") else ""
            sql = f'UPDATE "{child.name}" SET "{link.name}" = NULL{stamp}'
            sql += f' WHERE "{link.name}" IN (SELECT id FROM staged){_alive(child)}'
            org.rows(sql, [moment] if stamp else [], _staged(ids))


def _mark(spec: ObjectType, deleted: bool, moment: datetime) -> tuple[str, list]:
    dated = [name for name in ("LastModifiedDate", "SystemModstamp") if spec.get(name)]
    sets = "".join(f', "{name}" = ?' for name in dated)
    sql = f'UPDATE "{spec.name}" SET "IsDeleted" = ?{sets} WHERE "Id" IN (SELECT id FROM staged)'
    return sql, [deleted, *([moment] * len(dated))]


def _restore(org: Org, spec: ObjectType, ids: Sequence[str], moment: datetime) -> None:
    """Mark rows not deleted, and those deleted along with them."""
    if not ids:
        return
    for child, link in org.children(spec):
        if link.on_delete == "cascade":
            same = ""
            if child.get("SystemModstamp") and spec.get("SystemModstamp"):
                same = f""" AND "SystemModstamp" IN (SELECT "SystemModstamp" FROM "{spec.name}"
                            WHERE "Id" IN (SELECT id FROM staged))"""
            rows = _children(org, child, link, ids, f' AND "IsDeleted"{same}')
            _restore(org, child, [row for row, _ in rows], moment)
    org.rows(*_mark(spec, False, moment), _staged(ids))


def _erase(org: Org, spec: ObjectType, ids: Sequence[str]) -> None:
    """Remove rows and those that hang on them, deleted or not."""
    if not ids:
        return
    for child, link in org.children(spec):
        if link.on_delete == "cascade":
            _erase(org, child, [row for row, _ in _children(org, child, link, ids, "")])
    org.rows(f'DELETE FROM "{spec.name}" WHERE "Id" IN (SELECT id FROM staged)', staged=_staged(ids))
