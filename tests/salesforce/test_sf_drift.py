"""An org whose schema changes between two pulls, or in the middle of one."""

from __future__ import annotations

from pathlib import Path

import pulling
import pytest

from crmray.errors import SchemaError
from crmray.salesforce.drift import anew, compare, seen
from crmray.salesforce.sandbox.metadata import Field
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake

pytestmark = pytest.mark.usefixtures("small_pulls")


def test_changes_are_told_apart() -> None:
    def fields(**types: str) -> list[dict]:
        return [{"name": name, "type": type_} for name, type_ in types.items()]

    before = seen(
        [
            *fields(A="string", B="double", C="string"),
            {"name": "P", "type": "picklist", "picklistValues": [{"value": "x"}]},
        ],
        {"Order.S": "date"},
    )
    after = seen(
        [
            *fields(A="string", B="string", D="int"),
            {"name": "P", "type": "picklist", "picklistValues": [{"value": "y"}]},
        ],
        {"Order.S": "date"},
    )
    found = compare(before, after, ["A", "B", "P"])
    assert [(change.field, change.what, change.before, change.after, change.read) for change in found] == [
        ("B", "retyped", "double", "string", True),
        ("C", "dropped", "string", "", False),
        ("D", "new", "", "int", False),
        ("P", "picklist", "x", "y", True),
    ]
    assert anew(found)
    assert not anew(found[1:3])


def test_a_dropped_field_stops_its_object_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    first = pulling.pull(path)
    sandbox.store.drop_field("Case", "Rating__c")
    sandbox.store.insert("Campaign", [{"Name": "new"}])
    with pytest.raises(
        SchemaError, match="object Case: field Rating__c is gone since the last pull.*last good run stays"
    ):
        pulling.pull(path)
    lake = Lake(tmp_path / "lake")
    assert lake.latest("raw", "Case").run_id == first["Case"].run_id
    assert lake.latest("raw", "Campaign").run_id != first["Campaign"].run_id
    lake.fs.rm_file(f"{lake.base}/_work/pull_state/Case/state.json")  # as the message says
    assert "Rating__c" not in pulling.pull(path)["Case"].manifest()["columns"]


def test_a_retyped_field_is_refused_and_a_new_one_read_anew(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    first = pulling.pull(path)
    sandbox.store.add_field("Web_Visit__c", Field(name="Page__c", type="string"))
    sandbox.store.retype_field("Web_Visit__c", "Seconds__c", "string")
    with pytest.raises(
        SchemaError, match=r"Web_Visit__c: field Seconds__c is now string, was (double|int) at the last"
    ):
        pulling.pull(path)
    before = first["Web_Visit__c"].manifest()["columns"]["Seconds__c"]
    sandbox.store.retype_field("Web_Visit__c", "Seconds__c", {"int64": "int", "double": "double"}[before])
    visits = pulling.pull(path)["Web_Visit__c"].manifest()
    assert visits["facts"]["how"] in ("changes", "all")
    assert "Page__c" not in visits["columns"]
    more = {
        "engagement": {
            "object": "Web_Visit__c", "columns": {"entity_id": "Account__c", "occurred_at": "Visited_At__c"},
            "attributes": ["Page__c"], "values": {"kind": "visit"},
        }
    }  # fmt: skip
    visits = pulling.pull(pulling.org_file(sandbox, tmp_path, tables=more))["Web_Visit__c"].manifest()
    assert visits["columns"]["Page__c"] == "string"
    assert visits["facts"]["how"] == "all"


def test_a_renamed_picklist_value_reaches_old_rows(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    first = pulling.pull(path)["CampaignMember"]
    sandbox.store.rename_picklist_value("CampaignMember", "Arm__c", "treatment", "mailed")
    run = pulling.pull(path)["CampaignMember"]
    assert run.run_id != first.run_id
    assert run.manifest()["facts"]["how"] == "all"
    (change,) = run.manifest()["drift"]
    assert (change["field"], change["before"], change["after"]) == ("Arm__c", "treatment", "mailed")
    assert set(pulling.rows(run)["Arm__c"].to_pylist()) == {"control", "mailed"}


def test_a_field_that_disappears_in_the_middle(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    first = pulling.pull(path)
    sandbox.store.insert("Web_Visit__c", [{"Account__c": first_account(sandbox), "Seconds__c": 3}] * 5)
    lake = Lake(tmp_path / "lake")
    lake.fs.rm(f"{lake.base}/_work/pull_state", recursive=True)
    sandbox.faults.set(slow_page_s=0.05, drop_field="Web_Visit__c.Seconds__c", drop_field_after_calls=45)
    with pytest.raises(SchemaError, match="object Web_Visit__c: field Seconds__c is gone"):
        pulling.pull(path)
    assert lake.latest("raw", "Web_Visit__c").run_id == first["Web_Visit__c"].run_id


def first_account(sandbox: Sandbox) -> str:
    return sandbox.store.query("SELECT Id FROM Account ORDER BY Id LIMIT 1").table["Id"][0].as_py()
