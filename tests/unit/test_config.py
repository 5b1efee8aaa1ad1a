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
        ("name: a\nstorage: l\nsource: files", "source: got a text, expected a section that begins with `kind: demo"),
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
        (
            "name: a\nstorage: [",
            r"YAML: while parsing a flow node at line 2, column 11: expected the node content, but",
        ),
        ("name: a\nstorage: 2026-13-01", "org.yaml: got a value that is not of its type, such as a date"),
        (
            "name: a\nstorage: l\nsource: {kind: demo}\nprivacy:\n  text: x",
            "privacy.text: got a text, Input should be a",
        ),
        ("name: a\nstorage: l\nsource: {kind: demo, end: 2026-10-01}", "source.end: got a date, Input should be a"),
        ("name: a\nstorage: l\nsource: {kind: demo}\nhistory: 5", "history: got a number, expected settings$"),
        ("name: a\nstorage: l\nsource: {kind: demo}\nhistory:", "history: got nothing, expected settings; write"),
        ("name: a\nstorage: l\nsource: {kind: demo}\ntask:", "got an unknown key, expected only .* mean .tasks."),
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


HIDDEN = "hunter2hunter2"


@pytest.mark.parametrize(
    ("section", "told"),
    [
        # a section in the wrong form
        ("login: [{client_secret: hunter2hunter2}]", "login: got a list, expected settings"),
        ("login: 'client_secret=hunter2hunter2'", "login: got a text, expected settings"),
        ("login: client_secret:hunter2hunter2", "login: got a text, expected settings"),
        ("login: {client_secret: [hunter2hunter2]}", "client_secret: got a value, expected {env: NAME}"),
        # a key that is a value
        ("login: {client_secret=hunter2hunter2}", "login: got an unknown key, expected only flow"),
        ("login: {client_secret:hunter2hunter2}", "login: got an unknown key, expected only flow"),
        ("login: {client_secret, hunter2hunter2}", "login: got an unknown key, expected only flow"),
        ("login: {client_secret: {hunter2hunter2}}", "client_secret: got a value, expected {env: NAME}"),
        ("login: {client_secret: {env: A, hunter2hunter2: b}}", "client_secret: got a value, expected {env: NAME}"),
        ("login: {client_secret: {value: hunter2hunter2}}", "client_secret: got a value, expected {env: NAME}"),
        # a place that is a value
        ("login: {client_secret: {env: +hunter2hunter2}}", "client_secret.env: got a value, expected {env: NAME}"),
        ("login: {client_secret: {env: '${HUNTER}'}}", "client_secret.env: got a value, expected {env: NAME}"),
        ('login: {private_key: {file: "KEY\\nhunter2hunter2"}}', "private_key.file: got a value, expected {env: NAME}"),
        # behind the next key
        ("login: {flow: hunter2hunter2}", "login.flow: got a text, Input should be 'jwt'"),
        ("login: {flow: '${HUNTER}'}", "login.flow: got a text, Input should be 'jwt'"),
        ("login: {url: 'https://me:hunter2hunter2@acme.my.salesforce.com'}", "login.url: got a text, String should"),
        ("kind: salesforce client_secret=hunter2hunter2", "source: got kind a text, expected one of demo"),
        ("kind: [{client_secret: hunter2hunter2}]", "source: got kind a list, expected one of demo"),
        ("page_rows: {password: hunter2hunter2}", "source.page_rows: got a section, Input should be a valid integer"),
        # YAML that cannot be read
        (
            "login:\n    client_secret: 'hunter2hunter2\n",
            "while scanning a quoted scalar at line 6, column 20: found un",
        ),
        ("login:\n    client_secret:hunter2hunter2\n    flow: jwt", "mapping values are not allowed here at line 7"),
        ("login: {client_secret: *hunter2hunter2 }", "not valid YAML: found undefined alias at line 5, column 26"),
        ("login: {client_secret: !hunter2hunter2 a}", "could not determine a constructor for the tag at line 5"),
        ("login: [&hunter2hunter2 a, &hunter2hunter2 b]", "found duplicate anchor at line 5, column 11: second occ"),
        ("login: {client_secret: !!int hunter2hunter2}", "got a value that is not of its type"),
    ],
)
def test_no_form_of_a_mistake_tells_a_secret(write, monkeypatch, section: str, told: str) -> None:
    monkeypatch.setenv("HUNTER", HIDDEN)
    kind = "" if section.startswith("kind") else "  kind: salesforce\n"
    with pytest.raises(ConfigError) as error:
        config.load(write(f"name: a\nstorage: lake\nsource:\n{kind}  {section}\n"))
    assert told in str(error.value)
    assert HIDDEN not in str(error.value)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            "source: [{kind: salesforce, login: {client_secret: hunter2hunter2}}]",
            "source: got a list, expected a section",
        ),
        ("source: 'client_secret: hunter2hunter2'", "source: got a text, expected a section"),
        ("source: {kind: demo}\nprivacy: [{pseudonym_key: hunter2hunter2}]", "privacy: got a list, expected settings"),
        ("source: {kind: demo}\nprivacy: 'lake_key=hunter2hunter2'", "privacy: got a text, expected settings"),
        (
            "source: {kind: demo}\nprivacy: {previous_vault_keys: [hunter2hunter2]}",
            "vault_keys.0: got a value, expected",
        ),
        ("source: {kind: demo}\nprivacy: {text: [[hunter2hunter2]]}", "privacy.text.0: got a list, Input should be"),
        ("source: {kind: demo}\nprivacy: {identifiers: {a.b: hunter2hunter2}}", "identifiers.a.b: got a text, Input"),
        ("source: {kind: demo}\ncurrency: lake_key hunter2hunter2", "currency: got a text, String should match"),
        ("source: {kind: demo}\nseed: [{lake_key: hunter2hunter2}]", "seed: got a list, Input should be"),
    ],
)
def test_no_section_in_the_wrong_form_tells_a_secret(write, sections: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(write(f"name: a\nstorage: lake\n{sections}\n"))
    assert told in str(error.value)
    assert HIDDEN not in str(error.value)


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ({"env": "SF_CLIENT_SECRET"}, "environment variable SF_CLIENT_SECRET: not set"),
        ({"env": "D4A19C7E03F2AA55"}, r"environment variable \(of 16 characters\): not set"),
        ({"env": "hunter2"}, r"environment variable \(of 7 characters\): not set"),
        ({"file": "keys/client"}, "secret file keys/client: got No such file"),
        ({"file": "client_secret"}, "secret file client_secret: got No such file"),
        ({"file": "D4A19C7E03F2.AA55"}, r"secret file \(of 17 characters\): got No such file"),
    ],
)
def test_a_secret_pasted_as_the_name_of_its_place_is_not_told(tmp_path, secret: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        config.Secret(**secret).read(tmp_path)
