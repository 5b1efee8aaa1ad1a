"""Metadata into a sandbox org: the custom fields of what `crmray fields` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from xml.etree import ElementTree

from crmray.salesforce.sandbox.metadata import Field
from crmray.salesforce.sandbox.store import Store

_NAMESPACE = "{http://soap.sforce.com/2006/04/metadata}"
_TYPES = {
    "Number": "double",
    "Checkbox": "boolean",
    "Text": "string",
    "LongTextArea": "textarea",
    "DateTime": "datetime",
}
_ACTIVITIES = ("Task", "Event")
"""fields of Activity are theirs"""


def deploy(store: Store, files: Mapping[str, bytes]) -> list[str]:
    """Add the fields of objects/*.object that the org lacks, all of them or none; their names, "Account.Score__c".

    files: path -> content, in the format of the Metadata API. Every user of a sandbox may see and write them.
    """
    added = []
    with store.transaction():
        for path, content in sorted(files.items()):
            if not path.endswith(".object"):
                continue
            stem = PurePosixPath(path).stem
            fields = [_field(element) for element in ElementTree.fromstring(content).iter(f"{_NAMESPACE}fields")]
            for name in _ACTIVITIES if stem == "Activity" else (stem,):
                for field in fields:
                    if store.object(name).get(field.name) is None:
                        store.add_field(name, field)
                        added.append(f"{name}.{field.name}")
    return added


def _field(element: ElementTree.Element) -> Field:
    said = {child.tag.removeprefix(_NAMESPACE): child.text or "" for child in element}
    type_ = _TYPES[said["type"]]
    return Field(
        name=said["fullName"],
        type=type_,
        label=said["label"],
        length=int(said.get("length", 0)),
        precision=int(said.get("precision", 18)),
        scale=int(said.get("scale", 0)),
        external_id=said.get("externalId") == "true",
        default=False if type_ == "boolean" else None,
    )
