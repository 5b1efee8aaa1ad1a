"""The fields that predictions go to: names, metadata, the check by describe, and values on their way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from writing import BAND, REASONS, SCORE, World

from crmray.cli import main
from crmray.config import Writeback
from crmray.errors import SalesforceError
from crmray.org import OpenOrg
from crmray.salesforce import fields, values
from crmray.salesforce.sandbox.deploy import deploy
from crmray.tasks import TASKS, task


def test_the_metadata_names_every_field_and_the_rights(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    org = world.org(deployed=False, tasks={"when": {"band": "high"}, "subject": "Call"})
    files = org.fields()
    assert set(files) == {
        "package.xml", "objects/Account.object", "objects/Activity.object",
        "permissionsets/Crmray_Writeback.permissionset",
    }  # fmt: skip
    for name in (SCORE, BAND, REASONS, "Crmray_Churn_As_Of__c", "Crmray_Churn_Version__c", "Crmray_Churn_Run__c"):
        assert f"<members>Account.{name}</members>" in files["package.xml"].decode()
        assert f"<field>Account.{name}</field>" in files["permissionsets/Crmray_Writeback.permissionset"].decode()
    words = ["fields", str(world.folder / "org.yaml"), "--to", str(tmp_path / "made")]
    assert main(words) == 0
    assert "sf project deploy start --metadata-dir" in capsys.readouterr().out
    made = {path for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "made").as_posix(): path.read_bytes() for path in made} == files
    assert main([*words, "--deploy"]) == 0
    assert "deployed" in capsys.readouterr().out
    assert deploy(world.server.store, files) == [], "all are there now"


def test_an_org_file_without_tasks_gets_no_empty_package(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = world.server.org_file(world.folder / "org.yaml")
    assert main(["fields", str(path), "--to", str(tmp_path / "made")]) == 2
    told = capsys.readouterr().err
    assert f"org file {path}: got no task whose rows are records, so no prediction that a field is" in told
    assert not (tmp_path / "made").exists()


def test_fields_are_those_of_the_tasks_that_are_written_back(world: World) -> None:
    asked = {"churn": {}, "leads": {}, "forecast": {}}  # of a series Salesforce has no record
    path = world.server.org_file(world.folder / "org.yaml", tasks=asked, writeback={"churn": {}})
    package = OpenOrg.load(path).fields()["package.xml"].decode()
    assert (f"Account.{SCORE}" in package, "Lead." in package) == (True, False)
    path = world.server.org_file(path, tasks={"forecast": {}, "churn": {}})
    assert f"Account.{SCORE}" in OpenOrg.load(path).fields()["package.xml"].decode()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_has_fields_that_salesforce_can_make(name: str) -> None:
    which = task(name)
    (answer,) = get_args(which.Response.model_fields["predictions"].annotation)
    made = fields.targets(name, answer, Writeback())
    assert {"as_of", "version", "run_id"} <= {target.column for target in made}
    assert all(len(target.name.removesuffix("__c")) <= 40 for target in made)
    kinds = {target.column: target.kind for target in made}
    assert kinds.get("reasons", "long_text") == "long_text"
    assert kinds["as_of"] == "time"


def field(type_: str, **more: Any) -> dict[str, Any]:
    return {"name": "X__c", "type": type_, "scale": 2, "precision": 5, "length": 4, **more}


def test_a_field_is_named_as_the_org_spells_it() -> None:
    wanted = [fields.Target(column="band", name="x__c", kind="text")]
    described = {"name": "Account", "fields": [field("string", updateable=True)]}
    with pytest.raises(SalesforceError, match="x__c is spelled X__c in the org"):
        fields.check(described, wanted)


@pytest.mark.parametrize(
    ("text", "type_", "expected"),
    [
        ("0.500", "double", "0.5"),
        ("1E+2", "currency", "100"),
        ("-0.001", "double", "0"),
        ("0.125", "percent", "0.12"),
        ("7.0", "int", "7"),
        ("TRUE", "boolean", "true"),
        ("2026-10-01T02:00:00.000+0200", "datetime", "2026-10-01T00:00:00.000Z"),
        ("2026-10-01", "date", "2026-10-01"),
        (" a ", "string", "a"),
        ("", "string", None),
        (None, "double", None),
    ],
)
def test_one_spelling_for_each_value(text: str | None, type_: str, expected: str | None) -> None:
    assert values.canonical(text, field(type_)) == expected


def test_a_value_of_another_type_is_told_without_it() -> None:
    with pytest.raises(SalesforceError, match=r"^field X__c: got a value that is no double, expected one$"):
        values.canonical("secret", field("double"))


def test_predictions_are_spelled_as_their_field_holds_them() -> None:
    assert values.spelled(pa.chunked_array([[0.256, float("nan"), None]]), field("percent")) == ["25.6", None, None]
    assert values.spelled(pa.chunked_array([[True, False]]), field("boolean")) == ["true", "false"]
    assert values.spelled(pa.chunked_array([[["a", "b"], []]]), field("textarea")) == ["a; b", None]
    assert values.spelled(pa.chunked_array([[[0.5, 0.25]]]), field("textarea")) == ["0.5; 0.25"]


def test_reasons_that_do_not_fit_lose_the_last_ones() -> None:
    told = pa.chunked_array([[["first", "second", "third"], ["longer than the field"], ["first", "second"]]])
    narrow = {**field("textarea"), "length": 13}
    assert values.spelled(told, narrow, shorten=True) == ["first; second", "longer than the field", "first; second"]
    assert values.spelled(told, narrow)[0] == "first; second; third"


def test_cells_leave_alone_set_or_empty() -> None:
    assert values.cells(["1", None, "1", None], ["1", "2", None, None]) == ["", "2", "#N/A", ""]
    assert values.moved(["0.2", "0.2", None], ["0.29", "0.3", "0.2"], "double", 0.1) == [False, True, True]


def test_what_does_not_fit_is_told_by_its_size() -> None:
    assert fields.fitting("X__c", field("string"), ["abcd", None]) == ""
    assert fields.fitting("X__c", field("string"), ["abcde"]) == "X__c holds 4 characters, expected 5 or more"
    assert fields.fitting("X__c", field("double"), ["-999.5"]) == ""
    assert fields.fitting("X__c", field("double"), ["1000"]) == "X__c holds 3 digits, expected 4 or more"
    picklist = field("picklist", length=40, restrictedPicklist=True, picklistValues=[{"value": "low", "active": True}])
    assert "lacks 1 of the values" in fields.fitting("X__c", picklist, ["low", "high"])
