"""Rows inserted, updated and upserted: checked one by one, written together; one bad row blocks no other.

Every written row gets the call's one time in LastModifiedDate and SystemModstamp, later than all before it, and tracked
fields that changed a row in the object's history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from crmray.salesforce.sandbox import rules
from crmray.salesforce.sandbox.checks import (
    Draft,
    check_members,
    check_references,
    check_unique,
    find,
    key_of,
    resolve_parents,
)
from crmray.salesforce.sandbox.metadata import Field, ObjectType
from crmray.salesforce.sandbox.org import Org, typed
from crmray.salesforce.sandbox.results import RowResult, SoqlError
from crmray.salesforce.sandbox.values import Refused, as_history, parse

Row = Mapping[str, Any]
MAX_DUPLICATES_NAMED = 5
"""ids listed in DUPLICATE_EXTERNAL_ID"""


def insert(org: Org, spec: ObjectType, rows: Iterable[Row]) -> list[RowResult]:
    """New rows; one result each, in order."""
    _writable(spec, "create")
    drafts = [_draft(org, spec, row, creating=True) for row in rows]
    _finish(org, spec, drafts)
    return [draft.result() for draft in drafts]


def update(org: Org, spec: ObjectType, rows: Iterable[Row]) -> list[RowResult]:
    """Rows changed, found by their Id; one result each, in order."""
    _writable(spec, "update")
    drafts = [_draft(org, spec, row, creating=False) for row in rows]
    for draft in drafts:
        if draft.id is None:
            draft.refuse("MISSING_ARGUMENT", "Id not specified in an update call")
    _finish(org, spec, drafts)
    return [draft.result() for draft in drafts]


def upsert(org: Org, spec: ObjectType, key: Field, rows: Sequence[Row]) -> list[RowResult]:
    """Rows changed where one has the key's value (an external id or Id), else new; one result each, in order."""
    _writable(spec, "upsert")
    if key.type == "id":
        there = [_value(row, "id") not in (None, "") for row in rows]
        drafts = [_draft(org, spec, row, creating=not known) for row, known in zip(rows, there, strict=True)]
    else:
        drafts = _keyed(org, spec, key, rows)
    _finish(org, spec, drafts)
    return [draft.result() for draft in drafts]


def _writable(spec: ObjectType, verb: str) -> None:
    if not spec.writable:
        raise SoqlError("INVALID_TYPE_FOR_OPERATION", f"entity type {spec.name} does not support {verb}")


def _value(row: Row, name: str) -> object:
    return next((value for key, value in row.items() if key.lower() == name), None)


def _keyed(org: Org, spec: ObjectType, key: Field, rows: Sequence[Row]) -> list[Draft]:
    """Drafts that know by the key's value whether they are new."""
    wanted = [_value(row, key.name.lower()) for row in rows]
    known = find(org, spec, key, {key_of(key, value) for value in wanted if value not in (None, "")})
    seen: set[str] = set()
    drafts = []
    for row, value in zip(rows, wanted, strict=True):
        name = key_of(key, value)
        found = known.get(name, [])
        draft = _draft(org, spec, row, creating=not found)
        if value in (None, ""):
            draft.refuse("MISSING_ARGUMENT", f"{key.name} not specified")
        elif name in seen:
            draft.refuse("DUPLICATE_VALUE", f"Duplicate external id specified: {value}", [key.name])
        elif len(found) > 1:
            listed = ", ".join(found[:MAX_DUPLICATES_NAMED])
            draft.refuse(
                "DUPLICATE_EXTERNAL_ID", f"{key.name}: more than one record found for external id field: [{listed}]"
            )
        elif found:
            draft.id = found[0]
        seen.add(name)
        drafts.append(draft)
    return drafts


def _draft(org: Org, spec: ObjectType, row: Row, *, creating: bool) -> Draft:
    """A row parsed and checked by itself."""
    draft = Draft(created=creating)
    try:
        for name, value in row.items():
            _take(org, spec, draft, name, value)
        _required(spec, draft)
    except Refused as error:
        draft.error = error.error
    return draft


def _take(org: Org, spec: ObjectType, draft: Draft, name: str, value: object) -> None:
    """One field of a row."""
    if name == "attributes":
        return
    relationship, _, external = name.partition(".")
    link = spec.parent(relationship) if external or isinstance(value, dict) else None
    if link is not None:
        _take_parent(org, draft, link, {external: value} if external else value)
        return
    one = spec.get(name)
    if one is None:
        raise Refused("INVALID_FIELD", f"No such column '{name}' on sobject of type {spec.name}", [name])
    if one.type == "id":
        if draft.created and value not in (None, ""):
            raise Refused("INVALID_FIELD_FOR_INSERT_UPDATE", "cannot specify Id in an insert call", ["Id"])
        parsed = parse(one, value)
        draft.id = None if parsed is None else str(parsed)
        return
    allowed = one.createable if draft.created else one.updateable
    if not (allowed and one.stored and not one.auto_number):
        message = (f"Unable to create/update fields: {one.name}. Please check the security settings of this field and "
                   "verify that it is read/write for your profile or permission set.")  # fmt: skip
        raise Refused("INVALID_FIELD_FOR_INSERT_UPDATE", message, [one.name])
    draft.values[one.name] = parse(one, value)


def _take_parent(org: Org, draft: Draft, link: Field, keys: object) -> None:
    """A parent named by an external id: {"External__c": value}."""
    if keys in (None, ""):
        draft.values[link.name] = None
        return
    given = {key: value for key, value in keys.items() if key != "attributes"} if isinstance(keys, dict) else {}
    for key, value in given.items():
        for target in link.reference_to:
            one = org.object(target).get(key)
            if one is not None and (one.external_id or one.type == "id"):
                if value in (None, ""):
                    draft.values[link.name] = None
                else:
                    draft.parents[link.name] = (target, one.name, value)
                return
    message = f"The external foreign key reference does not reference a valid entity: {link.relationship_name}"
    raise Refused("INVALID_FIELD", message, [link.name])


def _required(spec: ObjectType, draft: Draft) -> None:
    """Fill in defaults of a new row; what is required must not be null."""
    if draft.created:
        for one in spec.fields:
            if one.stored and draft.values.get(one.name) is None:
                draft.values[one.name] = False if one.type == "boolean" and one.default is None else one.default
    empty = [name for name, value in draft.values.items() if value is None and name not in draft.parents]
    missing = [name for name in empty if _needed(spec, name)]
    if missing:
        raise Refused("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{', '.join(missing)}]", missing)


def _needed(spec: ObjectType, name: str) -> bool:
    """Whether a client must give the field; an owner and what only the org writes are filled in later."""
    one = spec.get(name)
    return one is not None and one.required and one.createable and name != "OwnerId"


def _finish(org: Org, spec: ObjectType, drafts: list[Draft]) -> None:
    """Check against the org's rows and write what passed, in one transaction; rows of the same id one after another."""
    with org.transaction():
        resolve_parents(org, drafts)
        check_references(org, spec, drafts)
        waves: list[list[Draft]] = []
        rank: dict[str, int] = defaultdict(int)
        for draft in drafts:
            turn = 0
            if draft.id is not None and not draft.created:
                turn, rank[draft.id] = rank[draft.id], rank[draft.id] + 1
            if turn == len(waves):
                waves.append([])
            waves[turn].append(draft)
        for wave in waves:
            check_unique(org, spec, wave)
            check_members(org, spec, wave)
            moment = org.stamp()
            _change(org, spec, [one for one in wave if not one.created and not one.error], moment)
            _create(org, spec, [one for one in wave if one.created and not one.error], moment)


def _create(org: Org, spec: ObjectType, drafts: list[Draft], moment: datetime) -> None:
    """Append new rows."""
    if not drafts:
        return
    numbered = next((one for one in spec.fields if one.auto_number), None)
    first = org.take_numbers(f"number {spec.name}", len(drafts)) if numbered else 0
    system = {
        "CreatedDate": moment, "CreatedById": org.user_id, "LastModifiedDate": moment,
        "LastModifiedById": org.user_id, "SystemModstamp": moment, "IsDeleted": False,
    }  # fmt: skip
    for place, (draft, id_) in enumerate(zip(drafts, org.new_ids(spec, len(drafts)), strict=True)):
        draft.id = id_
        draft.values.update(system)
        if spec.get("OwnerId") and draft.values.get("OwnerId") is None:
            draft.values["OwnerId"] = org.user_id
        if numbered:
            draft.values[numbered.name] = f"{first + place:08d}"
    rules.on_write(org, spec, [(draft.values, {}) for draft in drafts], moment)
    columns = {one.name: [draft.values.get(one.name) for draft in drafts] for one in spec.fields if one.stored}
    org.append(spec, {**columns, "Id": [draft.id for draft in drafts]})
    keep_history(org, spec, [(str(draft.id), "created", "Text", None, None) for draft in drafts], moment)


def _change(org: Org, spec: ObjectType, drafts: list[Draft], moment: datetime) -> None:
    """Change rows that are there; those that are not get their error."""
    if not drafts:
        return
    before = _before(org, spec, {str(draft.id) for draft in drafts})
    ready: list[Draft] = []
    for draft in drafts:
        old = before.get(str(draft.id))
        if old is None:
            draft.refuse("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id", [])
        elif old.get("IsDeleted"):
            draft.refuse("ENTITY_IS_DELETED", "entity is deleted", [])
        else:
            ready.append(draft)
    rules.on_write(org, spec, [(draft.values, before[str(draft.id)]) for draft in ready], moment)
    groups: dict[tuple[str, ...], list[Draft]] = defaultdict(list)
    for draft in ready:
        groups[tuple(sorted(draft.values))].append(draft)
    for names, members in groups.items():
        staged = typed(spec, {"Id": [one.id for one in members],
                              **{name: [one.values[name] for one in members] for name in names}})  # fmt: skip
        sets = "".join(f', "{name}" = staged."{name}"' for name in names)
        sql = f'UPDATE "{spec.name}" SET "LastModifiedDate" = ?, "SystemModstamp" = ?, "LastModifiedById" = ?{sets}'
        sql += f' FROM staged WHERE "{spec.name}"."Id" = staged."Id"'
        org.rows(sql, [moment, moment, org.user_id], staged)
    tracked = [one for one in spec.fields if one.tracked and one.stored]
    changes = [
        (str(draft.id), one.name, one.type, before[str(draft.id)][one.name], draft.values[one.name])
        for draft in ready
        for one in tracked
        if one.name in draft.values and draft.values[one.name] != before[str(draft.id)][one.name]
    ]
    keep_history(org, spec, changes, moment)


def _before(org: Org, spec: ObjectType, ids: set[str]) -> dict[str, dict[str, object]]:
    """Id -> what rules, history and checks need of the rows as they are."""
    wanted = ["Id", *(["IsDeleted"] if spec.get("IsDeleted") else [])]
    wanted += [
        one.name for one in spec.fields if one.stored and (one.tracked or one.name in rules.READS.get(spec.name, ()))
    ]
    names = list(dict.fromkeys(wanted))
    staged = pa.table({"id": pa.array(sorted(ids), pa.string())})
    selected = ", ".join(f'"{name}"' for name in names)
    rows = org.rows(f'SELECT {selected} FROM "{spec.name}" WHERE "Id" IN (SELECT id FROM staged)', staged=staged)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def keep_history(
    org: Org, spec: ObjectType, changes: list[tuple[str, str, str, object, object]], moment: datetime
) -> None:
    """Append (id, field, type, old, new) to the object's history; long texts without their values, as in Salesforce."""
    if not spec.history or not changes:
        return
    name, parent = spec.history.split(".")
    history = org.object(name)
    org.append(
        history,
        {
            "Id": org.new_ids(history, len(changes)),
            "IsDeleted": [False] * len(changes),
            parent: [one[0] for one in changes],
            "CreatedById": [org.user_id] * len(changes),
            "CreatedDate": [moment] * len(changes),
            "Field": [one[1] for one in changes],
            "DataType": [one[2] for one in changes],
            "OldValue": [as_history(one[3]) for one in changes],
            "NewValue": [as_history(one[4]) for one in changes],
        },
    )
