"""What objects and fields of the sandbox org are: the facts behind describe, SOQL and the checks of what is written.

A field's Salesforce type decides its column in DuckDB (SQL_TYPES). `formula` is SQL over {Field} and {Parent.Field}
in braces, computed whenever the field is read; with `calculated` it is a formula field as an org has them, without it
one of those that Salesforce derives itself (Contact.Name, Opportunity.IsWon).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

SQL_TYPES = {
    "id": "VARCHAR", "reference": "VARCHAR", "string": "VARCHAR", "textarea": "VARCHAR", "picklist": "VARCHAR",
    "email": "VARCHAR", "phone": "VARCHAR", "url": "VARCHAR", "boolean": "BOOLEAN", "int": "BIGINT",
    "double": "DOUBLE", "currency": "DOUBLE", "percent": "DOUBLE", "date": "DATE", "datetime": "TIMESTAMP",
}  # fmt: skip
"""Salesforce type -> type of the column; datetimes are UTC"""
TEXT_TYPES = frozenset({"string", "textarea", "picklist", "email", "phone", "url"})
NUMBER_TYPES = frozenset({"int", "double", "currency", "percent"})
LENGTHS = {
    "id": 18, "reference": 18, "string": 255, "textarea": 255, "picklist": 255, "email": 80, "phone": 40, "url": 255,
}  # fmt: skip
"""characters a value may have unless the field says otherwise"""
FILTERABLE_LENGTH = 255
"""a text area longer than this can be neither filtered nor sorted nor grouped"""
NAME = re.compile(r"^[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*(__[a-z]+|__History)?$")
ON_DELETE = ("cascade", "clear", "restrict")
FIXED: dict[str, Any] = {"createable": False, "updateable": False}
"""a field that only the org writes"""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of an object."""

    name: str
    """API name; custom ones end in __c"""
    type: str
    """Salesforce type, a key of SQL_TYPES"""
    label: str = ""
    """for people; made from the name if empty"""
    length: int = 0
    """characters, 0 = the type's (LENGTHS)"""
    precision: int = 18
    """digits of a number"""
    scale: int = 0
    """digits after the point"""
    required: bool = False
    """null is refused"""
    createable: bool = True
    """may be given on insert"""
    updateable: bool = True
    """may be changed"""
    unique: bool = False
    """no two rows alike (of those not null)"""
    external_id: bool = False
    """upsert and parents may refer to rows by it"""
    name_field: bool = False
    """the record's name"""
    reference_to: tuple[str, ...] = ()
    """objects a reference points to; several = polymorphic"""
    relationship_name: str | None = None
    """what the parent is called in SOQL: Account for AccountId, X__r for X__c"""
    child_relationship: str | None = None
    """what these rows are called from the parent, if anything"""
    on_delete: str = "clear"
    """what the parent's deletion does to these rows: cascade, clear (the reference) or restrict (refused)"""
    values: tuple[str, ...] = ()
    """active values of a picklist"""
    restricted: bool = False
    """other values are refused"""
    default: str | float | bool | None = None
    """of a row that does not say"""
    auto_number: bool = False
    """numbered by the org: 00000001 and on"""
    tracked: bool = False
    """changes are kept in the object's history"""
    formula: str | None = None
    """SQL over {Field} and {Parent.Field}"""
    calculated: bool = False
    """`formula` is a formula field: it may change while SystemModstamp stands"""

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise ValueError(f"got field name {self.name!r}, expected letters, digits and single underscores")
        if self.type not in SQL_TYPES:
            raise ValueError(f"{self.name}: got type {self.type!r}, expected one of {', '.join(SQL_TYPES)}")
        if self.on_delete not in ON_DELETE:
            raise ValueError(f"{self.name}: got on_delete {self.on_delete!r}, expected one of {', '.join(ON_DELETE)}")
        if (self.type == "reference") != bool(self.reference_to):
            raise ValueError(f"{self.name}: got type {self.type!r} to {self.reference_to}, expected both or neither")

    @property
    def custom(self) -> bool:
        """Whether it is not Salesforce's own."""
        return self.name.endswith("__c")

    @property
    def size(self) -> int:
        """Characters a value may have; 0 for what is no text."""
        return self.length or LENGTHS.get(self.type, 0)

    @property
    def filterable(self) -> bool:
        """Whether WHERE, ORDER BY and GROUP BY may use it."""
        return not (self.type == "textarea" and self.size > FILTERABLE_LENGTH)

    @property
    def stored(self) -> bool:
        """Whether it has a column."""
        return self.formula is None


@dataclass(frozen=True, kw_only=True)
class ObjectType:
    """An object: a table of the org."""

    name: str
    """API name; custom ones end in __c"""
    prefix: str
    """first three characters of its ids"""
    fields: tuple[Field, ...]
    """in the order of describe"""
    label: str = ""
    """for people; made from the name if empty"""
    plural: str = ""
    """label of many"""
    history: str | None = None
    """where changes of tracked fields are kept: object and reference to this one, as AccountHistory.AccountId"""
    writable: bool = True
    """whether rows may be written through the API"""

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise ValueError(f"got object name {self.name!r}, expected letters, digits and single underscores")
        if not re.fullmatch(r"[0-9A-Za-z]{3}", self.prefix):
            raise ValueError(f"{self.name}: got prefix {self.prefix!r}, expected three letters or digits")

    @property
    def custom(self) -> bool:
        """Whether it is not Salesforce's own."""
        return self.name.endswith("__c")

    @cached_property
    def _by_name(self) -> dict[str, Field]:
        return {one.name.lower(): one for one in self.fields}

    @cached_property
    def _by_relationship(self) -> dict[str, Field]:
        return {one.relationship_name.lower(): one for one in self.fields if one.relationship_name}

    def get(self, name: str) -> Field | None:
        """A field by its name in any case."""
        return self._by_name.get(name.lower())

    def parent(self, relationship: str) -> Field | None:
        """The reference that a relationship name in any case follows."""
        return self._by_relationship.get(relationship.lower())

    @property
    def name_field(self) -> Field:
        """The record's name, or its id where it has none."""
        return next((one for one in self.fields if one.name_field), self.fields[0])

    def with_field(self, spec: Field) -> ObjectType:
        """With a field added, or replaced where one has its name."""
        others = [one for one in self.fields if one.name.lower() != spec.name.lower()]
        place = next((i for i, one in enumerate(self.fields) if one.name.lower() == spec.name.lower()), len(others))
        return replace(self, fields=(*others[:place], spec, *others[place:]))

    def without_field(self, name: str) -> ObjectType:
        """With a field removed."""
        return replace(self, fields=tuple(one for one in self.fields if one.name.lower() != name.lower()))


Text = partial(Field, type="string")
Pick = partial(Field, type="picklist")
Check = partial(Field, type="boolean", default=False)
Money = partial(Field, type="currency", scale=2)
LongText = partial(Field, type="textarea", length=32_000)
Day = partial(Field, type="date")
Moment = partial(Field, type="datetime")


def to_json(spec: ObjectType) -> dict:
    """What `from_json` reads."""
    return asdict(spec)


def from_json(data: dict) -> ObjectType:
    """An object as `to_json` wrote it."""
    fields = tuple(
        Field(**{**one, "reference_to": tuple(one["reference_to"]), "values": tuple(one["values"])})
        for one in data["fields"]
    )
    return ObjectType(**{**data, "fields": fields})


def relationship_of(field_name: str) -> str:
    """What a reference's parent is called in SOQL: Account for AccountId, X__r for X__c."""
    return field_name[:-1] + "r" if field_name.endswith("__c") else field_name.removesuffix("Id")


def reference(name: str, *to: str, **more) -> Field:
    """A reference with its usual relationship name."""
    return Field(name=name, type="reference", reference_to=to, relationship_name=relationship_of(name), **more)


def system_fields(*, owner: bool = True, deletable: bool = True) -> tuple[Field, ...]:
    """What Salesforce gives every object; IsDeleted only to those that can be."""
    owned = (reference("OwnerId", "User", required=True),) if owner else ()
    return (
        *((Field(name="IsDeleted", type="boolean", required=True, **FIXED),) if deletable else ()),
        *owned,
        Field(name="CreatedDate", type="datetime", required=True, **FIXED),
        reference("CreatedById", "User", required=True, **FIXED),
        Field(name="LastModifiedDate", type="datetime", required=True, **FIXED),
        reference("LastModifiedById", "User", required=True, **FIXED),
        Field(name="SystemModstamp", type="datetime", required=True, **FIXED),
    )


def object_type(
    name: str, prefix: str, fields: Sequence[Field], *, owner: bool = True, deletable: bool = True, **more
) -> ObjectType:
    """An object with Id, its fields and the system's; a custom one without a Name gets it."""
    own = Field(name="Id", type="id", label="Record ID", required=True, **FIXED)
    named: tuple[Field, ...] = ()
    if name.endswith("__c") and not any(one.name_field for one in fields):
        named = (Field(name="Name", type="string", length=80, name_field=True, auto_number=True, **FIXED),)
    system = system_fields(owner=owner, deletable=deletable)
    return ObjectType(name=name, prefix=prefix, fields=(own, *named, *fields, *system), **more)


def history_type(name: str, parent: Field, prefix: str) -> ObjectType:
    """The object that keeps the changes of tracked fields; as Salesforce's, it has no SystemModstamp."""
    return ObjectType(
        name=name,
        prefix=prefix,
        writable=False,
        fields=(
            Field(name="Id", type="id", label="Record ID", required=True, **FIXED),
            Field(name="IsDeleted", type="boolean", required=True, **FIXED),
            parent,
            reference("CreatedById", "User", required=True, **FIXED),
            Field(name="CreatedDate", type="datetime", required=True, **FIXED),
            Field(name="Field", type="picklist", required=True, **FIXED),
            Field(name="DataType", type="picklist", **FIXED),
            Field(name="OldValue", type="string", **FIXED),
            Field(name="NewValue", type="string", **FIXED),
        ),
    )
