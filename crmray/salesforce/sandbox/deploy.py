"""Metadata into a sandbox org: the custom fields of what `crmray fields` writes, deployed by REST, done at once.

Source: Metadata API Developer Guide, "Deploying with REST" (POST and GET .../metadata/deployRequest).
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Mapping
from email.parser import BytesParser
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

from starlette.responses import Response

from crmray.salesforce.sandbox.metadata import Field
from crmray.salesforce.sandbox.rest import Handler
from crmray.salesforce.sandbox.store import Store
from crmray.salesforce.sandbox.wire import ApiError, Call, json_response, not_found

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


class Deploys:
    """The handlers, and the results of deployments so far."""

    def __init__(self, store: Store):
        self.store = store
        self._results: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count()

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, pattern of the path below /services/data/vXX.0, handler)."""
        return [
            ("POST", "/metadata/deployRequest", self.create),
            ("GET", r"/metadata/deployRequest/(?P<id>\w{18})", self.read),
        ]

    def create(self, call: Call) -> Response:
        """Deploy a zip; 400 for a body that is none."""
        number = f"0Af5e0{next(self._numbers):09d}AAA"
        files = _files(call)
        result: dict[str, Any] = {"id": number, "done": True, "checkOnly": False, "rollbackOnError": True}
        try:
            added = deploy(self.store, files)
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            failure = {"fullName": "package", "problemType": "Error", "problem": f"{type(error).__name__}: {error}"}
            result |= {"status": "Failed", "success": False, "details": {"componentFailures": [failure]}}
            result |= {"numberComponentsDeployed": 0, "numberComponentErrors": 1}
        else:
            result |= {"status": "Succeeded", "success": True, "details": {"componentFailures": []}}
            result |= {"numberComponentsDeployed": len(added), "numberComponentErrors": 0}
        self._results[number] = result
        return json_response(self._body(call, number), 201)

    def read(self, call: Call) -> Response:
        """Result of a deployment; 404 for none."""
        if call.path_params["id"] not in self._results:
            raise not_found()
        return json_response(self._body(call, call.path_params["id"]))

    def _body(self, call: Call, number: str) -> dict[str, Any]:
        url = f"{call.base}/metadata/deployRequest/{number}"
        return {"id": number, "url": url, "deployResult": self._results[number]}


def _files(call: Call) -> dict[str, bytes]:
    """What lies in the zip of a multipart body; 400 for anything else."""
    kind = call.headers.get("content-type", "")
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + call.body)
    parts = message.get_payload() if message.is_multipart() else []
    for part in parts:
        if isinstance(part, str) or part.get_param("name", header="content-disposition") != "file":
            continue
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return {name: archive.read(name) for name in archive.namelist()}
        except zipfile.BadZipFile:
            break
    raise ApiError(400, "INVALID_MULTIPART_REQUEST", "expected a multipart body with a part `file` that is a zip")
