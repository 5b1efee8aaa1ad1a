"""The lake: immutable, atomic, one writer at a time."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import time

import pyarrow as pa
import pytest

from crmray import claim, errors, storage
from crmray.errors import CorruptError, NotFoundError, StorageError
from crmray.storage import Lake, run_id


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake")


def rows(n=3):
    return pa.table({"entity_id": [f"c{i}" for i in range(n)], "x": list(range(n))})


def test_run_id_depends_on_content_only():
    base = {"inputs": {"a": "1"}, "settings": {"b": 2, "a": 1}, "seed": 0, "format": 1}
    same = {"inputs": {"a": "1"}, "settings": {"a": 1, "b": 2}, "seed": 0, "format": 1}
    assert run_id("shard", **base) == run_id("shard", **same)
    changed = [{"inputs": {"a": "2"}}, {"settings": {"a": 1}}, {"seed": 1}, {"format": 2}]
    ids = {run_id("shard", **{**base, **change}) for change in changed} | {run_id("other", **base)}
    assert len(ids) == 5
    assert run_id("shard", **base) not in ids


def test_a_run_without_manifest_does_not_exist(lake):
    run = lake.run("tables", "customers", "r1")
    run.write_table("shard-00000.parquet", rows())
    assert not run.exists()
    assert not lake.has("tables", "customers")
    with pytest.raises(NotFoundError, match="'shard' job first"):
        lake.latest("tables", "customers")
    run.commit(rows=3)
    assert lake.latest("tables", "customers").run_id == "r1"
    assert lake.latest("tables", "customers").read_table().equals(rows())
    assert run.manifest()["rows"] == 3
    assert list(run.manifest()["files"]) == ["shard-00000.parquet"]


def test_latest_follows_the_last_commit_and_runs_lists_all(lake):
    for name in ("r1", "r2"):
        lake.run("raw", "Account", name).commit()
    assert lake.latest("raw", "Account").run_id == "r2"
    assert [run.run_id for run in lake.runs("raw", "Account")] == ["r1", "r2"]
    assert lake.names("raw") == ["Account"]


def test_a_failed_write_leaves_nothing(lake, monkeypatch):
    run = lake.run("tables", "customers", "r1")

    def fail(_fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(StorageError, match="no space left"):
        run.write_table("shard-00000.parquet", rows())
    with pytest.raises(StorageError, match="no space left"):
        run.commit()
    monkeypatch.undo()
    assert run.files() == []
    assert not run.exists()
    run.write_table("shard-00000.parquet", rows())
    assert run.commit().exists()


def test_a_root_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    lake = Lake(tmp_path / "file")
    for what in (
        lambda: lake.write("x/y.json", b"1"),
        lambda: lake.create_exclusive("x/y.json", b"1"),
        lambda: lake.work_folder("fits"),
    ):
        with pytest.raises(StorageError, match="cannot write .*Not a directory"):
            what()


def test_an_error_in_the_middle_of_a_stream_leaves_nothing(lake):
    run = lake.run("tables", "customers", "r1")
    with pytest.raises(ZeroDivisionError), run.open_output("x.bin") as sink:
        sink.write(b"half")
        1 / 0  # noqa: B018
    assert not run.has("x.bin")
    assert list(os.listdir(run.path)) == []


def test_reading_verified_names_the_damaged_file(lake):
    run = lake.run("bundles", "churn", "r1")
    run.write_bytes("a.bin", b"good")
    run.write_bytes("b.bin", b"good")
    assert run.commit().read_verified() == {"a.bin": b"good", "b.bin": b"good"}
    with open(f"{run.path}/b.bin", "wb") as file:
        file.write(b"evil")
    with pytest.raises(CorruptError, match=r"b\.bin differs"):
        run.read_verified()


def test_truncated_parquet_is_one_clear_error(lake):
    run = lake.run("tables", "customers", "r1")
    run.write_table("shard-00000.parquet", rows(1000))
    os.truncate(f"{run.path}/shard-00000.parquet", 100)
    with pytest.raises(CorruptError, match="shard-00000"):
        run.read_table()


def test_create_exclusive_lets_one_in(lake):
    assert lake.create_exclusive("registry/churn/ledger/000000.json", b"first")
    assert not lake.create_exclusive("registry/churn/ledger/000000.json", b"second")
    assert lake.read("registry/churn/ledger/000000.json") == b"first"


def test_files_globs_do_not_cross_folders(lake):
    run = lake.run("examples", "churn", "r1")
    for name in ("train/shard-00000.parquet", "test/shard-00000.parquet", "top.parquet"):
        run.write_bytes(name, b"x")
    assert run.files("train/*.parquet") == ["train/shard-00000.parquet"]
    assert run.files("*.parquet") == ["top.parquet"]


def _work(root, seconds, log):
    run = Lake(root).run("raw", "x", "r1")
    with run.claim("ingest") as mine:
        if mine:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(seconds)
            run.commit()


def test_two_at_once_do_the_work_once(lake, tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_work, args=(lake.root, 1.0, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(log.read_text().split()) == 1
    assert claim.FILE not in lake.run("raw", "x", "r1").files()


def test_the_claim_of_a_killed_process_is_taken_over(lake, tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    first = context.Process(target=_work, args=(lake.root, 60, log))
    first.start()
    while not (log.exists() and log.read_text()):
        assert first.is_alive()
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    _work(lake.root, 0, log)
    assert lake.run("raw", "x", "r1").exists()
    assert len(log.read_text().split()) == 2


def test_a_dead_claim_has_one_successor(lake):
    run, rel = lake.run("raw", "x", "r1"), f"raw/x/r1/{claim.FILE}"
    dead, first, second = ({"host": name, "pid": 1, "token": name} for name in ("dead", "first", "second"))
    lake.write(rel, json.dumps({**dead, "beat": 0.0}).encode())
    held = json.loads(lake.read(rel))  # what both waiters saw
    assert claim._take_over(run, rel, held, first)
    assert not claim._take_over(run, rel, held, second)
    assert json.loads(lake.read(rel))["token"] == "first"
    assert claim.is_held(run)
    # The first one ends without a result, and its claim with it: a claim is then free, not to be taken over.
    claim._release(run, rel, first)
    assert not claim._take_over(run, rel, held, second)
    assert not claim.is_held(run)


def test_a_successor_that_died_before_its_claim_was_written_is_succeeded(lake):
    run, rel = lake.run("raw", "x", "r1"), f"raw/x/r1/{claim.FILE}"
    held = {"host": "dead", "pid": 1, "token": "dead", "beat": 0.0}
    lake.write(rel, json.dumps(held).encode())
    lake.write("raw/x/r1/claim.dead.taken.tmp", json.dumps({**held, "token": "first"}).encode())
    assert claim._take_over(run, rel, held, {"host": "second", "pid": 1, "token": "second"})
    assert json.loads(lake.read(rel))["token"] == "second"


def test_waiting_for_a_living_claim_ends_with_its_owner_named(lake):
    run = lake.run("raw", "x", "r1")
    held = {"host": "elsewhere", "pid": 4711, "token": "t", "beat": time.time()}
    lake.create_exclusive(f"raw/x/r1/{claim.FILE}", json.dumps(held).encode())
    with pytest.raises(StorageError, match="pid 4711 on elsewhere"), run.claim("ingest", timeout_s=0.1):
        pass


def test_a_claim_that_another_process_took_meanwhile_stays_its_own(lake):
    run, rel = lake.run("raw", "x", "r1"), f"raw/x/r1/{claim.FILE}"
    theirs = {"host": "elsewhere", "pid": 4711, "token": "theirs", "beat": time.time()}
    with run.claim("ingest"):
        lake.write(rel, json.dumps(theirs).encode())
    assert json.loads(lake.read(rel)) == theirs


def test_a_remote_store_works_alike():
    lake = Lake("memory://bucket/prefix")
    run = lake.run("tables", "customers", "r1")
    run.write_table("shard-00000.parquet", rows())
    with run.claim("shard") as mine:
        assert mine
        run.commit()
    assert lake.latest("tables", "customers").read_table().equals(rows())


def test_every_error_survives_pickling():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CrmrayError)]
    assert len(kinds) >= 17
    for kind in kinds:
        copy = pickle.loads(pickle.dumps(kind("got 1, expected 2")))
        assert type(copy) is kind
        assert str(copy) == "got 1, expected 2"


def test_a_file_is_adopted_again_after_an_attempt_that_died(tmp_path):
    lake = Lake(tmp_path)
    source, run = (lake.run("raw", "orders", mark * 16) for mark in "ab")
    source.write_bytes("part", b"rows")
    for _ in range(2):
        run.adopt(source, "part", "part")
    assert run.read_bytes("part") == source.read_bytes("part") == b"rows"
