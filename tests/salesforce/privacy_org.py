"""A small org of recognisable made-up people, as describes and rows, for tests of privacy without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from crmray.config import Org

KEY, VAULT, LAKE = "11" * 32, "22" * 32, "33" * 32


def field(name: str, type_: str = "string", refers: str = "", relation: str = "", **more: Any) -> dict[str, Any]:
    """One entry of a describe."""
    known = {"name": name, "type": type_, "nameField": False, "autoNumber": False}
    return {**known, "referenceTo": [refers] if refers else [], "relationshipName": relation or None, **more}


FIELDS = {
    "Account": [
        field("Id", "id"), field("Name", nameField=True), field("Phone", "phone"), field("BillingStreet", "textarea"),
        field("Industry", "picklist"), field("ParentId", "reference", "Account", "Parent"),
        field("OwnerId", "reference", "User", "Owner"), field("BillingCountry"),
    ],
    "Contact": [
        field("Id", "id"), field("AccountId", "reference", "Account", "Account"), field("FirstName"),
        field("LastName"), field("Email", "email"), field("HasOptedOutOfEmail", "boolean"),
        field("IndividualId", "reference", "Individual", "Individual"), field("Title"),
    ],
    "Lead": [
        field("Id", "id"), field("FirstName"), field("LastName"), field("Company"), field("Status", "picklist"),
        field("ConvertedAccountId", "reference", "Account", "ConvertedAccount"),
        field("IndividualId", "reference", "Individual", "Individual"),
    ],
    "Individual": [
        field("Id", "id"), field("FirstName"), field("LastName"), field("HasOptedOutProcessing", "boolean"),
        field("HasOptedOutProfiling", "boolean"), field("ShouldForget", "boolean"),
    ],
    "ContactPointTypeConsent": [
        field("Id", "id"), field("PartyId", "reference", "Individual", "Party"), field("ContactPointType", "picklist"),
        field("PrivacyConsentStatus", "picklist"), field("EffectiveFrom", "datetime"), field("EffectiveTo", "datetime"),
        field("DataUsePurposeId", "reference", "DataUsePurpose", "DataUsePurpose"),
    ],
    "DataUsePurpose": [field("Id", "id"), field("Name", nameField=True)],
    "User": [field("Id", "id"), field("Name", nameField=True), field("Username")],
    "Case": [
        field("Id", "id"), field("AccountId", "reference", "Account", "Account"),
        field("ContactId", "reference", "Contact", "Contact"), field("Subject"), field("Description", "textarea"),
        field("SuppliedEmail", "email"), field("CaseNumber", autoNumber=True), field("CreatedDate", "datetime"),
        field("Status", "picklist"),
    ],
    "EmailMessage": [
        field("Id", "id"), field("ParentId", "reference", "Case", "Parent"), field("Subject"),
        field("TextBody", "textarea"), field("FromAddress", "email"), field("MessageDate", "datetime"),
    ],
    "AccountHistory": [
        field("Id", "id"), field("AccountId", "reference", "Account", "Account"), field("Field", "picklist"),
        field("OldValue", "anyType"), field("NewValue", "anyType"), field("CreatedDate", "datetime"),
    ],
    "Product2": [field("Id", "id"), field("Name", nameField=True), field("Description", "textarea")],
}  # fmt: skip


def describe(name: str) -> dict[str, Any]:
    """As a client gives it."""
    return {"name": name, "fields": FIELDS[name]}


ANNA, BEN = "0015e000000000AAAQ", "0015e000000000BAAQ"
CARL, DORA, EVA = "0035e000000000AAAQ", "0035e000000000BAAQ", "0035e000000000CAAQ"
PEOPLE = {
    "Account": pa.table({"Id": [ANNA, BEN], "Name": ["Quixotic Widgets GmbH", "Zephyr Müller & Co"]}),
    "Contact": pa.table(
        {
            "Id": [CARL, DORA, EVA],
            "AccountId": [ANNA, BEN, BEN],
            "FirstName": ["Carlotta", "Dorothea", None],
            "LastName": ["Featherstone", "Émile", "Eva-Lindqvist"],
            "IndividualId": ["0PK5e000000000AAAQ", "0PK5e000000000BAAQ", "0PK5e000000000CAAQ"],
            "HasOptedOutOfEmail": [True, False, False],
        }
    ),
}


def individuals(**flags: list[bool]) -> pa.Table:
    """The three persons' Individual rows with some flags."""
    ids = [f"0PK5e000000000{one}AAQ" for one in "ABC"]
    fields = ("HasOptedOutProcessing", "HasOptedOutProfiling", "ShouldForget")
    return pa.table({"Id": ids, **{name: flags.get(name, [False] * 3) for name in fields}})


def org(folder: Path, **privacy: Any) -> Org:
    """An org file's content with all keys in files of its folder."""
    for name, key in {"pseudonym": KEY, "vault": VAULT, "lake": LAKE}.items():
        (folder / f"{name}.key").write_text(key)
    keys = {f"{name}_key": {"file": f"{name}.key"} for name in ("pseudonym", "vault")}
    return Org.model_validate(
        {
            "name": "people",
            "storage": "lake",
            "source": {"kind": "demo"},
            "privacy": {**keys, **privacy},
            "path": str(folder / "org.yaml"),
        }
    )
