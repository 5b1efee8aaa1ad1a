"""What a run ends with, what the commands deploy, whose endpoints they leave alone, and how they ask them."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from crmray import cli, config
from crmray.commands import run as run_command
from crmray.commands import serving
from crmray.errors import ClusterError, NotFoundError
from crmray.head import home
from crmray.keys import KeyFile
from crmray.privacy import Pseudonyms, Vault
from crmray.storage import Lake


def _serving(org: config.Org | None = None, head: bool = True, **changed: Any) -> Any:
    """A dashboard whose Serve runs the applications that `deploy` makes for an org, with other fields, or nothing."""
    made = serving.serve_config(org, elsewhere=not head)["applications"] if org else []
    applications = {one["name"]: {"deployed_app_config": {**one, **changed}} for one in made}
    return SimpleNamespace(
        address="http://127.0.0.1:8265", head=head, serve=lambda: {"applications": applications}, deploy=pytest.fail
    )


def test_a_run_ends_with_the_pages_of_what_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "org.yaml").write_text("name: a\nstorage: lake\nsource: {kind: demo}\ntasks: {churn: {}, leads: {}}\n")
    org, seen = config.load(tmp_path / "org.yaml"), []

    def station(dashboard: object, org: config.Org, name: str, tasks: list[str]) -> dict[str, str]:
        seen.append((name, tasks))
        for one in (tasks or ["all"]) if name == "evaluate" else []:
            Lake.of(org).run("evaluations", one, "0" * 16).commit()
        return {"leads": "train: too few rows"} if name == "train" else {}

    monkeypatch.setattr(run_command, "_station", station)
    assert run_command.run(_serving(), org, tasks=None, tune=False, port=None) == 2
    assert seen == [
        ("ingest", []), ("shard", []), ("examples", ["churn", "leads"]), ("train", ["churn", "leads"]),
        ("publish", ["churn"]), ("score", ["churn"]), ("evaluate", ["churn"]), ("evaluate", []),
    ]  # fmt: skip
    pages = [f"{one}: {org.root}/evaluations/{one}/{'0' * 16}/report.html" for one in ("all", "churn")]
    told = capsys.readouterr().out.splitlines()
    assert told[-4:] == [*pages, "", "leads: train: too few rows"]
    assert told[0] == "the first run here: how long each step takes is told before it from the second run on"


def test_a_write_back_that_failed_costs_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "org.yaml").write_text(
        "name: a\nstorage: lake\ntasks: {churn: {}, leads: {}}\nwriteback: {churn: {}}\n"
        "source: {kind: salesforce, login: {flow: client_credentials, client_id: {env: I}, client_secret: {env: S}}}\n"
    )
    org, seen = config.load(tmp_path / "org.yaml"), []

    def station(dashboard: object, org: config.Org, name: str, tasks: list[str]) -> dict[str, str]:
        seen.append((name, tasks))
        for one in (tasks or ["all"]) if name == "evaluate" else []:
            Lake.of(org).run("evaluations", one, "0" * 16).commit()
        return {"churn": "writeback: the org is locked"} if name == "writeback" else {}

    monkeypatch.setattr(run_command, "_station", station)
    assert run_command.run(_serving(), org, tasks=None, tune=False, port=None) == 2
    assert seen[-3:] == [("writeback", ["churn"]), ("evaluate", ["churn", "leads"]), ("evaluate", [])]
    told = capsys.readouterr().out.splitlines()
    pages = [f"{one}: {org.root}/evaluations/{one}/{'0' * 16}/report.html" for one in ("all", "churn", "leads")]
    assert told[-5:] == [*pages, "", "churn: writeback: the org is locked"]


def test_deployment_names_the_org_its_tasks_and_the_keys(org_file: Path) -> None:
    org = config.load(org_file)
    deployment = serving.serve_config(org, port=8123)
    assert [application["name"] for application in deployment["applications"]] == ["root", "churn"]
    assert all(application["args"]["org"] == str(org_file) for application in deployment["applications"])
    assert deployment["http_options"]["port"] == 8123
    assert deployment["http_options"]["host"] == "127.0.0.1"
    assert serving.route("segmentation") == "/v1/segment"


def test_the_printed_deployment_says_what_to_set(org_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["deploy", str(org_file), "--print"]) == 0
    printed = capsys.readouterr().out
    assert "set it to 0.0.0.0" in printed.splitlines()[1]
    assert yaml.safe_load(printed) == serving.serve_config(config.load(org_file), elsewhere=True)


def test_another_cluster_reads_the_org_file_in_its_lake_or_its_own(tmp_path: Path) -> None:
    path = tmp_path / "org.yaml"
    for storage, args in (("/lake", {"org": "/lake/org.yaml"}), ("s3://bucket/lake", {})):
        path.write_text(f"name: acme\nstorage: {storage}\nsource: {{kind: demo}}\ntasks: {{churn: {{}}}}\n")
        root, churn = serving.serve_config(config.load(path), elsewhere=True)["applications"]
        args["lake"] = Lake.address_of(storage)
        assert root["args"] == {"served": ["churn"], **args}  # another list makes Serve start the root anew
        assert churn["args"] == {"task": "churn", **args}


@pytest.mark.parametrize("port", [8000, None])
def test_endpoints_of_another_org_are_not_taken_over(port: int | None, org_file: Path, tmp_path: Path) -> None:
    org, other = config.load(org_file), tmp_path / "other.yaml"
    other.write_text("name: shop\nstorage: shop-lake\nsource: {kind: demo}\ntasks: {churn: {}}\n")
    shop = config.load(other)
    said = rf"of http://127.0.0.1:8265 answer from the lake that {other} named when .* `crmray down` first"
    with pytest.raises(ClusterError, match=said):
        run_command.run(_serving(shop), org, tasks=None, tune=False, port=port)
    if port:
        with pytest.raises(ClusterError, match=said):
            serving.deploy(_serving(shop), org, port=port)
    far = shop.model_copy(update={"storage": "s3://shop/lake"})  # its nodes read the org file of CRMRAY_ORG
    with pytest.raises(ClusterError, match=f"answer from another lake, not from {org.root}; a head serves one org"):
        serving.check_org(_serving(far, head=False), org)
    serving.check_org(_serving(far, head=False), far)
    serving.check_org(_serving(shop), org, ["leads"])  # asked about another endpoint


def test_the_same_lake_is_the_same_org_whatever_its_file_is_called(org_file: Path) -> None:
    org = config.load(org_file)
    before, renamed = _serving(org), org_file.rename(org_file.with_name("prod.yaml"))  # what was deployed is gone
    for head in (True, False):
        serving.check_org(_serving(org, head=head), org)
    serving.check_org(before, config.load(renamed))
    renamed.rename(org_file)
    org_file.write_text(org_file.read_text().replace("storage: ", "storage: other-"))
    with pytest.raises(ClusterError, match=f"the lake that {org_file} named when they were deployed"):
        serving.check_org(before, config.load(org_file))  # the replicas answer from the old lake


def test_applications_that_do_not_say_whose_they_are_are_no_other_orgs(org_file: Path) -> None:
    org = config.load(org_file)
    serving.check_org(_serving(), org)
    for args in ({"task": "churn", "org": "/gone.yaml"}, None):  # of an earlier crmray; of serve/config.yaml
        serving.check_org(_serving(org, args=args), org)
    for args in ({"lake": "another", "org": {"name": "x"}}, "text"):
        serving.check_org(_serving(org, args=args, import_path="shop.app:build"), org)  # of another tool


def test_the_example_request_asks_by_the_orgs_own_id(tmp_path: Path) -> None:
    """Pseudonyms of persons are turned back; texts and series have ids of their own. No rows: told, not an error."""
    (tmp_path / "key").write_text("ab" * 32)
    keys = "{pseudonym_key: {file: key}, vault_key: {file: key}}"
    (tmp_path / "org.yaml").write_text(f"name: a\nstorage: lake\nsource: {{kind: demo}}\nprivacy: {keys}\n")
    org = config.load(tmp_path / "org.yaml")
    lake, made = Lake.of(org), Pseudonyms.of_org(org)
    assert made is not None
    made.mark(lake)
    vault = Vault.open(org, lake)
    vault.add(made.of(["C1"]), pa.array(["C1"]))
    vault.save()
    for task, ids in (("churn", [made.one("C1")]), ("sentiment", ["case7"]), ("forecast", [])):
        run = lake.run("examples", task, "0" * 16)
        rows = pa.table({"entity_id": pa.array(ids, pa.string())})
        with run.open_output("now.arrow") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        run.commit()
    assert [serving._first_id(org, task) for task in ("churn", "sentiment")] == ["C1", "case7"]
    with pytest.raises(NotFoundError, match="got no current rows"):
        serving._first_id(org, "forecast")


def test_the_command_lines_key_is_made_once_and_made_anew_when_revoked() -> None:
    first = serving.ensure_cli_key()
    assert serving.ensure_cli_key() == first
    assert serving.cli_key() == first
    assert stat.S_IMODE((home() / "key").stat().st_mode) == 0o600
    KeyFile().revoke(serving.CLI_KEY_NAME)
    second = serving.ensure_cli_key()
    assert second != first
    keys = KeyFile()
    keys.refresh()
    assert (keys.check(first), keys.check(second)) == (None, serving.CLI_KEY_NAME)
