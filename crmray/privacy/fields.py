"""What becomes of a field on its way into the lake: Salesforce's own types tell, unless the org file says otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crmray.config import Privacy

Treatment = Literal["keep", "drop", "pseudonym", "text"]
PERSONS = frozenset({"Account", "Contact", "Lead", "Individual"})
"""objects whose record ids are pseudonymised"""
_NAMED = PERSONS | {"User"}
_DROPPED_TYPES = frozenset({"email", "phone", "encryptedstring", "address", "location"})
_NAME_FIELDS = frozenset({"Name", "FirstName", "LastName", "MiddleName", "Suffix", "Salutation", "Company", "NickName"})
_DROPPED = re.compile(
    r"(Street|PostalCode|Latitude|Longitude|GeocodeAccuracy|Username|IpAddress|SourceIp|Birthdate|PhotoUrl)$"
    r"|^(Jigsaw|Supplied|From|To|Cc|Bcc|ReplyTo|ValidatedFrom)(Name|Email|Phone|Company|Address)$"
    r"|^(First|Middle|Last|Nick)Name$"  # wherever a person is copied to, as in CampaignMember
    r"|^(HtmlBody|Headers|CallObject|ThreadIdentifier|MessageIdentifier|AboutMe|Alias|CommunityNickname)$",
    re.IGNORECASE,
)
_TEXTS = frozenset({
    "Case.Subject", "Case.Description", "Case.Comments", "CaseComment.CommentBody", "EmailMessage.Subject",
    "EmailMessage.TextBody", "Task.Subject", "Task.Description", "Event.Subject", "Event.Description", "Event.Location",
})  # fmt: skip
_OTHERS = frozenset({"ParentId", "MasterRecordId", "ReportsToId"})
"""references from one person or account to another: the row is not about the one referred to"""
_ABOUT = ("AccountId", "ContactId", "WhoId", "LeadId", "LeadOrContactId", "IndividualId", "ConvertedAccountId")
"""references that are read although no mapping asks for them: they tell whose wish and whose names count"""
_HISTORY = re.compile(r"^(?P<stem>.+?)(?:Field)?History$")
_VALUES = ("OldValue", "NewValue")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A field at the end of a path."""

    owner: str
    """object that has it"""
    field: Mapping[str, Any]
    """its entry in the describe of that object"""

    @property
    def targets(self) -> frozenset[str]:
        """Objects that it refers to; for an Id its own object."""
        if self.field["type"] == "id":
            return frozenset({self.owner})
        return frozenset(self.field.get("referenceTo") or ())


class Fields:
    """Looks fields up in an org's describes, and tells what becomes of them."""

    def __init__(self, privacy: Privacy, describe: Callable[[str], Mapping[str, Any]], *, pseudonyms: bool):
        self._privacy, self._describe, self._pseudonyms = privacy, describe, pseudonyms
        self._known: dict[str, dict[str, Mapping[str, Any]]] = {}

    def of(self, object_: str) -> dict[str, Mapping[str, Any]]:
        """Name -> describe entry of every field."""
        if object_ not in self._known:
            self._known[object_] = {one["name"]: one for one in self._describe(object_)["fields"]}
        return self._known[object_]

    def find(self, object_: str, path: str) -> Found | None:
        """The field at the end of a path such as Order.AccountId; None when there is none."""
        head, dot, rest = path.partition(".")
        if not dot:
            return Found(owner=object_, field=self.of(object_)[path]) if path in self.of(object_) else None
        for field in self.of(object_).values():
            if field.get("relationshipName") == head:
                for target in field.get("referenceTo") or ():
                    found = self.find(target, rest)
                    if found is not None:
                        return found
        return None

    def treatment(self, object_: str, path: str) -> Treatment:
        """What becomes of a column of an object."""
        found = self.find(object_, path)
        names = [f"{object_}.{path}"] + ([f"{found.owner}.{found.field['name']}"] if found else [])
        for name in names:
            if name in self._privacy.identifiers:
                return self._privacy.identifiers[name]
        if found is None:
            return "text" if names[0] in self._privacy.text else "keep"
        return self._by_type(found, any(name in self._privacy.text or name in _TEXTS for name in names))

    def _by_type(self, found: Found, is_text: bool) -> Treatment:
        name, kind = found.field["name"], found.field["type"]
        if kind in ("id", "reference"):
            return "pseudonym" if self._pseudonyms and found.targets & PERSONS else "keep"
        if kind in _DROPPED_TYPES or (kind == "url" and found.owner in _NAMED) or _DROPPED.search(name):
            return "drop"
        if found.owner in _NAMED and (found.field.get("nameField") or name in _NAME_FIELDS):
            return "drop"
        if is_text or kind == "textarea":
            return "text"
        open_text = kind == "string" and not found.field.get("autoNumber") and name != "Field"
        return "text" if open_text and self._is_about_persons(found.owner) else "keep"

    def about(self, object_: str, path: str) -> bool:
        """Whether a column says whom the row is about."""
        found = self.find(object_, path)
        return found is not None and bool(found.targets & PERSONS) and found.field["name"] not in _OTHERS

    def further(self, object_: str, paths: list[str]) -> list[str]:
        """References that say whom the rows are about, of the object and of those that the paths lead through."""
        prefixes = ["", *dict.fromkeys(path.rpartition(".")[0] + "." for path in paths if "." in path)]
        wanted = [prefix + name for prefix in prefixes for name in _ABOUT]
        return [path for path in wanted if path not in paths and self.about(object_, path)]

    def _is_about_persons(self, object_: str) -> bool:
        return object_ in PERSONS or any(self.about(object_, name) for name in _ABOUT)

    def history(self, object_: str) -> str | None:
        """The object whose changes this one holds (AccountHistory: Account); None for other objects."""
        match, fields = _HISTORY.match(object_), self.of(object_)
        if match is None or not {"Field", *_VALUES} <= set(fields):
            return None
        stem = match["stem"]
        return stem + "c" if stem.endswith("__") else stem

    def of_change(self, object_: str, name: str) -> Treatment:
        """What becomes of the old and new values of a field, as a history object names it (`Owner` for OwnerId).

        Those of a field that describe does not have go: a former name may stand under another name (`TextName`).
        """
        fields = self.of(object_)
        for one in (name, f"{name}Id"):
            if one in fields and fields[one]["type"] != "reference":
                return self.treatment(object_, one)
            if one in fields:  # one row holds the ids, another one the names
                return "pseudonym" if set(fields[one].get("referenceTo") or ()) & _NAMED else "keep"
        return "drop"
