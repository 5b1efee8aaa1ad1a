"""What an object looks like through the API: the bodies of describe, per object and for the whole org."""

from __future__ import annotations

import re
from collections.abc import Mapping

from crmray.salesforce.sandbox.metadata import NUMBER_TYPES, TEXT_TYPES, Field, ObjectType

SOAP = {
    "id": "tns:ID", "reference": "tns:ID", "boolean": "xsd:boolean", "int": "xsd:int", "date": "xsd:date",
    "datetime": "xsd:dateTime", **dict.fromkeys(NUMBER_TYPES - {"int"}, "xsd:double"),
    **dict.fromkeys(TEXT_TYPES, "xsd:string"),
}  # fmt: skip
BASE = "/services/data/v{version}/sobjects/{name}"


def label_of(name: str) -> str:
    """A label for people from an API name: "Created Date" from CreatedDate, "Account ID" from AccountId."""
    bare = name.removesuffix("__c").replace("_", " ")
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", bare)
    return re.sub(r"\bId$", "ID", spaced).strip()


def describe_object(spec: ObjectType, objects: Mapping[str, ObjectType], version: str) -> dict:
    """GET /services/data/vXX/sobjects/<name>/describe."""
    own = f"{BASE.format(version=version, name=spec.name)}"
    urls = {"layouts": f"{own}/describe/layouts", "uiDetailTemplate": "/{ID}", "uiEditTemplate": "/{ID}/e"}
    return {
        **summary(spec, version),
        "urls": {**summary(spec, version)["urls"], **urls},
        "fields": [describe_field(one) for one in spec.fields],
        "childRelationships": child_relationships(spec, objects),
        "recordTypeInfos": [],
        "supportedScopes": [{"label": f"All {plural_of(spec).lower()}", "name": "everything"}],
        "actionOverrides": [],
        "namedLayoutInfos": [],
    }


def plural_of(spec: ObjectType) -> str:
    """Label of many."""
    return spec.plural or f"{spec.label or label_of(spec.name)}s"


def summary(spec: ObjectType, version: str) -> dict:
    """An entry of GET /services/data/vXX/sobjects."""
    own = BASE.format(version=version, name=spec.name)
    deletable = spec.writable and spec.get("IsDeleted") is not None
    return {
        "activateable": False,
        "associateEntityType": None if spec.writable else "History",
        "createable": spec.writable,
        "custom": spec.custom,
        "customSetting": False,
        "deletable": deletable,
        "deprecatedAndHidden": False,
        "feedEnabled": False,
        "hasSubtypes": False,
        "isInterface": False,
        "keyPrefix": spec.prefix,
        "label": spec.label or label_of(spec.name),
        "labelPlural": plural_of(spec),
        "layoutable": spec.writable,
        "mergeable": spec.name in ("Account", "Contact", "Lead", "Case"),
        "mruEnabled": spec.writable,
        "name": spec.name,
        "queryable": True,
        "replicateable": True,
        "retrieveable": True,
        "searchable": spec.writable,
        "triggerable": spec.writable,
        "undeletable": deletable,
        "updateable": spec.writable,
        "urls": {"sobject": own, "describe": f"{own}/describe", "rowTemplate": f"{own}/{{ID}}"},
    }


def child_relationships(spec: ObjectType, objects: Mapping[str, ObjectType]) -> list[dict]:
    """Fields of all objects that refer to this one."""
    return [
        {
            "cascadeDelete": one.on_delete == "cascade",
            "childSObject": child.name,
            "deprecatedAndHidden": False,
            "field": one.name,
            "junctionIdListNames": [],
            "junctionReferenceTo": [],
            "relationshipName": one.child_relationship,
            "restrictedDelete": one.on_delete == "restrict",
        }
        for child in objects.values()
        for one in child.fields
        if spec.name in one.reference_to
    ]


def describe_field(one: Field) -> dict:
    """An entry of a describe's `fields`."""
    number = one.type in NUMBER_TYPES
    settable = one.stored and not one.auto_number
    return {
        "aggregatable": one.filterable and one.type != "boolean",
        "aiPredictionField": False,
        "autoNumber": one.auto_number,
        "byteLength": one.size * (1 if one.type in ("id", "reference") else 3),
        "calculated": one.calculated,
        "calculatedFormula": one.formula if one.calculated else None,
        "cascadeDelete": one.on_delete == "cascade",
        "caseSensitive": False,
        "compoundFieldName": None,
        "controllerName": None,
        "createable": one.createable and settable,
        "custom": one.custom,
        "defaultValue": one.default,
        "defaultValueFormula": None,
        "defaultedOnCreate": one.default is not None or one.name == "OwnerId" or not one.createable,
        "dependentPicklist": False,
        "deprecatedAndHidden": False,
        "digits": one.precision if one.type == "int" else 0,
        "displayLocationInDecimal": False,
        "encrypted": False,
        "externalId": one.external_id,
        "extraTypeInfo": None,
        "filterable": one.filterable,
        "filteredLookupInfo": None,
        "groupable": one.filterable and one.type not in ("double", "currency", "percent", "datetime"),
        "highScaleNumber": False,
        "htmlFormatted": False,
        "idLookup": one.type == "id" or one.external_id or one.type == "email" or one.name_field,
        "inlineHelpText": None,
        "label": one.label or label_of(one.name),
        "length": one.size,
        "mask": None,
        "maskType": None,
        "name": one.name,
        "nameField": one.name_field,
        "namePointing": len(one.reference_to) > 1,
        "nillable": not one.required and one.type != "boolean",
        "permissionable": not one.required and one.type != "id",
        "picklistValues": [
            {"active": True, "defaultValue": value == one.default, "label": value, "validFor": None, "value": value}
            for value in one.values
        ],
        "polymorphicForeignKey": len(one.reference_to) > 1,
        "precision": one.precision if number and one.type != "int" else 0,
        "queryByDistance": False,
        "referenceTargetField": None,
        "referenceTo": list(one.reference_to),
        "relationshipName": one.relationship_name,
        "relationshipOrder": None,
        "restrictedDelete": one.on_delete == "restrict",
        "restrictedPicklist": one.restricted,
        "scale": one.scale if number else 0,
        "searchPrefilterable": False,
        "soapType": SOAP[one.type],
        "sortable": one.filterable,
        "type": one.type,
        "unique": one.unique,
        "updateable": one.updateable and settable,
        "writeRequiresMasterRead": False,
    }
