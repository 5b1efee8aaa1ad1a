"""The fields that predictions are written to: what they must be, the check by describe, and metadata that makes them.

Metadata is in the format of the Metadata API (package.xml, objects/, permissionsets/), as `sf project deploy start
--metadata-dir` takes it. Fields carry no rights by themselves: the permission set gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args, get_origin
from xml.sax.saxutils import escape

from pydantic import BaseModel

from crmray.config import Writeback
from crmray.errors import ConfigError, SalesforceError
from crmray.salesforce.values import NUMBERS, TEXTS

Kind = Literal["fraction", "integer", "flag", "text", "long_text", "time"]
PERMISSION_SET = "Crmray_Writeback"
REASONS = "reasons"
COMPANIONS = ("as_of", "version", "run_id", REASONS)
"""columns that go with a prediction: a change of these alone is not written"""
_WORDS = {"probability": "Score", "run_id": "Run"}
_ACCEPTED: dict[Kind, tuple[str, ...]] = {
    "fraction": ("double", "currency", "percent"),
    "integer": NUMBERS,
    "flag": ("boolean",),
    "text": TEXTS,
    "long_text": TEXTS,
    "time": ("datetime", "date"),
}
"""Salesforce's types that can hold each kind"""
_METADATA: dict[Kind, str] = {
    "fraction": "<type>Number</type><precision>18</precision><scale>6</scale>",
    "integer": "<type>Number</type><precision>18</precision><scale>0</scale>",
    "flag": "<type>Checkbox</type><defaultValue>false</defaultValue>",
    "text": "<type>Text</type><length>255</length>",
    "long_text": "<type>LongTextArea</type><length>32768</length><visibleLines>3</visibleLines>",
    "time": "<type>DateTime</type>",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A column of predictions and the field that it goes to."""

    column: str
    """of predictions/, or version or run_id"""
    name: str
    """API name of the field"""
    kind: Kind
    """what it holds"""

    @property
    def label(self) -> str:
        """For people, at most 40 characters."""
        return self.name.removesuffix("__c").replace("_", " ")[:40]


def targets(task: str, answer: type[BaseModel], settings: Writeback) -> list[Target]:
    """Where each column goes. answer: the task's Prediction model, one customer's answer.

    ConfigError when `fields` names a column that the task does not predict, or one field twice.
    """
    kinds: dict[str, Kind] = {
        name: _kind(field.annotation) for name, field in answer.model_fields.items() if name != "entity_id"
    }
    kinds |= {"version": "text", "run_id": "text"}
    if unknown := sorted(set(settings.fields) - set(kinds)):
        raise ConfigError(f"writeback.{task}.fields: got columns {unknown}, expected some of {', '.join(kinds)}")
    names = settings.fields or {column: default_name(task, column) for column in kinds}
    if len({name.lower() for name in names.values()}) < len(names):
        raise ConfigError(f"writeback.{task}.fields: got one field for several columns, expected one for each")
    return [Target(column=column, name=name, kind=kinds[column]) for column, name in names.items()]


def default_name(task: str, column: str) -> str:
    """Crmray_Churn_Score__c for probability of churn; of custom.repeat_case Crmray_Repeat_Case_Score__c."""
    word = _WORDS.get(column) or "_".join(part.capitalize() for part in column.split("_"))
    own = "_".join(part.capitalize() for part in task.split(".")[-1].split("_"))
    return f"Crmray_{own}_{word}__c"


def _kind(annotation: Any) -> Kind:
    """Of a pydantic field; an optional one is what it is optional of."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if parts and get_origin(annotation) not in (list, Literal) and len(parts) == 1:
        return _kind(parts[0])
    if get_origin(annotation) is list:
        return "long_text"
    kinds: dict[Any, Kind] = {float: "fraction", int: "integer", bool: "flag", datetime: "time"}
    return kinds.get(annotation, "text")


# -- the check ---------------------------------------------------------------------------------------------------------


def check(described: Mapping[str, Any], wanted: Sequence[Target]) -> dict[str, Mapping[str, Any]]:
    """Field name -> its entry of describe; SalesforceError that lists everything that is wrong.

    described: of the object, which shows only what the user may see.
    """
    there = {field["name"].lower(): field for field in described["fields"]}
    found = {target.name: there.get(target.name.lower()) for target in wanted}
    refuse(described["name"], [_fault(target, found[target.name]) for target in wanted])
    return {name: field for name, field in found.items() if field is not None}


def _fault(target: Target, field: Mapping[str, Any] | None) -> str:
    """What is wrong with a field; "" when nothing is."""
    if field is None:
        return f"{target.name} is missing, or the user may not see it"
    if field["name"] != target.name:  # answers name it as the org does
        return f"{target.name} is spelled {field['name']} in the org"
    if field["type"] not in _ACCEPTED[target.kind]:
        return f"{target.name} is of type {field['type']}, expected {' or '.join(_ACCEPTED[target.kind])}"
    if target.kind == "fraction" and field["type"] != "percent" and not field.get("scale"):
        return f"{target.name} holds no decimal places, expected 2 or more"
    if not field["updateable"]:
        return f"{target.name} cannot be updated by this user"
    return ""


def fitting(name: str, field: Mapping[str, Any], values: Iterable[str | None]) -> str:
    """Why the values do not fit into a text, picklist or number field; "" when they do."""
    present = {value for value in values if value is not None}
    if field["type"] in NUMBERS:
        most = int(field.get("precision") or field.get("digits") or 18) - int(field.get("scale") or 0)
        longest = max((len(value.lstrip("-").split(".")[0]) for value in present), default=0)
        return f"{name} holds {most} digits, expected {longest} or more" if longest > most else ""
    length = int(field.get("length") or 0)
    longest = max(map(len, present), default=0)
    if field["type"] in TEXTS and length and longest > length:
        return f"{name} holds {length} characters, expected {longest} or more"
    if field["type"] == "picklist" and field.get("restrictedPicklist"):
        allowed = {entry["value"] for entry in field["picklistValues"] if entry.get("active", True)}
        if missing := sorted(present - allowed):
            return f"{name} lacks {len(missing)} of the values, expected it to be no restricted picklist"
    return ""


def refuse(name: str, faults: Iterable[str]) -> None:
    """SalesforceError with all faults of an object's fields, if any."""
    if told := [fault for fault in faults if fault]:
        raise SalesforceError(
            f"{name}: {'; '.join(told)}. Nothing was sent. `crmray fields ORG.yaml` writes metadata that makes the "
            "fields of the tasks that `writeback:` names (without it of all whose rows are records), and the "
            "permission set for them"
        )


# -- metadata ----------------------------------------------------------------------------------------------------------


def metadata(objects: Mapping[str, Sequence[Target]], task_keys: Sequence[str], version: str) -> dict[str, bytes]:
    """Files to deploy, by path: package.xml, objects/*.object and the permission set.

    objects: object -> its fields; custom ones (…__c) are made, others taken as they are. task_keys: external id fields
    of Task, which Salesforce keeps with Activity. version: of the API.
    """
    made = {name: [target for target in wanted if target.name.endswith("__c")] for name, wanted in objects.items()}
    bodies = {name: [_field(target) for target in wanted] for name, wanted in made.items() if wanted}
    if task_keys:
        key_type = "<type>Text</type><length>255</length><externalId>true</externalId>"
        bodies["Activity"] = [_custom(key, key.removesuffix("__c").replace("_", " "), key_type) for key in task_keys]
    names = [f"{name}.{target.name}" for name, wanted in made.items() for target in wanted]
    granted = [*names, *(f"Task.{key}" for key in task_keys)]
    names += [f"Activity.{key}" for key in task_keys]
    files = {f"objects/{name}.object": _xml("CustomObject", *body) for name, body in bodies.items()}
    files[f"permissionsets/{PERMISSION_SET}.permissionset"] = _xml(
        "PermissionSet",
        *(
            f"<fieldPermissions><editable>true</editable><field>{name}</field><readable>true</readable></fieldPermissions>"
            for name in sorted(granted)
        ),
        "<hasActivationRequired>false</hasActivationRequired>",
        "<label>crmray write-back</label>",
    )
    files["package.xml"] = _xml(
        "Package",
        _members("CustomField", names),
        _members("PermissionSet", [PERMISSION_SET]),
        f"<version>{version}</version>",
    )
    return files


def _field(target: Target) -> str:
    return _custom(target.name, target.label, _METADATA[target.kind])


def _custom(name: str, label: str, type_: str) -> str:
    told = "<description>Written by crmray</description>"
    return f"<fields><fullName>{name}</fullName>{told}<label>{escape(label)}</label>{type_}</fields>"


def _members(kind: str, names: Iterable[str]) -> str:
    listed = "".join(f"<members>{name}</members>" for name in sorted(names))
    return f"<types>{listed}<name>{kind}</name></types>"


def _xml(root: str, *parts: str) -> bytes:
    body = "\n".join(f"    {part}" for part in parts)
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f'{head}\n<{root} xmlns="http://soap.sforce.com/2006/04/metadata">\n{body}\n</{root}>\n'.encode()
