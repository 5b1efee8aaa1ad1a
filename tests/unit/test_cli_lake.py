"""What `crmray gc` may remove, and what an estimate says before a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import jobs
from crmray import cli, config
from crmray.commands.estimate import estimate, first_run, note
from crmray.commands.lake import leftovers, unreferenced
from crmray.errors import CorruptError
from crmray.org import OpenOrg
from crmray.storage import Lake, Run


def commit(lake: Lake, kind: str, name: str, run_id: str, content: bytes = b"12345", **fields: object) -> Run:
    run = lake.run(kind, name, run_id)
    run.write_bytes("data.bin", content)
    return run.commit(**fields)


def test_gc_keeps_what_is_current_published_or_needed_by_it(org_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(config.load(org_file).root)
    commit(lake, "tables", "transactions", "t-old")
    commit(lake, "examples", "churn", "e-old", inputs={"transactions": "t-old"})
    commit(lake, "bundles", "churn", "b-champion", data={"examples": "e-old"})
    commit(lake, "tables", "transactions", "t-lost")
    commit(lake, "examples", "churn", "e-lost", inputs={"transactions": "t-lost"})
    commit(lake, "tables", "transactions", "t-new")
    commit(lake, "examples", "churn", "e-new", inputs={"transactions": "t-new"})
    commit(lake, "bundles", "churn", "b-new", data={"examples": "e-new"})
    entry = {"task": "churn", "version": "b-champion", "previous": None}
    lake.write("registry/churn/ledger/000001.json", json.dumps(entry).encode())

    assert [(run.kind, run.run_id) for run in unreferenced(lake)] == [("examples", "e-lost"), ("tables", "t-lost")]
    assert cli.main(["gc", str(org_file)]) == 0
    assert "2 runs, 0 folders of _work, 0.0 MB would be removed with --yes" in capsys.readouterr().out
    assert lake.run("tables", "transactions", "t-lost").exists()
    assert cli.main(["gc", str(org_file), "--yes"]) == 0
    assert not lake.run("tables", "transactions", "t-lost").files()
    assert lake.run("tables", "transactions", "t-old").exists()
    assert unreferenced(lake) == []


def test_gc_removes_what_died_and_keeps_what_a_running_job_may_use(org_file: Path) -> None:
    lake = Lake(config.load(org_file).root)
    for number in ("1", "2"):
        commit(lake, "tables", "transactions", f"t{number}")
        commit(lake, "examples", "churn", f"e{number}", inputs={"transactions": f"t{number}"})
        commit(lake, "bundles", "churn", f"b{number}", inputs={"examples": f"e{number}"})
    lake.run("bundles", "churn", "b-dead").write_bytes("part.bin", b"1")
    work = ["_work/fits/churn/key", "_work/search/churn/b1", "_work/search/churn/b2", "_work/train/churn/b2-2"]
    for folder in work:
        lake.write(f"{folder}/file", b"1")

    with lake.run("bundles", "churn", "b-live").claim("train"):
        found = [(run.kind, run.run_id) for run in unreferenced(lake)]
        assert found == [("bundles", "b-dead"), ("bundles", "b1")]
        assert leftovers(lake) == []
    found_later = [run.run_id for run in unreferenced(lake)]
    assert found_later == ["b-dead", "b-live", "b1", "e1", "t1"]
    assert leftovers(lake, unreferenced(lake)) == [work[0], work[1], work[3]]

    assert cli.main(["gc", str(org_file)]) == 0
    assert lake.run("bundles", "churn", "b-dead").has("part.bin")
    assert cli.main(["gc", str(org_file), "--yes"]) == 0
    assert not lake.run("bundles", "churn", "b-dead").has("part.bin")
    assert lake.list("_work/*/*/*") == [work[2]]
    assert lake.latest("bundles", "churn").read_bytes("data.bin") == b"12345"
    assert lake.latest("tables", "transactions").read_bytes("data.bin") == b"12345"
    assert (unreferenced(lake), leftovers(lake)) == ([], [])


def test_an_estimate_says_size_rows_and_the_last_time_scaled(org_file: Path) -> None:
    org = config.load(org_file)
    lake = Lake(org.root)
    assert estimate(org, "ingest").startswith("ingest: generates about")
    assert "its input is not there yet" in estimate(org, "shard")
    commit(lake, "raw", "Order", "r1", rows=40)
    assert estimate(org, "shard") == "shard: reads 5 B, 40 rows"
    assert "the first run here" in first_run(org)
    note(org, "shard", "", 15.0)
    assert first_run(org) == ""
    commit(lake, "raw", "Order", "r2", b"1234567890", rows=80)
    assert "shard: reads 10 B, 80 rows; about 30 s by its last run here" in estimate(org, "shard")
    commit(lake, "tables", "transactions", "t1")
    for task in ("churn", "leads"):
        note(org, "examples", task, 6.0)
    assert "about 12 s by its last run" in estimate(org, "examples", ["churn", "leads"])
    note(org, "train", "churn", 9.0)
    assert "about 9 s by its last run" in estimate(org, "train", ["churn"])
    assert "; about 9 s for churn by its last run" in estimate(org, "train", ["churn", "leads"])
    for damaged in (b"", b"[]", b'{"seconds": null}', b"\xff"):
        lake.write("_work/times/train-churn.json", damaged)
        assert estimate(org, "train", ["churn"]) == "train: its input is not there yet"


@pytest.mark.parametrize("damaged", [b"", b"not JSON", b"[]", b"{}", b"\xff"])
def test_an_estimate_says_what_to_do_about_a_damaged_latest_json(org_file: Path, damaged: bytes) -> None:
    org = config.load(org_file)
    lake = Lake(org.root)
    run = commit(lake, "raw", "Order", "r1", rows=40)
    lake.write("raw/Order/latest.json", damaged)
    with pytest.raises(
        CorruptError, match="raw/Order/latest.json in .*: got a file that is damaged, .*'ingest' job again"
    ):
        estimate(org, "shard")
    run.make_latest()
    assert estimate(org, "shard") == "shard: reads 5 B, 40 rows"


def test_a_job_whose_time_cannot_be_kept_is_done_all_the_same(
    org_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(org: OpenOrg, task: str, options: dict) -> Run:
        commit(org.lake, "tables", "customers", "t1")
        org.lake.fs.rm_file(f"{org.lake.base}/tables/customers/t1/manifest.json")  # its size cannot be told
        return commit(org.lake, "examples", "churn", "e1")

    assert jobs.job("examples", make, argv=["churn", "--org", str(org_file)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["run_id"] == "e1"
    assert "job.time_not_kept" in said.err
    assert "names run t1, which has no manifest" in said.err


def test_a_job_with_flags_does_not_note_its_time(org_file: Path) -> None:
    def make(org: OpenOrg, task: str, options: dict) -> Run:
        options.clear()
        return commit(org.lake, "bundles", "churn", "b1")

    argv = ["churn", "--org", str(org_file), "--candidates", "logistic"]
    assert jobs.job("train", make, flags=("candidates",), argv=argv) == 0
    assert Lake(config.load(org_file).root).list("_work/times/*") == []


def test_a_job_notes_its_time_unless_its_result_was_there(org_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(org: OpenOrg, task: str, options: dict) -> dict:
        run = org.lake.run("raw", "Order", "r1")
        return {"Order": run if run.exists() else commit(org.lake, "raw", "Order", "r1")}

    lake, argv = Lake(config.load(org_file).root), ["--org", str(org_file)]
    assert jobs.job("ingest", make, argv=argv) == 0
    assert lake.list("_work/times/*") == ["_work/times/ingest.json"]
    lake.fs.rm_file(f"{lake.base}/_work/times/ingest.json")
    assert jobs.job("ingest", make, argv=argv) == 0  # skipped: its time says nothing
    assert lake.list("_work/times/*") == []
    for promoted in (False, True):
        assert jobs.job("publish", lambda *_, p=promoted: {"promoted": p}, argv=["churn", *argv]) == 0
        assert lake.list("_work/times/*") == ["_work/times/publish-churn.json"] * promoted
    assert leftovers(lake) == []
