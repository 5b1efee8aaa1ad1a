"""Metadata deployed by REST: what `crmray fields --deploy` sends becomes fields, and what is no metadata is refused."""

from __future__ import annotations

import pytest

from crmray import config
from crmray.errors import SalesforceError
from crmray.salesforce import metadata_api
from crmray.salesforce.client import Client
from crmray.salesforce.sandbox.server import Sandbox

OBJECT = """<?xml version="1.0" encoding="UTF-8"?>
<CustomObject xmlns="http://soap.sforce.com/2006/04/metadata">
  <fields><fullName>Health__c</fullName><label>Health</label><type>Number</type><precision>18</precision>
    <scale>6</scale></fields>
  <fields><fullName>Seen__c</fullName><label>Seen</label><type>Checkbox</type></fields>
</CustomObject>
"""


@pytest.fixture
def client(empty_sandbox: Sandbox, tmp_path) -> Client:
    org = config.load(empty_sandbox.org_file(tmp_path / "org.yaml"))
    return Client.connect(org.source, org.folder)


def test_a_deployed_field_is_there(client: Client) -> None:
    assert metadata_api.deploy(client, {"objects/Account.object": OBJECT.encode(), "package.xml": b"<Package/>"}) == 2
    (field,) = [one for one in client.get("sobjects/Account/describe")["fields"] if one["name"] == "Health__c"]
    assert (field["type"], field["scale"], field["updateable"]) == ("double", 6, True)
    assert metadata_api.deploy(client, {"objects/Account.object": OBJECT.encode()}) == 0  # there already


def test_what_is_no_metadata_is_refused_and_changes_nothing(client: Client) -> None:
    with pytest.raises(SalesforceError, match=r"got Failed, expected Succeeded: package: ParseError"):
        metadata_api.deploy(client, {"objects/Account.object": b"<CustomObject>"})
    with pytest.raises(SalesforceError, match="NoSuchObject"):
        metadata_api.deploy(
            client, {"objects/Account.object": OBJECT.encode(), "objects/Nothing.object": OBJECT.encode()}
        )
    assert not [one for one in client.get("sobjects/Account/describe")["fields"] if one["name"] == "Health__c"]
    with pytest.raises(SalesforceError, match="INVALID_MULTIPART_REQUEST"):
        client.request("POST", "metadata/deployRequest", data=b"no zip", headers={"Content-Type": "text/plain"})
