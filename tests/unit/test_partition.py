"""Whole customers per shard: a hash that never changes, splits and merges that lose nothing, small tables."""

import json
import random
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from crmray import schema
from crmray.config import Org
from crmray.data import ingest as ingest_module
from crmray.data import partition, pieces, plans, rejected
from crmray.data.ingest import ingest
from crmray.data.plans import inline
from crmray.data.shard import shard
from crmray.errors import DataError, SchemaError
from crmray.storage import Lake

MASK = (1 << 64) - 1


def by_hand(text: str) -> int:
    """The hash as its description says it, in plain integers."""
    data = text.encode()
    value = (0x9E3779B97F4A7C15 + len(data)) & MASK
    for start in range(0, max(len(data), 1), 8):
        value ^= int.from_bytes(data[start : start + 8], "little")
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        value ^= value >> 31
    return value


def test_the_hash_never_changes():
    ids = ["C000000001", "0015e000001AbcDAAS", "12345678", "Ünïcode", "", "x" * 100]
    constants = [488, 690, 247, 357, 535, 798]
    assert partition.shard_of(pa.array(ids), 1000).tolist() == [by_hand(text) % 1000 for text in ids] == constants
    assert partition.shard_of(pa.chunked_array([ids[:2], ids[2:]]), 1000).tolist() == constants
    assert partition.shard_of(pa.array(ids).slice(2, 3), 1000).tolist() == constants[2:5]


def test_shards_are_about_equal():
    counts = np.bincount(partition.shard_of(pa.array([f"c{n}" for n in range(80_000)]), 8), minlength=8)
    assert 9_600 < counts.min() <= counts.max() < 10_400


def rows_of(*rows):
    names = ("entity_id", "occurred_at", "transaction_id", "net_amount")
    data = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    data["occurred_at"] = [datetime(2024, 1, day, tzinfo=timezone.utc) for day in data["occurred_at"]]
    return schema.check("transactions", pa.table(data))


def test_split_keeps_every_row_in_order():
    table = rows_of(*((f"c{n % 7}", 1, str(n), 1.0) for n in range(100)))
    batches = partition.split(table, "entity_id", 3)
    assert [batch.num_rows for batch in batches] == np.bincount(partition.shard_of(table["entity_id"], 3)).tolist()
    for shard_, batch in enumerate(batches):
        assert set(partition.shard_of(batch["entity_id"], 3)) == {shard_}
        numbers = [int(text) for text in batch["transaction_id"].to_pylist()]
        assert numbers == sorted(numbers)
    assert partition.split(table.slice(0, 0), "entity_id", 3)[2].num_rows == 0


def test_merge_sorts_and_sets_repeats_aside():
    table = rows_of(("b", 2, "1", 1.0), ("a", 3, "2", 2.0), ("b", 1, "3", 3.0), ("b", 2, "1", 4.0), ("a", 3, "9", 5.0))
    merged = partition.merge("transactions", table.to_batches(), table.schema)
    # the second row of b's transaction 1 stays; a's two rows of one time keep the order of the source
    assert merged.rows.select(["entity_id", "net_amount"]).to_pylist() == [
        {"entity_id": "a", "net_amount": 2.0},
        {"entity_id": "a", "net_amount": 5.0},
        {"entity_id": "b", "net_amount": 3.0},
        {"entity_id": "b", "net_amount": 4.0},
    ]
    assert merged.entities == 2
    assert merged.repeats.to_pylist() == [{"key": "b", "reason": "transaction_id: repeated (the last row stays)"}]


def test_merge_keeps_repeats_without_a_key():
    table = rows_of(("b", 2, None, 1.0), ("b", 2, None, 1.0))
    merged = partition.merge("transactions", table.to_batches(), table.schema)
    assert (merged.rows.num_rows, merged.repeats.num_rows) == (2, 0)


def test_an_outcome_told_twice_is_one():
    table = schema.check("outcomes", pa.table({"entity_id": ["a", "a"], "name": ["churn"] * 2, "value": [1.0, 1.0]}))
    merged = partition.merge("outcomes", table.to_batches(), table.schema)
    assert (merged.rows.num_rows, merged.repeats.num_rows) == (1, 1)


def test_cutting_into_groups_of_pieces():
    class Feed:
        parts = tuple(f"part-{n}" for n in range(10))

    size = pieces.Estimate(rows=10, part_bytes=((100,) * 10,))
    groups = pieces.cut([Feed()], size, group_bytes=400, pieces_per_group=2)
    assert [[len(piece.parts) for piece in group] for group in groups] == [[2, 1], [2, 2], [1, 2]]
    assert sum((piece.parts for group in groups for piece in group), ()) == Feed.parts
    assert all(sum(len(piece.parts) for piece in group) <= 4 for group in groups)
    other = pieces.cut([Feed()], size, group_bytes=900, pieces_per_group=2)
    assert {piece.name for group in groups for piece in group}.isdisjoint(
        piece.name for group in other for piece in group
    )


def make(tmp_path: Path, tables: dict, **more) -> tuple[Org, Lake]:
    """An org over CSV files in `tmp_path`, ingested."""
    source = {"kind": "files", "tables": tables}
    org = Org(name="t", storage=str(tmp_path / "lake"), source=source, path=str(tmp_path / "org.yaml"), **more)
    lake = Lake(org.root)
    ingest(org, lake)
    return org, lake


def test_a_small_table_end_to_end(tmp_path):
    lines = ["who,when,n,price,region"]
    draw = random.Random(0)
    lines += [
        f"c{draw.randrange(50)},2024-01-{draw.randrange(1, 29):02d},{draw.randrange(-2, 9)},2.5,0{n % 3}"
        for n in range(999)
    ]
    lines += [",2024-01-01,1,1,x", "c1,01/02/2024,1,1,x", "c1,2024-01-01,many,1,x"]
    (tmp_path / "orders.csv").write_text("\n".join(lines) + "\n")
    columns = {"entity_id": "who", "occurred_at": "when", "num_units": "n", "unit_price_amount": "price"}
    org, lake = make(
        tmp_path, {"transactions": {"files": ["orders.csv"], "columns": columns, "attributes": "*"}}, shards=4
    )
    run = shard(org, lake, inline)["transactions"]
    manifest = run.manifest()
    assert (manifest["rows_in"], manifest["rows"], manifest["entities"]) == (1002, 999, 50)
    assert manifest["rejected"] == {
        "entity_id: missing": 1,
        "num_units: not a number": 1,
        "occurred_at: not a time in ISO 8601 (set date_format?)": 1,
    }
    assert manifest["rejected_at"] == {
        reason: [{"raw": "transactions-0", "file": 0, "row": row, "column": column}]
        for (reason, row, column) in zip(
            sorted(manifest["rejected"]), (1000, 1002, 1001), ("who", "n", "when"), strict=True
        )
    }
    assert manifest["missing"] == dict.fromkeys(("channel", "order_id", "product_id", "transaction_id"), 999)
    assert (manifest["earliest"], manifest["latest"]) == ("2024-01-01T00:00:00+00:00", "2024-01-28T00:00:00+00:00")
    assert run.files("*.parquet") == [f"shard-{n:05d}.parquet" for n in range(4)]
    rows = run.read_table()
    assert schema.check("transactions", rows).equals(rows)
    assert Counter(rows["region"].to_pylist()) == {"00": 333, "01": 333, "02": 333}
    for number in range(4):
        part = run.read_table(f"shard-{number:05d}.parquet")
        assert set(partition.shard_of(part["entity_id"], 4)) == {number}
        keys = list(zip(part["entity_id"].to_pylist(), part["occurred_at"].to_pylist(), strict=True))
        assert keys == sorted(keys)
    assert Counter(run.read_table("rejected/*.parquet")["key"].to_pylist()) == {None: 1, "c1": 2}
    assert not run.files("groups/**")
    assert shard(org, lake, inline)["transactions"].manifest() == manifest


def test_one_customer_leaves_the_other_shards_empty(tmp_path):
    (tmp_path / "orders.csv").write_text("who,when\nonly,2024-01-01\n")
    source = {"files": ["orders.csv"], "columns": {"entity_id": "who", "occurred_at": "when"}}
    run = shard(*make(tmp_path, {"transactions": source}, shards=8), inline)["transactions"]
    assert sorted(run.read_table([name]).num_rows for name in run.files("*.parquet")) == [0] * 7 + [1]
    assert (run.manifest()["rows"], run.manifest()["entities"]) == (1, 1)


def test_rows_set_aside_are_told_by_their_file_whatever_way_they_are_cut(tmp_path, monkeypatch):
    """Three files of seven rows in parts of five; the rows of who was erased cannot be counted any more."""
    monkeypatch.setattr(ingest_module, "PART_ROWS", 5)
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text(
            "who,when\n" + "c1,2024-01-01\n" * 6 + ("c1,x\n" if name != "b" else "c2,y\n")
        )
    source = {"files": ["*.csv"], "columns": {"entity_id": "who", "occurred_at": "when"}}
    org, lake = make(tmp_path, {"transactions": source})
    (places,) = shard(org, lake, inline)["transactions"].manifest()["rejected_at"].values()
    assert [(place["file"], place["row"]) for place in places] == [(0, 7), (1, 7), (2, 7)]
    raw = lake.latest("raw", "transactions-0")
    told = raw.manifest()
    assert told["rows_read"] == [7, 7, 7]
    lake.write(f"raw/transactions-0/{raw.run_id}/manifest.json", json.dumps({**told, "rows": 20}).encode())
    lake.fs.rm(f"{lake.base}/tables", recursive=True)
    (places,) = shard(org, lake, inline)["transactions"].manifest()["rejected_at"].values()
    assert places[0] == {"raw": "transactions-0", "row": 7, "column": "when"}


def test_what_cannot_be_read_is_told_by_its_first_row(tmp_path):
    (tmp_path / "orders.csv").write_text("who,when\nc1,2024-01-01\nc1,01/02/2024\nc1,02/02/2024\n")
    source = {"files": ["orders.csv"], "columns": {"entity_id": "who", "occurred_at": "when"}}
    with pytest.raises(DataError, match="2 × occurred_at: not a .*, the first in row 2 of orders.csv, column 'when'"):
        shard(*make(tmp_path, {"transactions": source}), inline)


def test_rows_set_aside_are_told_by_the_names_that_their_files_have_now(tmp_path):
    """Renamed files hold what they held, so they are not read again."""
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"who,when\nc1,2024-01-01\n{name},2024-01-01\n{name},x\n")
    source = {"files": ["*.csv"], "columns": {"entity_id": "who", "occurred_at": "when"}}
    org, lake = make(tmp_path, {"transactions": source})
    run = shard(org, lake, inline)["transactions"]
    for name in "ab":
        (tmp_path / f"{name}.csv").rename(tmp_path / f"new_{name}.csv")
    ingest_module.ingest(org, lake)
    assert shard(org, lake, inline)["transactions"].run_id == run.run_id
    (places,) = rejected.told(org, run).values()
    assert places == ["new_a.csv: line 4 (column 'when')", "new_b.csv: line 4 (column 'when')"]
    (tmp_path / "new_b.csv").unlink()
    (places,) = rejected.told(org, run).values()
    assert places == ["new_a.csv: line 4 (column 'when')", "file 2 of raw/transactions-0: row 3 (column 'when')"]


def test_a_shard_that_is_no_canonical_table_is_not_written(tmp_path):
    """What one version of the code made of the raw rows may be no table of another."""
    (tmp_path / "orders.csv").write_text("who,when\nc1,2024-01-01\nc1,2024-01-02\n")
    source = {"files": ["orders.csv"], "columns": {"entity_id": "who", "occurred_at": "when"}}
    org, lake = make(tmp_path, {"transactions": source}, shards=1)
    pairs = [(origin, lake.latest("raw", origin.raw)) for origin in ingest_module.origins(org)]
    (feed,) = plans.feeds(org, pairs)
    piece = pieces.Piece(name="groups/0/00000-000", feed=feed, parts=feed.parts)
    run = lake.run("tables", "transactions", "0" * 16)
    pieces.make_piece(run, 1, piece, pieces.read(piece))
    whole = pa.ipc.open_file(run.read_bytes(f"{piece.name}.arrow")).read_all()
    times = pa.array([whole["occurred_at"][0].as_py(), None], whole.schema.field("occurred_at").type)
    with_null = whole.set_column(whole.schema.get_field_index("occurred_at"), "occurred_at", times)
    with run.open_output(f"{piece.name}.arrow") as sink, pa.ipc.new_file(sink, with_null.schema) as writer:
        writer.write_table(with_null.combine_chunks())
    with pytest.raises(SchemaError, match="occurred_at"):
        pieces.make_shard(run, "transactions", [piece], 0)
    assert run.files("shard-*") == run.files("groups/0/shard-*.json") == []


def test_duplicate_customers_of_two_sources(tmp_path):
    (tmp_path / "a.csv").write_text("id,age\n1,30\n2,40\n")
    (tmp_path / "b.csv").write_text("id,age,vip\n2,41.5,true\n3,,false\n")
    sources = [{"files": [name], "columns": {"entity_id": "id"}, "attributes": "*"} for name in ("a.csv", "b.csv")]
    org, lake = make(tmp_path, {"customers": sources}, shards=1)
    run = shard(org, lake, inline)["customers"]
    assert run.read_table(columns=["entity_id", "age", "vip"]).to_pylist() == [
        {"entity_id": "1", "age": 30.0, "vip": None},
        {"entity_id": "2", "age": 41.5, "vip": True},
        {"entity_id": "3", "age": None, "vip": False},
    ]
    assert run.manifest()["rejected"] == {"entity_id: repeated (the last row stays)": 1}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"columns": {"entity_id": "who", "occurred_at": "n"}},
            "0 of 3 rows can be used .3 × occurred_at: not a time in ISO",
        ),
        (
            {"columns": {"entity_id": "who", "occurred_at": "when"}, "date_format": "%d/%m/%Y"},
            "not a time of the form %d/%m/%Y",
        ),
        (
            {"columns": {"entity_id": "who", "occurred_at": "when"}, "drop": [{"n": {"in": "1"}}]},
            "got '1', expected a list",
        ),
        (
            {"columns": {"entity_id": "who", "occurred_at": "when"}, "drop": [{"missing": False}]},
            "column 'missing' is not there",
        ),
        ({"columns": {"entity_id": "who"}}, "column 'occurred_at' is not mapped"),
        ({"columns": {"entity_id": "who", "occurred_at": "when"}, "attributes": ["x"]}, "column 'x' is not there"),
    ],
)
def test_one_clear_error(tmp_path, source, message):
    (tmp_path / "orders.csv").write_text("who,when,n\na,2024-01-01,1\nb,2024-01-02,2\nb,2024-01-03,3\n")
    with pytest.raises(DataError, match=message):
        shard(*make(tmp_path, {"transactions": {"files": ["orders.csv"], **source}}), inline)
    assert not Lake(tmp_path / "lake").has("tables", "transactions")


def test_parquet_integers_are_no_times(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"who": ["a", "b"], "when": [2, 1]}), tmp_path / "o.parquet")
    source = {"files": ["o.parquet"], "columns": {"entity_id": "who", "occurred_at": "when"}}
    org, lake = make(tmp_path, {"transactions": source})
    with pytest.raises(DataError, match=r"'when' is int64, expected times or text; .*date_format: ordinal"):
        shard(org, lake, inline)
    org, lake = make(tmp_path, {"transactions": {**source, "date_format": "ordinal"}})
    run = shard(org, lake, inline)["transactions"]
    assert run.manifest()["clock"] == "ordinal"
