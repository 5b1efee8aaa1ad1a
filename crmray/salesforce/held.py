"""What an org holds now in the fields that are to be written, and how the lake and the org name its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray.config import Org
from crmray.errors import ConfigError, SalesforceError
from crmray.privacy import PERSONS, Pseudonyms, Vault
from crmray.salesforce import bulk, ids
from crmray.salesforce.client import Client
from crmray.storage import Lake

LAKE_ID = "lake_id"
"""column of `read`: the record's id as the lake names it"""


class Ids:
    """Between the ids of the org and those of the lake, which are pseudonyms of persons where privacy is on."""

    def __init__(self, org: Org, lake: Lake, entity: str):
        """entity: what the records are about; none but PERSONS have pseudonyms."""
        self.pseudonyms = Pseudonyms.of_lake(org, lake) if entity in PERSONS else None
        self.vault = Vault.open(org, lake) if self.pseudonyms is not None else None

    def to_lake(self, values: pa.Array) -> pa.Array:
        """As the lake names them; null stays null."""
        if self.pseudonyms is not None:
            return self.pseudonyms.of(values)
        return pa.array([None if value is None else ids.normalize(value) for value in values.to_pylist()], pa.string())

    def to_org(self, values: pa.Array) -> pa.Array:
        """As the org names them; null where the vault knows none."""
        return values if self.vault is None else self.vault.ids_of(values)


def read(client: Client, name: str, columns: Sequence[str], ids_: Ids, *, key: str = "Id", where: str = "") -> pa.Table:
    """Rows of an object as text columns, Id first, with their LAKE_ID (of `key`); without those that have no key.

    SalesforceError where records share a key: an external id need not be unique.
    """
    wanted = list(dict.fromkeys(["Id", key, *columns]))
    rows = bulk.read_all(client, f"SELECT {', '.join(wanted)} FROM {name}" + (f" WHERE {where}" if where else ""))
    if not rows.num_rows:
        rows = pa.table({column: pa.array([], pa.string()) for column in wanted})
    rows = rows.filter(rows[key].is_valid())
    if shared := rows.num_rows - len(pc.unique(rows[key])):
        raise SalesforceError(
            f"{name}.{key}: got {shared} records with the key of another one, expected one record for each; give each "
            "its own key, or use Id"
        )
    return rows.append_column(LAKE_ID, ids_.to_lake(rows[key].combine_chunks()))


def place_of(wanted: pa.ChunkedArray, held: pa.Table) -> pa.Array:
    """Row of `held` for each id of the lake; null where the org has none."""
    found = pc.index_in(wanted, value_set=held[LAKE_ID].combine_chunks(), skip_nulls=True)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def check_key(described: Mapping[str, Any], key: str) -> None:
    """ConfigError unless `key` tells records of the object apart."""
    field = next((field for field in described["fields"] if field["name"] == key), None)
    if field is None or not (key == "Id" or field.get("externalId") or field.get("unique") or field.get("idLookup")):
        raise ConfigError(
            f"writeback key {described['name']}.{key}: got {'no such' if field is None else 'an ordinary'} field, "
            "expected Id or an external id that the user may see"
        )


def parent_field(described: Mapping[str, Any]) -> str:
    """The reference whose record Salesforce locks when a row is written; "" without one.

    The master of a master-detail relationship; else the account, or the parent of the same kind.
    """
    references = [field for field in described["fields"] if field["type"] == "reference"]
    for field in references:
        if field.get("relationshipOrder") == 0:
            return field["name"]
    names = {field["name"] for field in references}
    return next((name for name in ("AccountId", "ParentId") if name in names), "")
