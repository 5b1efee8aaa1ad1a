"""The examples stage on small lakes: files, counts, order, and what it says when data is missing."""

from __future__ import annotations

import hashlib
import sys
import types
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crmray import config, schema
from crmray.data import splits
from crmray.data.examples import examples
from crmray.data.partition import shard_of
from crmray.data.profile import Profile
from crmray.errors import DataError, NotEnoughDataError, NotFoundError
from crmray.storage import Lake
from crmray.tasks import churn
from crmray.tasks.contract import Needs
from serve.known import Known

START = datetime(2023, 1, 1, tzinfo=timezone.utc)
NUM_SHARDS = 3
SETTINGS = {"horizon_days": 30, "lookback_days": 60, "num_snapshots": 2, "snapshot_every_days": 30}


def one_by_one(fn, items, *, label):
    """What map_shards does, without Ray."""
    for item in reversed(list(items)):
        yield item, fn(item)


def lake_with(path, *, clock: str = "utc", **tables: pa.Table) -> Lake:
    """A lake whose tables look like those of the shard stage."""
    lake = Lake(path)
    for name, rows in tables.items():
        rows, run = schema.check(name, rows), lake.run("tables", name, "0123456789abcdef")
        shards = NUM_SHARDS if schema.TABLES[name].sharded else 1
        key = rows[schema.TABLES[name].entity].to_pylist()
        home = pa.array([hashlib.sha1(value.encode()).digest()[0] % shards for value in key], pa.int64())
        for shard in range(shards):
            run.write_table(f"shard-{shard:05d}.parquet", rows.filter(pc.equal(home, shard)))
        columns = {field.name: str(field.type) for field in rows.schema}
        run.commit(**Profile.of(name, rows).to_json(), columns=columns, num_shards=shards, clock=clock)
    return lake


def purchases(customers: int = 60) -> pa.Table:
    """A year in which customer i buys every 10 days, and every other one stops after a third of the year."""
    rows = []
    for i in range(customers):
        until = 365 if i % 2 else 120 + 4 * i
        rows += [(f"c{i:03d}", START + timedelta(days=day), 1.0, 5.0) for day in range(i % 10, until, 10)]
    return pa.table(
        dict(zip(("entity_id", "occurred_at", "num_units", "net_amount"), zip(*rows, strict=True), strict=True))
    )


def org(lake: Lake, seed: int = 0) -> config.Org:
    return config.Org(name="small", storage=lake.root, source={"kind": "demo"}, seed=seed)


def make(lake: Lake, **settings):
    return examples(org(lake), lake, churn, churn.Settings(**{**SETTINGS, **settings}), one_by_one)


def test_files_counts_and_order(tmp_path):
    lake = lake_with(tmp_path, transactions=purchases())
    run = make(lake)
    about = run.manifest()
    dates = splits.Snapshots.of(about)
    # the last purchase is on day 363 (customers 3, 13, …), so `now` is day 364 and everything else follows
    days = [(date - START).days for date in (*dates.train, dates.validation, dates.test, dates.now)]
    assert days == [244, 274, 304, 334, 364]
    for name in splits.PARTS:
        rows = run.read_table(f"{name}/*.parquet")
        assert len(run.files(f"{name}/shard-*.parquet")) == NUM_SHARDS
        assert about["rows"][name] == rows.num_rows
        assert set(rows["label"].to_pylist()) == {0, 1}
    now = pa.ipc.open_file(pa.memory_map(f"{run.path}/now.arrow")).read_all()
    assert now["entity_id"].to_pylist() == sorted(now["entity_id"].to_pylist())
    assert now["label"].null_count == now.num_rows == about["rows"]["now"]
    # a purchase from day 304 on: the 30 that never stop, and those whose 120 + 4 i reaches that far
    buyers = [i for i in range(60) if i % 2 or max(range(i % 10, 120 + 4 * i, 10)) >= 304]
    assert now["entity_id"].to_pylist() == [f"c{i:03d}" for i in buyers]
    assert about["excluded"]["customers_outside_population_now"] == 60 - len(buyers)
    test_day = dates.test.strftime("%Y-%m-%d")
    assert about["counts"]["test"][test_day]["label"]["1"] == pc.sum(run.read_table("test/*.parquet")["label"]).as_py()
    assert set(about["schema"]) == set(now.column_names)
    assert "order_id" not in about["schema"]
    assert not any(name.startswith("product_") for name in about["schema"])  # product_id has no value anywhere


def test_the_same_inputs_are_the_same_run_and_other_settings_another(tmp_path):
    lake = lake_with(tmp_path, transactions=purchases())
    run = make(lake)
    written = run.manifest()["created_at"]
    assert make(lake).run_id == run.run_id
    assert run.manifest()["created_at"] == written
    assert make(lake, horizon_days=20).run_id != run.run_id
    assert examples(org(lake, seed=1), lake, churn, churn.Settings(**SETTINGS), one_by_one).run_id != run.run_id


def test_a_small_budget_sorts_in_pieces_and_gives_the_same_rows(tmp_path):
    lake = lake_with(tmp_path, transactions=purchases())
    whole = pa.ipc.open_file(f"{make(lake).path}/now.arrow").read_all()
    tight = org(lake, seed=1).model_copy(update={"memory_gib": 3e-5})
    run = examples(tight, lake, churn, churn.Settings(**SETTINGS), one_by_one)
    pieces = pa.ipc.open_file(f"{run.path}/now.arrow")
    assert pieces.num_record_batches > 1
    assert pieces.read_all().combine_chunks().equals(whole.combine_chunks())


def labelled(values: list[float], split: list[str | None] | None = None) -> dict[str, pa.Table]:
    ids = [f"c{i:03d}" for i in range(len(values))]
    outcome = {"entity_id": ids, "name": ["left"] * len(ids), "value": values}
    if split is not None:
        outcome["split"] = pa.array(split, pa.string())
    return {"customers": pa.table({"entity_id": ids, "age": list(range(len(ids)))}), "outcomes": pa.table(outcome)}


def test_labels_without_time_are_split_by_part(tmp_path):
    split = ["train", "validation", "test"] * 20
    lake = lake_with(tmp_path, **labelled([float(i // 3 % 2) for i in range(60)], split))
    run = make(lake, label="outcome:left")
    for offset, name in enumerate(splits.PARTS):
        rows = run.read_table(f"{name}/*.parquet").sort_by("entity_id")
        assert rows["entity_id"].to_pylist() == [f"c{i:03d}" for i in range(offset, 60, 3)]
        assert rows["as_of"].null_count == rows.num_rows
        assert rows["customer_age"].to_pylist() == list(range(offset, 60, 3))
    assert run.manifest()["rows"]["now"] == 60
    assert run.manifest()["span"] is None


def one_customer() -> pa.Table:
    return purchases().filter(pc.equal(purchases()["entity_id"], "c001"))


def nobody_leaves() -> pa.Table:
    rows = purchases()
    return rows.filter(pc.is_in(rows["entity_id"], pa.array([f"c{i:03d}" for i in range(1, 60, 2)])))


@pytest.mark.parametrize(
    ("tables", "settings", "error", "message"),
    [
        ({}, {}, NotFoundError, "run the 'shard' job first"),
        ({"transactions": purchases().slice(0, 0)}, {}, DataError, "needs table transactions .* got no rows"),
        ({"transactions": purchases()}, {"as_of": "2031-01-01"}, DataError, "got as_of 2031-01-01.*ends on 2023-12-30"),
        ({"transactions": one_customer()}, {}, NotEnoughDataError, "got label 0 in 2 rows in the train rows"),
        ({"transactions": nobody_leaves()}, {}, NotEnoughDataError, "expected at least 2 rows of each class"),
        (labelled([1.0] * 60), {"label": "outcome:left"}, NotEnoughDataError, "got label 1 in"),
        (
            labelled([1.0] + [0.0] * 59),
            {"label": "outcome:left"},
            NotEnoughDataError,
            "expected at least 2 rows of each",
        ),
        (labelled([0.5] * 60), {"label": "outcome:left"}, DataError, "column 'value' holds 0.5 .* expected 0 or 1"),
        (labelled([1.0] * 60), {"label": "outcome:other"}, NotEnoughDataError, "got 0 train rows"),
        (labelled([0.0, 1.0] * 30, ["dev"] * 60), {"label": "outcome:left"}, DataError, "'split' holds 'dev'"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_left_visible(tmp_path, tables, settings, error, message):
    lake = lake_with(tmp_path, **tables)
    with pytest.raises(error, match=message):
        make(lake, **settings)
    assert not lake.has("examples", "churn")


def test_a_required_column_without_a_value_is_named(tmp_path):
    subscriptions = pa.table({"entity_id": ["a"], "subscription_id": ["1"], "started_at": [START]})
    lake = lake_with(tmp_path, subscriptions=subscriptions)
    with pytest.raises(DataError, match="needs column 'ended_at' of table subscriptions"):
        make(lake, label="cancelled")


def test_an_order_without_a_clock_is_refused(tmp_path):
    lake = lake_with(tmp_path, clock="ordinal", transactions=purchases())
    with pytest.raises(DataError, match="features in days need a clock"):
        make(lake)


class OverAll:
    """A task over all customers at once: how many units were sold, as if all were one."""

    NAME, ENTITY, FEATURES_VERSION, LABELS = "over_all", "series", "1", ("label_units",)
    Settings = churn.Settings
    needs = staticmethod(lambda settings: Needs(required={"transactions": ("entity_id", "occurred_at")}))

    @staticmethod
    def gather(tables, settings):
        return {"sold": tables["transactions"].select(["occurred_at", "num_units"])}

    @staticmethod
    def combine(parts, settings):
        return {"sold": pa.concat_tables([part["sold"] for part in parts])}

    @staticmethod
    def examples(tables, as_of, settings, *, labels):
        at = pa.scalar(as_of, schema.TIME)
        before = tables["sold"].filter(pc.less(tables["sold"]["occurred_at"], at))
        after = tables["sold"].filter(pc.greater_equal(tables["sold"]["occurred_at"], at))
        units = pc.sum(after["num_units"]).as_py() if labels else None
        return pa.table(
            {
                "entity_id": ["total"], "as_of": pa.array([as_of], schema.TIME), "part": ["train"],
                "label_units": pa.array([units], pa.float64()), "sold": pa.array([before.num_rows], pa.int64()),
            }
        )  # fmt: skip


def test_a_task_over_all_customers_sees_every_shard_at_once(tmp_path, monkeypatch):
    module = types.ModuleType("over_all")
    module.__dict__.update({name: getattr(OverAll, name) for name in dir(OverAll) if not name.startswith("_")})
    monkeypatch.setitem(sys.modules, "over_all", module)
    bought = purchases()
    lake = lake_with(tmp_path, transactions=bought)
    run = examples(org(lake), lake, module, churn.Settings(**SETTINGS), one_by_one)
    now = run.read_table("now/*.parquet")
    assert now["entity_id"].to_pylist() == ["total"]
    assert now["sold"].to_pylist() == [bought.num_rows]
    test = run.read_table("test/*.parquet")
    assert test["sold"][0].as_py() + test["label_units"][0].as_py() == bought.num_rows
    assert run.manifest()["excluded"]["customers_outside_population_now"] == 0


def test_churn_reads_what_customers_were_scored_to_have_said(tmp_path):
    bought = purchases()
    days = [350 - i for i in range(60)]
    said = pa.table(
        {
            "entity_id": [f"c{i:03d}" for i in range(60)],
            "occurred_at": [START + timedelta(days=day) for day in days],
            "interaction_id": [f"i{i:03d}" for i in range(60)],
        }
    )
    lake = lake_with(tmp_path, transactions=bought, interactions=said)
    before = make(lake)
    assert not [name for name in before.manifest()["schema"] if name.startswith("sentiment_")]
    scored = lake.run("predictions", "sentiment", "f" * 16)
    scored.write_table(
        "part-00000.parquet", pa.table({"entity_id": said["interaction_id"], "score": [-1.0] * 30 + [1.0] * 30})
    )
    scored.commit()
    run = make(lake)
    assert run.run_id != before.run_id
    assert run.manifest()["sentiment"] == "f" * 16
    now = run.read_table("now/*.parquet")
    number = np.array([int(key[1:]) for key in now["entity_id"].to_pylist()])
    assert now["sentiment_last"].to_pylist() == np.where(number < 30, -1.0, 1.0).tolist()
    known = Known.open(run)
    homes = dict(zip(ids := said["entity_id"].to_pylist(), shard_of(pa.array(ids), NUM_SHARDS).tolist(), strict=True))
    there = next(key for key in ids[:30] if homes[key] == hashlib.sha1(key.encode()).digest()[0] % NUM_SHARDS)
    assert known.history(there)["interactions"]["sentiment_score"].to_pylist() == [-1.0]
    assert "sentiment_score" in known.schemas()["interactions"].names
