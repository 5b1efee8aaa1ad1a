"""Full pulls from a sandbox org: nothing lost, nothing twice, whatever goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pulling
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray.errors import CrmrayError, LimitError, ReconcileError
from crmray.salesforce import merge
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake

TEXTS = {"Subject", "Description", "TextBody", "OldValue", "NewValue"}
pytestmark = pytest.mark.usefixtures("small_pulls")


def same_as_org(sandbox: Sandbox, lake: Lake) -> dict[str, int]:
    """Every object's rows in the lake are the org's, but for those withheld; object -> rows."""
    found = {}
    for name in sandbox.store.objects():
        if not lake.has("raw", name):
            continue
        run = lake.latest("raw", name)
        ours = pulling.rows(run)
        if not ours.num_rows:
            ours = pa.table({"Id": pa.array([], pa.string())})
        ours = ours.drop_columns([column for column in ours.column_names if column in TEXTS])
        theirs = pulling.there(sandbox, name, ours)
        withheld = run.manifest()["reconciled"]["withheld"]
        assert ours.num_rows + withheld == theirs.num_rows, name
        assert len(pc.unique(ours["Id"])) == ours.num_rows, name
        assert theirs.filter(pc.is_in(theirs["Id"], ours["Id"].combine_chunks())).equals(ours), name
        found[name] = ours.num_rows
    return found


def test_a_full_pull_is_the_org(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path, without=[])
    runs = pulling.pull(path)
    lake = Lake(tmp_path / "lake")
    rows = same_as_org(sandbox, lake)
    assert rows["OrderItem"] > 3_000
    assert rows["Web_Visit__c"] > 3_000
    manifest = runs["OrderItem"].manifest()
    assert manifest["reconciled"]["slices"] > 1
    assert manifest["reconciled"]["rows"] == manifest["rows"] + manifest["reconciled"]["withheld"]
    assert manifest["columns"]["Order.AccountId"] == "string"
    assert manifest["columns"]["CreatedDate"] == "timestamp[us, tz=UTC]"
    again = pulling.pull(path)
    assert {name: run.run_id for name, run in again.items()} == {name: run.run_id for name, run in runs.items()}
    assert not lake.list("_work/pull/*/q*/*")


@pytest.mark.parametrize(
    "faults",
    [
        {"expire_tokens_after_calls": 25},
        {"drop_connection_every": 7, "concurrent_limit_every": 11},
        {"mutate_during_pull": 5},
        {"expire_tokens_after_calls": 31, "error_503_every": 13, "mutate_during_pull": 3},
    ],
)
def test_a_pull_gets_through_faults(
    sandbox: Sandbox, tmp_path: Path, faults: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crmray.salesforce.client.FIRST_WAIT_S", 0.01)
    path = pulling.org_file(sandbox, tmp_path)
    sandbox.faults.set(**faults)
    pulling.pull(path)
    sandbox.faults.clear()
    pulling.pull(path)  # rows changed after they were counted
    same_as_org(sandbox, Lake(tmp_path / "lake"))


def test_the_daily_limit_stops_a_pull_which_goes_on_later(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path, calls_reserve=0.0)
    used = sandbox.calls.used
    sandbox.faults.set(request_limit=used + 55)
    with pytest.raises(LimitError):
        pulling.pull(path)
    lake = Lake(tmp_path / "lake")
    assert lake.has("raw", "Account")
    assert not lake.has("raw", "ContactPointTypeConsent")
    sandbox.faults.clear()
    pulling.pull(path)
    same_as_org(sandbox, lake)


def test_a_killed_pull_goes_on_at_the_page(sandbox: Sandbox, tmp_path: Path) -> None:
    path = pulling.org_file(sandbox, tmp_path)
    sandbox.faults.set(slow_page_s=0.15)
    command = [sys.executable, "-m", "tests.salesforce.pulling", str(path)]
    resumed = 0
    for after_s in (0.8, 1.0, 1.3):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        lake = Lake(tmp_path / "lake")
        started = time.monotonic()
        while not lake.list("_work/pull/*/q*/p*.json") and process.poll() is None and time.monotonic() - started < 60:
            time.sleep(0.02)
        time.sleep(after_s - 0.8)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed += len(lake.list("_work/pull/*/q*/p*.json"))
    assert resumed
    sandbox.faults.clear()
    pulling.pull(path)
    same_as_org(sandbox, Lake(tmp_path / "lake"))


def test_a_job_that_the_org_lost_is_asked_again(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pulling.org_file(sandbox, tmp_path)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crmray.salesforce.catalogue.REST_ROWS", 10)
    with monkeypatch.context() as broken:
        broken.setattr("crmray.salesforce.pull.prove", dies)
        with pytest.raises(KeyboardInterrupt):
            pulling.pull(path)
    lake = Lake(tmp_path / "lake")
    lake.write("_work/pull/Account/q0000/job.json", json.dumps({"id": "750000000000001AAA"}).encode())
    lake.fs.rm_file(f"{lake.base}/_work/pull/Account/q0000/done.json")
    pulling.pull(path)
    same_as_org(sandbox, lake)


def test_a_pull_that_lacks_rows_is_refused(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows lost on the way, and again whenever they are asked for."""
    lost = sandbox.store.query("SELECT Id FROM OrderItem ORDER BY CreatedDate LIMIT 2").table["Id"].combine_chunks()
    merged = merge.merged

    def loses(parts, modstamp, gone, back):  # type: ignore[no-untyped-def]
        return merged(parts, modstamp, pa.concat_arrays([gone, lost]), back)

    monkeypatch.setattr(merge, "merged", loses)
    with pytest.raises(
        ReconcileError, match=r"object OrderItem, CreatedDate from the beginning to .*: got \d+ rows, ex"
    ):
        pulling.pull(pulling.org_file(sandbox, tmp_path))
    assert not Lake(tmp_path / "lake").has("raw", "OrderItem")
    assert Lake(tmp_path / "lake").has("raw", "Web_Visit__c")


def test_odd_values_survive(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = ['say "yes"', "two\nlines, one comma", "tab\tand\r\nreturn", "ünï–©ødé 漢字 🙂", "'", "#N/A", "null", "NaN"]
    sandbox.store.insert("Product2", [{"Name": "x", "Family": value} for value in odd] + [{"Name": "x"}])
    before = sandbox.store.query("SELECT Id, Family FROM Product2 WHERE Name = 'x'").table.sort_by("Id")
    for rest_rows in (10, 10_000):
        monkeypatch.setattr("crmray.salesforce.catalogue.REST_ROWS", rest_rows)
        monkeypatch.setattr("crmray.salesforce.stage.REST_ROWS", rest_rows)
        run = pulling.pull(pulling.org_file(sandbox, tmp_path, lake=f"lake{rest_rows}"))["Product2"]
        ours = pulling.rows(run)
        ours = ours.filter(pc.is_in(ours["Id"], before["Id"].combine_chunks()))
        assert ours["Family"].to_pylist() == before["Family"].to_pylist()


def test_no_secret_and_no_id_in_messages(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.faults.set(request_limit=1)
    with pytest.raises(CrmrayError) as caught:
        pulling.pull(pulling.org_file(sandbox, tmp_path))
    assert sandbox.password not in str(caught.value)
    assert sandbox.client_secret not in str(caught.value)
