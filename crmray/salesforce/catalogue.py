"""What a Salesforce org has of what the mapping looks for: by describe, before anything is read.

Fields are SOQL paths from the object read: `Industry`, or through lookups `Order.AccountId`, `Region__r.Head__r.Name`.
Every step of a path is looked up as the `relationshipName` of a field, and goes on at its `referenceTo`; SOQL follows
five of them at most. A lookup to several objects (What, Who, Owner) offers the fields of the Name object alone
(SOQL and SOSL Reference, "Understanding Relationship Fields and Polymorphic Fields").

Salesforce answers alike for what is not there and what the user may not see, so both are called ABSENT here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from crmray.config import Org, SalesforceSource
from crmray.data.ingest import kept_columns
from crmray.errors import ConfigError, SalesforceError
from crmray.salesforce import mapping
from crmray.salesforce.slices import both
from crmray.sources import TableSource

ABSENT = "not there, or the user has no permission to read it"
NOT_QUERYABLE = "there, but it cannot be queried"
COMPOUND = "a compound field, which Bulk queries do not give; name its parts, such as BillingCity"
POLYMORPHIC = "behind a lookup to several objects, of which a query gives the fields of Name alone"
TOO_DEEP = "more than five relationships away"
MAX_STEPS = 5
REST_ROWS = 10_000
"""objects with fewer rows are read by REST: five pages cost no more calls than a Bulk job"""
SYSTEM = ("Id", "CreatedDate", "LastModifiedDate", "SystemModstamp", "IsDeleted")
"""read of every object that has them"""
NAME_FIELDS = (
    "Id", "Name", "Alias", "Email", "FirstName", "LastName", "IsActive", "NameOrAlias", "Phone", "ProfileId", "Title",
    "Type", "UserRoleId", "Username",
)  # fmt: skip
"""fields that every object behind a lookup to several objects offers"""
_UNREADABLE = ("address", "location", "base64", "complexvalue")
CONSENT: dict[str, tuple[str, ...]] = {
    "Account": (
        "PersonContactId", "PersonIndividualId", "PersonHasOptedOutOfEmail", "PersonDoNotCall",
    ),
    "Contact": (
        "AccountId", "IndividualId", "HasOptedOutOfEmail", "HasOptedOutOfFax", "DoNotCall",
    ),
    "Lead": (
        "IndividualId", "HasOptedOutOfEmail", "HasOptedOutOfFax", "DoNotCall", "ConvertedAccountId",
        "ConvertedContactId",
    ),
    "Individual": (
        "HasOptedOutProcessing", "HasOptedOutProfiling", "HasOptedOutSolicit", "HasOptedOutTracking", "ShouldForget",
    ),
    "ContactPointTypeConsent": (
        "PartyId", "ContactPointType", "PrivacyConsentStatus", "DataUsePurposeId", "DataUsePurpose.Name",
        "EffectiveFrom", "EffectiveTo",
    ),
}  # fmt: skip
"""object -> fields in which persons say what may be done; read where they are there"""


class Described(Protocol):
    """What is asked of crmray.salesforce.client.Client here."""

    def objects(self) -> dict[str, dict[str, Any]]:
        """Name -> entry of the global describe."""

    def describe(self, name: str, /) -> dict[str, Any]:
        """Describe of one object."""

    def count(self, name: str, where: str = "", /, *, all_rows: bool = False) -> int:
        """COUNT() of its rows; all_rows: archived and deleted ones too."""


@dataclass(frozen=True, kw_only=True)
class Lack:
    """An object or field that the mapping looks for and the org does not give."""

    object: str
    """as the mapping names it"""
    path: str
    """SOQL path from it; empty: the object itself"""
    tables: tuple[str, ...]
    """canonical tables that would have used it; empty: consent"""
    why: str
    """reason, as a clause"""
    asked: bool
    """the org file names it, so that doing without would not be what was asked for"""

    def __str__(self) -> str:
        name = f"{self.object}.{self.path}" if self.path else f"object {self.object}"
        return f"{name}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class ObjectPlan:
    """How one object is read."""

    name: str
    """API name"""
    fields: tuple[str, ...]
    """SOQL paths to read: Id first, then sorted"""
    types: Mapping[str, str]
    """path -> Salesforce's type: string, picklist, double, currency, datetime, reference …"""
    formulas: tuple[str, ...]
    """fields that change while no modstamp moves that can be asked for: calculated ones, own or a parent's, and those
    behind a lookup to several objects"""
    parents: Mapping[str, str]
    """relationship path -> object behind it, for every relationship that a field goes through (`Order` -> Order,
    `Order.Account` -> Account): paths through it change when that object's row does"""
    where: str
    """condition of the rows that are read; empty: all"""
    archived: bool
    """whether rows can be archived, as activities are after a year: only queryAll gives them, beside the deleted ones,
    which `where` leaves out"""
    modstamp: Literal["SystemModstamp", "CreatedDate"]
    """time by which it is sliced; CreatedDate where rows never change"""
    has_deleted: bool
    """whether rows can lie in the recycle bin"""
    rows: int
    """COUNT() of these rows now, deleted ones left out"""
    tables: tuple[str, ...]
    """canonical tables that it fills; empty: read for consent alone"""

    @property
    def derived(self) -> tuple[str, ...]:
        """Fields that change while the row's own SystemModstamp stands still: formulas and relationship paths."""
        return tuple(dict.fromkeys([*self.formulas, *(path for path in self.fields if "." in path)]))

    @property
    def via(self) -> Literal["bulk", "rest"]:
        """The API that it is read by."""
        return "rest" if self.rows < REST_ROWS else "bulk"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What will be read of an org, and what cannot be."""

    objects: Mapping[str, ObjectPlan]
    """API name -> plan, in the order of the mapping"""
    tables: Mapping[str, list[TableSource]]
    """the mapping, cut to what the org has"""
    lacks: tuple[Lack, ...]
    """what it looks for in vain"""
    calls: int
    """API calls that it took: a list of objects, describes, counts"""

    def check(self) -> None:
        """ConfigError when something that the org file itself names is not there."""
        asked = [str(lack) for lack in self.lacks if lack.asked]
        if asked:
            raise ConfigError(
                f"source.tables: {asked[0]}; correct the name or give the user the permission"
                + (f" (and {len(asked) - 1} more: see `crmray describe`)" if len(asked) > 1 else "")
            )


def read(client: Described, org: Org) -> Catalogue:
    """Describe every object of the mapping, count its rows, and say which of its fields can be read.

    One call for the list of objects, and for each object one to describe it and one to count; objects behind
    relationships are described too. SalesforceError when the org has nothing that the mapping knows.
    """
    source = org.source
    assert isinstance(source, SalesforceSource), source.kind
    describes = Describes(client)
    wanted = mapping.wanted(source)
    names = list(dict.fromkeys([found.object for sources in wanted.values() for found in sources]))
    readable = {name: _readable(describes, wanted, name) for name in names if describes.why_not(name) is None}
    where = {name: _where(describes, wanted, name, source.since) for name in readable}
    rows = {name: client.count(name, where[name], all_rows=describes.archived(name)) for name in readable}
    tables = mapping.tables(source, readable, empty=[name for name, count in rows.items() if not count])
    if not tables:
        raise SalesforceError(
            f"got an org without any of {', '.join(names)} that the user may read, expected one at least;"
            " give the integration user read permission"
        )
    consent = [name for name in CONSENT if describes.why_not(name) is None]
    used = [found.object for sources in tables.values() for found in sources]
    rows |= {name: client.count(name, "") for name in consent if name not in rows}
    plans = {
        name: _plan(describes, tables, name, where.get(name, ""), rows[name])
        for name in dict.fromkeys([*used, *consent])
    }
    lacks = tuple(_lacks(describes, source, wanted))
    return Catalogue(objects=plans, tables=tables, lacks=lacks, calls=describes.calls + len(rows))


class Describes:
    """Describes of an org, fetched once each, and paths followed through them."""

    def __init__(self, client: Described):
        self._client = client
        self._objects = client.objects()
        self._fields: dict[str, dict[str, dict[str, Any]]] = {}

    @property
    def calls(self) -> int:
        """API calls made: the list of objects, and a describe of each object looked at."""
        return 1 + len(self._fields)

    def why_not(self, name: str) -> str | None:
        """Why the object cannot be read; None when it can."""
        if name not in self._objects:
            return ABSENT
        return None if self._objects[name].get("queryable", True) else NOT_QUERYABLE

    def fields(self, name: str) -> dict[str, dict[str, Any]]:
        """Field name -> its describe."""
        if name not in self._fields:
            self._fields[name] = {field["name"]: field for field in self._client.describe(name)["fields"]}
        return self._fields[name]

    def archived(self, name: str) -> bool:
        """Whether rows of the object can be archived, so that queries do not give them and queryAll does."""
        return {"IsArchived", "IsDeleted"} <= set(self.fields(name))

    def parents(self, name: str, path: str) -> tuple[dict[str, str], str | None]:
        """Relationship path -> object for each step of a path, and why it cannot be followed (None: it can)."""
        found: dict[str, str] = {}
        *steps, _ = path.split(".")
        if len(steps) > MAX_STEPS:
            return found, TOO_DEEP
        for index, step in enumerate(steps):
            lookup = next((at for at in self.fields(name).values() if at.get("relationshipName") == step), None)
            if lookup is None:
                return found, ABSENT
            targets = lookup["referenceTo"]
            if len(targets) != 1:
                last = index == len(steps) - 1 and path.rpartition(".")[2] in NAME_FIELDS
                return found, None if last else POLYMORPHIC
            name = targets[0]
            if (why := self.why_not(name)) is not None:
                return found, why
            found[".".join(steps[: index + 1])] = name
        return found, None

    def field(self, name: str, path: str) -> tuple[dict[str, Any] | None, str | None]:
        """The describe of the field at the end of a path, or why it cannot be read."""
        parents, why = self.parents(name, path)
        if why is not None:
            return None, why
        steps, _, last = path.rpartition(".")
        if steps and steps not in parents:  # behind a lookup to several objects
            return {"name": last, "type": "id" if last == "Id" else "string", "calculated": False}, None
        field = self.fields(parents.get(steps, name)).get(last)
        if field is None:
            return None, ABSENT
        return (None, COMPOUND) if field["type"] in _UNREADABLE else (field, None)


def _where(describes: Describes, wanted: Mapping[str, list[TableSource]], name: str, since: str) -> str:
    """Condition of the rows that are read: none deleted where queryAll is asked, and none before `since`."""
    return both("IsDeleted = false" if describes.archived(name) else "", _since(describes, wanted, name, since))


def _since(describes: Describes, wanted: Mapping[str, list[TableSource]], name: str, since: str) -> str:
    """Condition of time: an object that fills tables of events alone begins at `since`."""
    filled = [table for table, sources in wanted.items() if any(source.object == name for source in sources)]
    if not since or name in CONSENT or "CreatedDate" not in describes.fields(name):
        return ""
    return f"CreatedDate >= {since}T00:00:00Z" if set(filled) <= set(mapping.EVENT_TABLES) else ""


def _readable(describes: Describes, wanted: Mapping[str, list[TableSource]], name: str) -> list[str]:
    """Own fields and the paths of the mapping that can be read."""
    own = [field for field in describes.fields(name) if describes.field(name, field)[1] is None]
    paths = {
        path
        for sources in wanted.values()
        for source in sources
        if source.object == name
        for path in kept_columns(source, own)
        if "." in path and describes.field(name, path)[1] is None
    }
    return [*own, *sorted(paths)]


def _plan(
    describes: Describes, tables: Mapping[str, list[TableSource]], name: str, where: str, rows: int
) -> ObjectPlan:
    """The plan of one object that is there."""
    own = describes.fields(name)
    readable = [field for field in own if describes.field(name, field)[1] is None]
    sources = [(table, source) for table, found in tables.items() for source in found if source.object == name]
    wanted = {path for _, source in sources for path in kept_columns(source, readable)} | {
        *CONSENT.get(name, ()),
        *SYSTEM,
    }
    found = {path: describes.field(name, path)[0] for path in ("Id", *sorted(wanted - {"Id"}))}
    types = {path: field["type"] for path, field in found.items() if field is not None}
    fields = tuple(types)
    if not {"SystemModstamp", "CreatedDate"} & set(own):
        raise ConfigError(
            f"source.tables: object {name} has no SystemModstamp and no CreatedDate, expected one of them, by which it "
            "is read in slices; take it out of the mapping"
        )
    parents: dict[str, str] = {}
    for path in fields:
        parents |= describes.parents(name, path)[0]
    return ObjectPlan(
        name=name,
        fields=fields,
        types=types,
        formulas=tuple(path for path in fields if _is_formula(found[path], parents, path)),
        parents=parents,
        where=where,
        archived=describes.archived(name),
        modstamp="SystemModstamp" if "SystemModstamp" in own else "CreatedDate",
        has_deleted="IsDeleted" in own,
        rows=rows,
        tables=tuple(dict.fromkeys(table for table, _ in sources)),
    )


def _is_formula(field: Mapping[str, Any] | None, parents: Mapping[str, str], path: str) -> bool:
    """Whether a field changes without a modstamp; parents: those of the object's relationships that can be asked."""
    steps = path.rpartition(".")[0]
    return bool(field and field.get("calculated")) or bool(steps and steps not in parents)


def _lacks(describes: Describes, source: SalesforceSource, wanted: Mapping[str, list[TableSource]]) -> Iterator[Lack]:
    """What the mapping and the consent look for in vain, each once."""
    own = {id(part) for parts in source.tables.values() for part in parts}
    seen: dict[tuple[str, str], tuple[list[str], str, bool]] = {}
    for table, sources in wanted.items():
        for part in sources:
            why = describes.why_not(part.object)
            absent = [("", why)] if why else _absent_paths(describes, part)
            for path, reason in absent:
                asked = id(part) in own
                names, _, before = seen.get((part.object, path), ([], "", False))
                seen[part.object, path] = ([*dict.fromkeys([*names, table])], reason, asked or before)
    for (name, path), (names, reason, asked) in seen.items():
        yield Lack(object=name, path=path, tables=tuple(names), why=reason, asked=asked)
    for name, paths in CONSENT.items():
        why = describes.why_not(name)
        if why and name not in {key[0] for key in seen}:
            yield Lack(object=name, path="", tables=(), why=why, asked=False)
        elif not why and name != "Account":  # its consent fields are there for person accounts alone
            for path in paths:
                unread = describes.field(name, path)[1]
                if unread and (name, path) not in seen:
                    yield Lack(object=name, path=path, tables=(), why=unread, asked=False)


def _absent_paths(describes: Describes, source: TableSource) -> list[tuple[str, str]]:
    """Paths of a source that cannot be read, each with the reason."""
    found = ((path, describes.field(source.object, path)[1]) for path in kept_columns(source, []))
    return [(path, why) for path, why in found if why is not None]
