"""What changed in an org's schema since the last pull: fields that are new, gone or of another type, picklist values.

A field that the mapping reads and that is gone or has another type stops the pull of its object: half of its history
would mean something else. A new value in the place of an old one may stand in rows whose modstamp did not move, so the
object is then pulled anew as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from crmray.errors import SchemaError
from crmray.salesforce.pages import type_of

Seen = Mapping[str, Mapping[str, Any]]
"""field -> {"type": Salesforce's, "values": those of a picklist}"""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between two looks at a schema."""

    field: str
    """SOQL path"""
    what: Literal["new", "dropped", "retyped", "picklist"]
    """kind of change"""
    before: str = ""
    """type, or picklist values that are gone"""
    after: str = ""
    """type, or picklist values that are new"""
    read: bool
    """whether the mapping reads the field"""

    def to_json(self) -> dict[str, Any]:
        """For events and the manifest."""
        return asdict(self)


def seen(described: Iterable[Mapping[str, Any]], types: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The schema as it is now. described: fields of describe; types: of the paths read, through relationships too."""
    found: dict[str, dict[str, Any]] = {path: {"type": type_} for path, type_ in types.items()}
    for field in described:
        found[field["name"]] = {"type": field["type"]}
        if field["type"] in ("picklist", "multipicklist"):
            found[field["name"]]["values"] = sorted(entry["value"] for entry in field.get("picklistValues") or ())
    return found


def compare(before: Seen, after: Seen, read: Iterable[str]) -> list[Change]:
    """What changed, by name of the field. read: paths that the mapping reads, now or at the last pull."""
    read = set(read)
    found = []
    for field in sorted({*before, *after}):
        old, new = before.get(field), after.get(field)
        if old is None or new is None:
            kind: Literal["new", "dropped"] = "new" if old is None else "dropped"
            types = {"before": old["type"] if old else "", "after": new["type"] if new else ""}
            found.append(Change(field=field, what=kind, read=field in read, **types))
        elif old["type"] != new["type"]:
            found.append(Change(field=field, what="retyped", before=old["type"], after=new["type"], read=field in read))
        elif gone := sorted(set(old.get("values", ())) - set(new.get("values", ()))):
            fresh = sorted(set(new["values"]) - set(old["values"]))
            found.append(
                Change(field=field, what="picklist", before=", ".join(gone), after=", ".join(fresh), read=field in read)
            )
        elif fresh := sorted(set(new.get("values", ())) - set(old.get("values", ()))):
            found.append(Change(field=field, what="picklist", after=", ".join(fresh), read=field in read))
    return found


def refuse(name: str, changes: Iterable[Change], way_out: str) -> None:
    """SchemaError when a field that the mapping reads is gone, or its values became another kind of column.

    way_out: what to do when the change is meant.
    """
    for change in changes:
        if not change.read:
            continue
        if change.what == "dropped":
            raise SchemaError(
                f"object {name}: field {change.field} is gone since the last pull, or the user may no longer read it; "
                f"the last good run stays current; bring it back, or {way_out}"
            )
        if change.what == "retyped" and type_of(change.before) != type_of(change.after):
            raise SchemaError(
                f"object {name}: field {change.field} is now {change.after}, was {change.before} at the last pull; "
                f"the last good run stays current; change it back, or {way_out}"
            )


def anew(changes: Iterable[Change]) -> bool:
    """Whether old rows may hold what the changes made wrong, so that the whole object must be pulled."""
    return any(change.read and (change.what in ("new", "retyped") or bool(change.before)) for change in changes)
