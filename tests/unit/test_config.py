"""The org file: every wrong key is named with what was got and what was expected."""

import json
import textwrap

import pytest

from crmray import config
from crmray.errors import ConfigError
from crmray.sources import TableSource
from crmray.tasks import TASKS, check_settings


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "org.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return _write


def test_a_good_file(write, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_FOLDER", "/data")
    org = config.load(
        write("""
        name: shop
        storage: lake
        currency: EUR
        source:
          kind: files
          tables:
            transactions: {files: ["${DATA_FOLDER}/*.csv"], columns: {entity_id: Customer}}
        tasks: {churn: {}}
        """)
    )
    assert org.root == str(tmp_path / "lake")
    assert org.source.tables["transactions"][0].files == ["/data/*.csv"]
    assert org.tasks == {"churn": {}}


def test_a_url_root_is_kept():
    org = config.Org(name="a", storage="s3://bucket/x/", source={"kind": "demo"})
    assert org.root == "s3://bucket/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: Shop\nstorage: l\nsource: {kind: demo}", "name: got 'Shop'"),
        ("name: a\nsource: {kind: demo}", "storage: Field required"),
        (
            "name: a\nstorage: l\nsource: {kind: oracle}",
            "source: got kind 'oracle', expected one of demo, files, salesf",
        ),
        ("name: a\nstorage: l\nsource: {kind: file}", "source: got kind 'file', .*; did you mean 'files'"),
        ("name: a\nstorage: l\nsource: files", "source: got 'files', expected a section that begins with `kind: demo"),
        ("name: a\nstorage: l\nsources: {kind: demo}", "yaml: got 'sources', expected only name, .* mean 'source'"),
        (
            "name: a\nstorage: l\nsource: {kind: files, tables: {sale: {files: [a]}}}",
            "source.tables: got table 'sale', exp",
        ),
        (
            "name: a\nstorage: l\nsource: {kind: files, tables: {leads: {files: [a], columns: {lead: b}}}}",
            "source.tables: leads: got column 'lead', expected one of lead_id, .*; did you mean 'lead_id'",
        ),
        (
            "name: a\nstorage: l\nsource: {kind: files, tables: {leads: {files: [a], values: {colour: red}}}}",
            "got column 'colour', .*; what has no place there goes under `attributes:`",
        ),
        ("name: a\nstorage: l\nsource: {kind: demo}\ntask: {}", "got .task., expected only .*; did you mean .tasks."),
        ("name: a\nstorage: l\nsource: {kind: demo, customers: 5}", "customers: got 5, .*greater than or equal to 100"),
        ("name: a\nstorage: l\nsource: {kind: files, tables: {products: {columns: {}}}}", "exactly one of them"),
        ("name: a\nstorage: ${NOT_SET_ANYWHERE}\nsource: {kind: demo}", "NOT_SET_ANYWHERE.* not set"),
        ("name: [", "not valid YAML"),
        ("- 1", "got list, expected a mapping"),
    ],
)
def test_what_is_wrong_is_said(write, text, message):
    with pytest.raises(ConfigError, match=message):
        config.load(write(text))


def test_nothing_is_said_twice(write):
    with pytest.raises(ConfigError) as told:
        config.load(write("name: a\nstorage: l\nsource: {kind: files, tables: {leads: {columns: {}}}}"))
    assert str(told.value).endswith(
        "yaml: source.tables.leads.0: got both or neither of `files` and `object`, expected exactly one of them"
    )
    with pytest.raises(ConfigError, match="^settings: threshold: got 'f2', expected f1, {cost: "):
        check_settings(TASKS["churn"], {"threshold": "f2"})


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "none.yaml")


def test_an_unknown_drop_condition_is_said():
    with pytest.raises(ValueError, match="like"):
        TableSource(files=["x"], drop=[{"a": {"like": "b"}}])


@pytest.mark.parametrize(
    ("section", "key"), [("privacy", "pseudonym_key"), ("source", "password"), ("source", "client_id")]
)
def test_a_secret_in_the_org_file_is_refused_and_not_shown(tmp_path, section: str, key: str) -> None:
    login = {"flow": "password", "username": "u", **{name: {"env": "X"} for name in ("client_id", "client_secret")}}
    login["password"] = {"env": "X"}
    org = {"name": "a", "storage": "lake", "source": {"kind": "salesforce", "login": login}, "privacy": {}}
    (org["privacy"] if section == "privacy" else login)[key] = "hunter2hunter2"
    (tmp_path / "org.yaml").write_text(json.dumps(org))
    with pytest.raises(ConfigError, match=rf"{key}: got a value, expected \{{env: NAME\}}") as told:
        config.load(tmp_path / "org.yaml")
    assert "hunter2" not in str(told.value)
