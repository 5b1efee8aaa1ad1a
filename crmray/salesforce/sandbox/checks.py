"""Rows on their way into the org, and what is checked of them against the rows that are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from crmray.salesforce.sandbox.metadata import Field, ObjectType
from crmray.salesforce.sandbox.org import Org
from crmray.salesforce.sandbox.results import RowResult
from crmray.salesforce.sandbox.values import Refused, label, parse


@dataclass
class Draft:
    """A row on its way."""

    values: dict[str, object] = field(default_factory=dict)
    """field -> value parsed"""
    parents: dict[str, tuple[str, str, object]] = field(default_factory=dict)
    """reference field -> (object, external id field, value) of the parent it names"""
    id: str | None = None
    """its record id, once known"""
    created: bool = False
    """whether it is to be inserted"""
    error: dict | None = None
    """why it is not written"""

    def refuse(self, code: str, message: str, fields: Sequence[str] = ()) -> None:
        """Keep the first error."""
        self.error = self.error or Refused(code, message, fields).error

    def result(self) -> RowResult:
        """What becomes of it."""
        if self.error:
            return RowResult(id=None if self.created else self.id, success=False, errors=[self.error])
        return RowResult(id=self.id, success=True, created=self.created)


def key_of(key: Field, value: object) -> str:
    """What a value of an external id is compared by: without regard to case, as it would be stored."""
    try:
        return str(parse(key, value)).lower()
    except Refused:
        return str(value).lower()  # no row has it; a row that brings it is refused for it


def find(org: Org, spec: ObjectType, key: Field, values: Iterable[str]) -> dict[str, list[str]]:
    """Value of a field as `key_of` gives it -> ids of the rows, not deleted, that have it."""
    staged = pa.table({"value": pa.array(sorted(set(values)), pa.string())})
    alive = ' AND NOT "IsDeleted"' if spec.get("IsDeleted") else ""
    found: dict[str, list[str]] = defaultdict(list)
    if staged.num_rows:
        sql = f'SELECT lower("{key.name}"::VARCHAR), "Id" FROM "{spec.name}"'
        sql += f' WHERE lower("{key.name}"::VARCHAR) IN (SELECT value FROM staged){alive} ORDER BY "Id"'
        for value, id_ in org.rows(sql, staged=staged):
            found[value].append(id_)
    return found


def resolve_parents(org: Org, drafts: list[Draft]) -> None:
    """References given by external id."""
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for draft in drafts:
        for target, key, value in draft.parents.values():
            wanted[target, key].add(key_of(org.field(target, key)[1], value))
    found = {
        (target, key): find(org, org.object(target), org.field(target, key)[1], values)
        for (target, key), values in wanted.items()
    }
    for draft in drafts:
        for name, (target, key, value) in draft.parents.items():
            matches = found[target, key].get(key_of(org.field(target, key)[1], value), [])
            if len(matches) == 1:
                draft.values[name] = matches[0]
            elif matches:
                draft.refuse(
                    "DUPLICATE_EXTERNAL_ID", f"{key}: more than one record found for external id field", [name]
                )
            else:
                message = f"Foreign key external ID: {value} not found for field {key} in entity {target}"
                draft.refuse("INVALID_FIELD", message, [])


def check_references(org: Org, spec: ObjectType, drafts: list[Draft]) -> None:
    """Every id referred to is one of a row that is there, of an object the field refers to."""
    links = [one for one in spec.fields if one.type == "reference" and one.stored]
    wanted: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        for one in links:
            id_ = draft.values.get(one.name)
            if not isinstance(id_, str) or draft.error:
                continue
            target = org.of_prefix(id_[:3])
            if target is None or target.name not in one.reference_to:
                message = f"{label(one)}: id value of incorrect type: {id_}"
                draft.refuse("FIELD_INTEGRITY_EXCEPTION", message, [one.name])
            else:
                wanted[target.name].add(id_)
    deleted = {
        id_: gone for target, ids in wanted.items() for id_, gone in states(org, org.object(target), ids).items()
    }
    for draft in drafts:
        for one in links:
            id_ = draft.values.get(one.name)
            if isinstance(id_, str) and not draft.error and deleted.get(id_, True):
                code, message = ("ENTITY_IS_DELETED", "entity is deleted") if id_ in deleted else (
                    "INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id")  # fmt: skip
                draft.refuse(code, message, [one.name])


def states(org: Org, spec: ObjectType, ids: Iterable[str]) -> dict[str, bool]:
    """Id -> whether it is deleted, of the rows that are there."""
    staged = pa.table({"id": pa.array(sorted(set(ids)), pa.string())})
    gone = '"IsDeleted"' if spec.get("IsDeleted") else "false"
    return dict(
        org.rows(f'SELECT "Id", {gone} FROM "{spec.name}" WHERE "Id" IN (SELECT id FROM staged)', staged=staged)
    )


def check_unique(org: Org, spec: ObjectType, drafts: list[Draft]) -> None:
    """No two rows share the value of a unique field, within the call or with rows that are there."""
    for one in spec.fields:
        if not (one.unique and one.stored):
            continue
        given = [
            (draft, str(draft.values[one.name]).lower()) for draft in drafts if draft.values.get(one.name) is not None
        ]
        known = find(org, spec, one, [value for _, value in given])
        taken: dict[str, str] = {}
        for draft, value in given:
            if draft.error:
                continue
            others = [id_ for id_ in known.get(value, []) if id_ != draft.id]
            other = others[0] if others else taken.get(value)
            if other is not None:
                message = f"duplicate value found: {one.name} duplicates value on record with id: {other}"
                draft.refuse("DUPLICATE_VALUE", message, [one.name])
            else:
                taken[value] = draft.id or "<unknown>"


def check_members(org: Org, spec: ObjectType, drafts: list[Draft]) -> None:
    """A person is a member of a campaign once, and a member is a Contact or a Lead."""
    if spec.name != "CampaignMember":
        return
    new = [draft for draft in drafts if draft.created and not draft.error]
    pairs = [
        (draft.values.get("CampaignId"), draft.values.get("ContactId") or draft.values.get("LeadId")) for draft in new
    ]
    staged = pa.table({"person": pa.array(sorted({str(person) for _, person in pairs if person}), pa.string())})
    sql = """SELECT "CampaignId", coalesce("ContactId", "LeadId") FROM "CampaignMember" WHERE NOT "IsDeleted"
             AND ("ContactId" IN (SELECT person FROM staged) OR "LeadId" IN (SELECT person FROM staged))"""
    taken = set(org.rows(sql, staged=staged))
    for draft, pair in zip(new, pairs, strict=True):
        if pair[1] is None:
            message = "Required fields are missing: [LeadOrContactId]"
            draft.refuse("REQUIRED_FIELD_MISSING", message, ["LeadOrContactId"])
        elif pair in taken:
            draft.refuse("DUPLICATE_VALUE", "Already a campaign member.", [])
        taken.add(pair)
