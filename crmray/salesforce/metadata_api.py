"""Deploying metadata by REST: a zip in, components made or refused all together.

Source: Metadata API Developer Guide, "Deploying with REST" (POST and GET .../metadata/deployRequest).
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping

from urllib3 import encode_multipart_formdata
from urllib3.fields import RequestField

from crmray.errors import SalesforceError
from crmray.salesforce.client import Client

POLL_S = 1.0
OPTIONS = {"singlePackage": True, "rollbackOnError": True, "ignoreWarnings": True}


def deploy(client: Client, files: Mapping[str, bytes], *, timeout_s: float = 600.0) -> int:
    """Deploy files (path in the package -> content) and wait; the number of components.

    The user needs the permission to modify metadata. SalesforceError with the component and the reason when the org
    refuses one, then nothing was changed; or when it takes longer than `timeout_s`.
    """
    options = RequestField("json", json.dumps({"deployOptions": OPTIONS}))
    options.make_multipart(content_type="application/json")
    package = RequestField("file", _zip(files), filename="deploy.zip")
    package.make_multipart(content_type="application/zip")
    body, content_type = encode_multipart_formdata([options, package])
    headers = {"Content-Type": content_type}
    # Deploying the same twice leaves the same, so a lost answer is no reason to stop.
    asked = client.json("POST", "metadata/deployRequest", data=body, headers=headers, repeat=True)
    deadline = time.monotonic() + timeout_s
    while True:
        result = client.get(f"metadata/deployRequest/{asked['id']}", includeDetails="true")["deployResult"]
        if result["done"]:
            break
        if time.monotonic() > deadline:
            raise SalesforceError(
                f"deploy {asked['id']}: not done after {timeout_s:.0f} s ({result['status']}); it goes on in the org"
            )
        time.sleep(POLL_S)
    if not result["success"]:
        failures = [f"{one['fullName']}: {one['problem']}" for one in result["details"]["componentFailures"]]
        raise SalesforceError(
            f"deploy: got {result['status']}, expected Succeeded: {'; '.join(failures[:5])}; nothing was changed"
        )
    return int(result["numberComponentsDeployed"])


def _zip(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(files.items()):
            archive.writestr(path, content)
    return packed.getvalue()
