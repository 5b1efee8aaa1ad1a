"""Bundles, the ledger and the decision, on a task whose figures are known by hand."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import toy_task as toy

from crmray import bundle as bundles
from crmray import config, registry, tasks
from crmray.bundle import load_bundle
from crmray.commands.lake import champion_row
from crmray.errors import (
    BundleError,
    ClusterError,
    CorruptError,
    NoChampionError,
    NotEnoughDataError,
    RegistryError,
    WatchdogError,
)
from crmray.org import OpenOrg
from crmray.storage import Lake
from serve import fleet
from serve.champion import Champion

TASK = toy.module()
RIGHT = {"bias": 2.5, "weight": -1.0}  # leaves below 2.5 orders, which is the label: accuracy 1
HALF = {"bias": 1.5, "weight": -1.0}  # wrong for the customers with 2 orders, a fifth of them: accuracy 0.8


@pytest.fixture
def lake(tmp_path):
    lake = Lake(tmp_path)
    toy.write_examples(lake, 500)
    return lake


def test_a_bundle_comes_back_as_it_was_written(lake):
    bundle = load_bundle(toy.write_bundle(lake, "a" * 16, **RIGHT), TASK)
    rows = lake.latest("examples", "toy").read_table("test/*.parquet")
    answer = bundle.predict(rows, explain=True)
    assert answer.column_names[0] == "entity_id"
    assert answer["entity_id"].equals(rows["entity_id"])
    assert answer["probability"][3].as_py() == pytest.approx(0.3775407)  # 3 orders: 1 / (1 + e**0.5)
    assert bundle.version == "a" * 16
    assert bundle.settings == toy.Settings()


def test_changed_bytes_and_other_features_are_refused(lake, monkeypatch):
    run = toy.write_bundle(lake, "a" * 16, **RIGHT)
    path = Path(run.path) / "model" / "weights.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"2.5", b"9.5"))
    with pytest.raises(CorruptError, match=r"weights.json differs from its SHA-256"):
        load_bundle(run, TASK)
    path.write_bytes(good)
    bundle = load_bundle(run, TASK)
    monkeypatch.setattr(toy, "FEATURES_VERSION", "2")
    with pytest.raises(BundleError, match="features_version '1', this code makes '2'"):
        load_bundle(run, TASK)
    newer = lake.run("examples", "toy", "f" * 16)
    newer.write_bytes("now.arrow", b"")
    newer.commit(features_version="2")
    with pytest.raises(BundleError, match="has features_version '2', expected '1'"):
        bundle.check_run(newer)


def test_a_bundle_of_another_format_is_refused_wherever_it_is_opened(lake, monkeypatch):
    with monkeypatch.context() as other_code:
        other_code.setattr(bundles, "FORMAT", bundles.FORMAT - 1)
        run = toy.write_bundle(lake, "a" * 16, **HALF)
        registry.publish(lake, TASK)
    formats = f"got format {bundles.FORMAT - 1}, expected {bundles.FORMAT}"
    told = f"bundle {'a' * 16}: {formats}: another version of crmray wrote it; train again and publish"
    for read in (lambda: load_bundle(run, TASK), lambda: bundles.about_of(run)):
        with pytest.raises(BundleError, match=told):
            read()
    monkeypatch.setitem(tasks.TASKS, "toy", TASK)
    org = config.Org(name="t", storage=lake.root, source={"kind": "demo"})
    assert champion_row(org, "toy") == {"task": "toy", "champion": "of another format", "version": "a" * 16}
    replica = Champion(lake, TASK)
    assert not replica.poll()
    assert told in replica.problem
    toy.write_bundle(lake, "b" * 16, **RIGHT)
    entry = registry.publish(lake, TASK)  # what takes its place needs no comparison with what cannot be read
    assert entry["promoted"]
    assert f"the champion {'a' * 16} cannot be compared: {told}" in entry["why"]
    assert [(row["candidate"], row["validation"]) for row in registry.compare(lake, TASK)] == [
        ("sigmoid", 1.0), ("of another format", None),
    ]  # fmt: skip
    with pytest.raises(BundleError, match=told):
        registry.rollback(lake, TASK)


def test_a_draw_of_one_class_says_nothing_of_the_comparison(lake, monkeypatch):
    def score(examples, predictions):
        if pc.sum(examples["label"]).as_py() < 2:
            raise NotEnoughDataError("got one class")
        return {"accuracy": float(((predictions["score"] >= 0.5) == (examples["label"].to_numpy() == 1)).mean())}

    for run_id, numbers in (("a" * 16, HALF), ("b" * 16, RIGHT)):
        toy.write_bundle(lake, run_id, **numbers)
    monkeypatch.setattr(toy, "score", score)
    before, after = (load_bundle(lake.run("bundles", "toy", key * 16), TASK) for key in "ab")
    rows = lake.latest("examples", "toy").read_table("test/*.parquet").take([2, 3, 4, 7])  # two of four leave
    assert registry.decide(after, before, rows).figures["gain"] == 0.5


def test_a_row_that_does_not_fit_names_the_column(lake):
    bundle = load_bundle(toy.write_bundle(lake, "a" * 16, **RIGHT), TASK)
    rows = lake.latest("examples", "toy").read_table("test/*.parquet").slice(0, 2)
    with pytest.raises(BundleError, match="column 'num_orders' is missing, expected a numeric column"):
        bundle.predict(rows.drop_columns(["num_orders"]))
    text = rows.set_column(rows.schema.get_field_index("num_orders"), "num_orders", pa.array(["1", "2"]))
    with pytest.raises(BundleError, match="column 'num_orders' is text, expected numeric"):
        bundle.predict(text)
    nulls = rows.set_column(rows.schema.get_field_index("country"), "country", pa.nulls(2))
    assert bundle.predict(nulls).num_rows == 2


def test_first_version_has_to_beat_its_baseline(lake):
    toy.write_bundle(lake, "a" * 16, **HALF, baseline=0.9)
    refusal = registry.publish(lake, TASK)
    assert not refusal["promoted"]
    assert "rule of thumb coin 0.9000" in refusal["why"]
    with pytest.raises(NoChampionError):
        registry.Ledger(lake, "toy").champion()
    entry = registry.publish(lake, TASK, force="pilot")
    assert entry["promoted"]
    assert entry["why"].startswith("forced: pilot (the comparison said: does not beat")
    assert registry.Ledger(lake, "toy").champion() == "a" * 16


def test_better_is_promoted_worse_is_refused_and_rollback_walks_back(lake):
    toy.write_bundle(lake, "a" * 16, **HALF)
    assert registry.publish(lake, TASK)["promoted"]
    toy.write_bundle(lake, "b" * 16, **RIGHT)
    better = registry.publish(lake, TASK)
    assert better["promoted"]
    assert better["previous"] == "a" * 16
    assert better["figures"]["champion"] == pytest.approx(0.8)
    assert better["figures"]["challenger"] == 1.0
    assert 0.15 < better["figures"]["low"] < 0.2 < better["figures"]["high"] < 0.25  # se of 0.2 on 500 rows: 0.018
    assert better["compared_on"] == {"examples": lake.latest("examples", "toy").run_id, "part": "test"}
    assert registry.publish(lake, TASK)["why"] == "is the champion already"
    worse = registry.publish(lake, TASK, version="a" * 16)
    assert not worse["promoted"]
    assert worse["why"].startswith("worse: accuracy 0.8000 against the champion's 1.0000")
    toy.write_bundle(lake, "c" * 16, bias=2.6, weight=-1.0)
    same = registry.publish(lake, TASK)
    assert not same["promoted"]
    assert same["why"].startswith("no better:")
    registry.publish(lake, TASK, force="rehearsal")
    ledger = registry.Ledger(lake, "toy")
    for expected in ("b", "a"):
        registry.rollback(lake, TASK)
        assert ledger.champion() == expected * 16
    with pytest.raises(RegistryError, match="is the first one"):
        registry.rollback(lake, TASK)
    rows = registry.compare(lake, TASK)
    assert [row["version"][0] for row in rows if row["champion"]] == ["a"]
    assert {row["version"][0]: row["validation"] for row in rows} == {"a": pytest.approx(0.8), "b": 1.0, "c": 1.0}


def test_two_publishers_at_once_write_one_entry_each(lake):
    def append(number):
        try:
            registry.Ledger(lake, "toy").append(0, version=f"{number}", previous=None, why="race")
        except RegistryError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(append, range(8))) == 1
    assert len(registry.Ledger(lake, "toy").refresh()) == 1
    entry = json.loads(lake.read("registry/toy/ledger/000001.json"))
    assert entry["number"] == 1
    assert "@" in entry["who"]


def test_publish_waits_for_the_champion_even_when_it_was_champion_before(tmp_path, monkeypatch):
    org = OpenOrg(config.load(toy.write_org(tmp_path)))
    toy.write_examples(org.lake, 500)
    monkeypatch.setitem(tasks.TASKS, "toy", TASK)
    waited = []

    def wait_for(task, version):
        waited.append(version)
        if len(waited) == 1:
            raise WatchdogError("a replica still answers with the old one")
        return 2

    monkeypatch.setattr("serve.fleet.wait_for", wait_for)
    toy.write_bundle(org.lake, "b" * 16, **RIGHT)
    with pytest.raises(WatchdogError):
        org.publish("toy")
    again = org.publish("toy")
    assert (again["promoted"], again["replicas"]) == (False, 2)
    toy.write_bundle(org.lake, "a" * 16, **HALF)
    assert "replicas" not in org.publish("toy")  # refused: nothing to wait for
    assert waited == ["b" * 16] * 2


def test_nothing_is_promoted_where_the_endpoint_answers_for_another_org(tmp_path, monkeypatch):
    org = OpenOrg(config.load(toy.write_org(tmp_path)))
    toy.write_examples(org.lake, 500)
    monkeypatch.setitem(tasks.TASKS, "toy", TASK)
    state = {"pid": 1, "org": "shop", "lake": Lake.address_of(str(tmp_path / "other")), "version": None}
    monkeypatch.setattr(fleet, "states", lambda task: [state, fleet._silent(TimeoutError())])
    toy.write_bundle(org.lake, "b" * 16, **RIGHT)
    said = f"the endpoint of toy on this head answers for org 'shop'.*registry of '{org.config.name}'"
    for call in (org.publish, org.rollback):
        with pytest.raises(ClusterError, match=said):
            call("toy")
    assert registry.Ledger(org.lake, "toy").refresh() == []
    state |= {"org": "renamed", "lake": Lake.address_of(org.lake.root), "version": "b" * 16}
    fleet.check_org("toy", "toy", org.lake)
    monkeypatch.setattr(fleet, "states", lambda task: [{"pid": 1, "version": None}])  # of an older crmray
    fleet.check_org("toy", "toy", org.lake)


def test_a_publish_before_the_endpoint_runs_says_that_nothing_is_wrong(monkeypatch):
    told = []
    monkeypatch.setattr(fleet, "states", lambda task: [])
    monkeypatch.setattr(fleet.log, "event", lambda name, **fields: told.append((name, fields)))
    assert fleet.wait_for("toy", "a" * 16) == 0
    ((name, fields),) = told
    assert name == "publish.no_endpoint_yet"
    assert fields["note"].startswith("nothing is wrong: ")


def test_a_uid_without_a_name_can_publish(lake, monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(registry.getpass, "getuser", unknown)
    monkeypatch.setattr(registry.os, "getuid", lambda: 12345)
    toy.write_bundle(lake, "a" * 16, **RIGHT)
    assert registry.publish(lake, TASK)["who"].startswith("12345@")
