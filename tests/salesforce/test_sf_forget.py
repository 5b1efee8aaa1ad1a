"""`crmray forget` on a lake of files: nobody's rows are left, others' are, and a killed one is completed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import privacy_org as people
import pulling
import pyarrow as pa
import pytest
import yaml

from crmray import config, erase, forget
from crmray.commands.privacy import forget_command
from crmray.data.ingest import ingest
from crmray.errors import ConfigError, CorruptError, DataError, NoChampionError, PrivacyError, StorageError
from crmray.privacy import Pseudonyms, Vault
from crmray.registry import Ledger
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake, Run

GONE, STAYS = "C-1", "C-2"
ORG = """
name: files
storage: lake
source:
  kind: files
  tables:
    customers: {files: [customers.csv], columns: {entity_id: id, country: country}}
    interactions: {files: [notes.csv], columns: {entity_id: customer, occurred_at: at, text: note}}
privacy:
  pseudonym_key: {file: pseudonym.key}
  vault_key: {file: vault.key}
  identifiers: {customers.full_name: drop}
tasks: {churn: {}}
"""


def written(folder: Path, text: str = ORG) -> tuple[config.Org, Lake]:
    """An org of two customers whose notes name them."""
    people.org(folder)
    (folder / "org.yaml").write_text(text)
    (folder / "customers.csv").write_text(f"id,country,full_name\n{GONE},DE,Carlotta Quix\n{STAYS},FR,Émile Zephyr\n")
    rows = [f"{GONE},2026-01-0{day},Carlotta called" for day in (1, 2)] + [f"{STAYS},2026-01-03,emile wrote to a@b.de"]
    (folder / "notes.csv").write_text("\n".join(["customer,at,note", *rows]) + "\n")
    org = config.load(folder / "org.yaml")
    return org, Lake.of(org)


def filled(folder: Path, text: str = ORG) -> tuple[config.Org, Lake]:
    """The org with a run of every kind; the bundle `a…` holds a row of the one who goes, `b…` was trained with it."""
    org, lake = written(folder, text)
    raw = ingest(org, lake)
    made = Pseudonyms.of_org(org)
    gone, stays = (made.one(one) if made else one for one in (GONE, STAYS))
    ids = [gone, stays]
    tables = _run(lake, "tables", "customers", "1", {"shard-00000.parquet": pa.table({"entity_id": ids})}, rows=2,
                  inputs={"customers-0": raw["customers-0"].run_id})  # fmt: skip
    rows = pa.table({"entity_id": ids, "value": [1.0, 2.0]})
    examples = lake.run("examples", "churn", "2" * 16)
    with examples.open_output("now.arrow") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    files = {"train/shard-00000.parquet": rows, "now/shard-00000.parquet": rows}
    _run(lake, "examples", "churn", "2", files, rows={"train": 2, "now": 2}, inputs={"customers": tables.run_id})
    _run(lake, "predictions", "churn", "3", {"part-00000.parquet": rows}, rows=2, inputs={"examples": examples.run_id})
    _run(lake, "receipts", "writeback-churn", "4", {"receipt-fields.parquet": rows}, rows=2)
    for number, mark in enumerate("ba"):
        bundle = lake.run("bundles", "churn", mark * 16)
        bundle.write_bytes("bundle.json", json.dumps({"data": {"run_id": examples.run_id}}).encode())
        bundle.write_bytes("model/rows.json", json.dumps([stays] + ([gone] if mark == "a" else [])).encode())
        bundle.commit()
        Ledger(lake, "churn").append(number, version=mark * 16, previous=None, action="promote", why="test")
    lake.write("_work/search/churn/log.json", gone.encode())
    return org, lake


def _run(lake: Lake, kind: str, name: str, mark: str, files: dict[str, pa.Table], **fields: Any) -> Run:
    run = lake.run(kind, name, mark * 16)
    for rel, table in files.items():
        run.write_table(rel, table)
    return run.commit(**fields)


def everything(lake: Lake) -> str:
    """All that the lake holds, decoded."""
    found = []
    for path in (one for one in Path(lake.base).rglob("*") if one.is_file()):
        if path.suffix == ".parquet":
            kind, name, mark, *rest = path.relative_to(lake.base).parts
            found.append(str(Run(lake, kind, name, mark).open_parquet("/".join(rest)).read().to_pydict()))
        elif path.suffix == ".arrow":
            found.append(str(pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_pydict()))
        else:
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


def check_forgotten(org: config.Org, lake: Lake, receipt: Run) -> None:
    made = Pseudonyms.of_org(org)
    gone, stays = (made.one(one) if made else f'"{one}"' for one in (GONE, STAYS))
    text = everything(lake).replace("'", '"')
    assert gone not in text
    assert stays in text
    told = receipt.manifest()
    assert told["retired"] == [f"churn/{'a' * 16}"]
    assert told["trained_with"] == [f"churn/{'b' * 16}"]
    assert Ledger(lake, "churn").champion() == "b" * 16
    examples = lake.latest("examples", "churn")
    assert examples.manifest()["rows"] == {"train": 1, "now": 1}
    assert lake.latest("predictions", "churn").manifest()["inputs"] == {"examples": examples.run_id}
    tables = examples.manifest()["inputs"]["customers"]
    assert lake.run("tables", "customers", tables).manifest()["rows"] == 1
    assert not lake.list("_work/*")


def test_files_are_pseudonymised_and_redacted(tmp_path: Path) -> None:
    org, lake = written(tmp_path)
    runs = ingest(org, lake)
    made = Pseudonyms.of_org(org)
    assert made is not None
    assert runs["customers-0"].read_table(columns=["id", "country"]).to_pylist() == [
        {"id": made.one(GONE), "country": "DE"},
        {"id": made.one(STAYS), "country": "FR"},
    ]
    notes = runs["interactions-0"].read_table()
    assert notes["note"].to_pylist() == ["[NAME] called", "[NAME] called", "[NAME] wrote to [EMAIL]"]
    assert not any(word in everything(lake) for word in ("Carlotta", "mile", "a@b.de", GONE, STAYS))


@pytest.mark.parametrize("key", ["pseudonym_key", None])
def test_nothing_of_them_is_left(tmp_path: Path, key: str | None) -> None:
    text = ORG if key else ORG.replace("  pseudonym_key: {file: pseudonym.key}\n", "")
    org, lake = filled(tmp_path, text)
    receipt = forget.forget(org, lake, [GONE])
    check_forgotten(org, lake, receipt)
    assert receipt.manifest()["rows"]["raw/interactions-0"] == 2
    again = ingest(org, lake)
    assert again["customers-0"].manifest()["rows"] == 1
    assert again["interactions-0"].manifest()["rows"] == 1


@pytest.mark.parametrize("key", ["pseudonym_key", None])
def test_rows_with_a_name_of_their_own_go_with_the_customer_they_are_about(tmp_path: Path, key: str | None) -> None:
    """Series of one customer's sales, and what was written."""
    org, lake = filled(tmp_path, ORG if key else ORG.replace("  pseudonym_key: {file: pseudonym.key}\n", ""))
    made = Pseudonyms.of_org(org)
    gone, stays = (made.one(one) if made else one for one in (GONE, STAYS))
    rows = pa.table({"entity_id": [f"customer:{gone}", "note-7", "total"], "customer_id": [gone, stays, None]})
    for kind, mark in (("examples", "5"), ("predictions", "6")):
        _run(lake, kind, "forecast", mark, {"part-00000.parquet": rows}, rows=3)
    forget.forget(org, lake, [GONE])
    for kind in ("examples", "predictions"):
        run = lake.latest(kind, "forecast")
        assert run.read_table()["customer_id"].to_pylist() == [stays, None]
        assert run.manifest()["rows"] == 2
    assert f"customer:{gone}" not in everything(lake)


@pytest.mark.parametrize("half_deleted", [False, True])
@pytest.mark.parametrize("step", range(1, 8))
def test_a_killed_one_is_completed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, half_deleted: bool
) -> None:
    org, lake = filled(tmp_path)
    calls = 0

    def dies(run: Run) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            if half_deleted and run.exists():
                run.lake.fs.rm_file(f"{run.path}/manifest.json")
            raise KeyboardInterrupt
        drop(run)

    drop = erase.drop
    with monkeypatch.context() as patch:
        for module in (erase, forget):
            patch.setattr(module, "drop", dies)
        with pytest.raises(KeyboardInterrupt):
            forget.forget(org, lake, [GONE])
    receipt = forget.forget(org, lake, [GONE])
    check_forgotten(org, lake, receipt)
    assert receipt.manifest()["rows"] == {
        "raw/customers-0": 1, "raw/interactions-0": 2, "tables/customers": 1, "examples/churn": 3,
        "predictions/churn": 1, "receipts/writeback-churn": 1,
    }  # fmt: skip
    assert not lake.list("vault/forgetting*")


def test_it_does_not_begin_beside_a_pull(tmp_path: Path) -> None:
    org, lake = filled(tmp_path)
    with Run(lake, "_work", "pull", "Case").claim("ingest"), pytest.raises(StorageError, match="no job to run"):
        forget.forget(org, lake, [GONE])


def test_a_killed_one_leaves_the_current_run_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    org, lake = filled(tmp_path)
    made, drop = Pseudonyms.of_org(org), erase.drop
    assert made is not None
    rows = pa.table({"entity_id": [made.one(GONE), made.one(STAYS)]})
    _run(lake, "truth", "demo", "f", {"rows.parquet": rows}, rows=2)
    current = _run(lake, "truth", "demo", "0", {"rows.parquet": rows}, rows=2)

    def dies(run: Run) -> None:
        if run.run_id == "f" * 16:  # after the run in its place is complete
            raise KeyboardInterrupt
        drop(run)

    with monkeypatch.context() as patch:
        patch.setattr(erase, "drop", dies)
        with pytest.raises(KeyboardInterrupt):
            forget.forget(org, lake, [GONE])
    forget.forget(org, lake, [GONE])
    assert lake.latest("truth", "demo").manifest()["replaces"] == [current.run_id]
    assert len(lake.runs("truth", "demo")) == 2


@pytest.mark.parametrize("damaged", ["tables/customers", "bundles/churn"])
def test_a_damaged_latest_json_is_told_and_the_rest_is_done_once_it_is_mended(damaged: str, tmp_path: Path) -> None:
    org, lake = filled(tmp_path)
    whole = lake.read(f"{damaged}/latest.json")
    lake.write(f"{damaged}/latest.json", whole[:9])
    with pytest.raises(CorruptError, match=f"{damaged}/latest.json in .*: got a file that is damaged"):
        forget.forget(org, lake, [GONE])
    lake.write(f"{damaged}/latest.json", whole)
    check_forgotten(org, lake, forget.forget(org, lake, [GONE]))


def test_a_vault_forgets_names_and_ids(tmp_path: Path) -> None:
    org, lake = filled(tmp_path)
    made, vault = Pseudonyms.of_org(org), Vault.open(org, lake)
    assert made is not None
    vault.add(made.of([GONE, STAYS]), pa.array([GONE, STAYS]))
    vault.save()
    vault.write("state/names", pa.table({"owner": [GONE, STAYS], "name": ["Carlotta", "Émile"]}))
    forget.forget(org, lake, [GONE])
    assert vault.ids_of(made.of([GONE, STAYS])).to_pylist() == [None, STAYS]
    assert vault.read("state/names")["name"].to_pylist() == ["Émile"]


def test_without_a_version_that_is_left_there_is_no_champion(tmp_path: Path) -> None:
    org, lake = filled(tmp_path)
    forget.forget(org, lake, [GONE])
    forget.forget(org, lake, [STAYS])
    with pytest.raises(NoChampionError):
        Ledger(lake, "churn").champion()


def test_what_it_refuses(tmp_path: Path) -> None:
    org, lake = written(
        tmp_path, ORG.replace("  pseudonym_key: {file: pseudonym.key}\n  vault_key: {file: vault.key}\n", "")
    )
    ingest(org, lake)
    with pytest.raises(PrivacyError, match="needs privacy.vault_key"):
        forget.forget(org, lake, [GONE])
    with pytest.raises(ConfigError, match="made up"):
        forget.forget(people.org(tmp_path), lake, [GONE])


def test_the_command_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lake = filled(tmp_path)
    (tmp_path / "ids.txt").write_text(f"{GONE}\n")
    from crmray.cli import build_parser

    arguments = build_parser().parse_args(["forget", str(tmp_path / "org.yaml"), "--file", str(tmp_path / "ids.txt")])
    assert forget_command(arguments) == 0
    out = capsys.readouterr().out
    assert "retired" in out
    assert GONE not in out
    assert lake.has("receipts", "forget")


def test_a_salesforce_account_and_a_contact_do_not_come_back(sandbox: Sandbox, tmp_path: Path) -> None:
    """The contact's cases, with their mails, go; those of others of the account stay. The next pull reconciles."""
    people.org(tmp_path)
    keys = {f"{name}_key": {"file": f"{name}.key"} for name in ("pseudonym", "vault", "lake")}
    path = pulling.org_file(sandbox, tmp_path, without=[*pulling.WITHOUT, "Contract", "Asset"])
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "privacy": keys}))
    org = config.load(path)
    lake, store = Lake.of(org), sandbox.store
    before = ingest(org, lake)
    made = Pseudonyms.of_org(org)
    assert made is not None
    cases = before["Case"].read_table().to_pylist()
    known = dict.fromkeys(row["ContactId"] for row in cases)
    contacts = store.query("SELECT Id, AccountId FROM Contact").table.to_pylist()
    chosen = [row for row in contacts if made.one(row["Id"]) in known]
    contact, account = chosen[0], next(row["AccountId"] for row in chosen if row["AccountId"] != chosen[0]["AccountId"])
    gone = {made.one(contact["Id"]), made.one(account)}
    left = {row["Id"] for row in cases if not gone & {row["ContactId"], row["AccountId"]}}
    rows = before["EmailMessage"].read_table().to_pylist()
    mails = {row["Id"] for row in rows if not gone & {row["Parent.ContactId"], row["Parent.AccountId"]}}
    assert left
    assert len(left) < len(cases)

    forget.forget(org, lake, [contact["Id"][:15], account])
    for found in (_current(lake), ingest(org, lake)):
        assert {row["Id"] for row in found["Case"].read_table().to_pylist()} == left
        assert {row["Id"] for row in found["EmailMessage"].read_table().to_pylist()} == mails
        assert made.one(contact["AccountId"]) in found["Account"].read_table()["Id"].to_pylist()
    text = everything(lake)
    assert not any(one in text for one in (*gone, contact["Id"], account))


def _current(lake: Lake) -> dict[str, Run]:
    return {name: lake.latest("raw", name) for name in lake.names("raw")}


def test_what_is_no_record_id_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    login = {"flow": "client_credentials", "client_id": {"env": "X"}, "client_secret": {"env": "X"}}
    source = {"kind": "salesforce", "login": login}
    org = config.Org.model_validate({"name": "a", "storage": str(tmp_path / "lake"), "source": source})
    with pytest.raises(DataError, match="'banana', expected a Salesforce id"):
        forget.forget(org, Lake.of(org), ["0015e0000000000AAA", "banana"])
    assert not (tmp_path / "lake").exists()
