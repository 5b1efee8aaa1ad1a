"""Sharding with Modin on a real Ray cluster: the same bytes however it is cut or killed, and never a silent wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from crmray import cluster, config, log
from crmray.data import ingest as ingest_module
from crmray.data import shard as shard_module
from crmray.data.plans import inline
from crmray.errors import DataError, WatchdogError
from crmray.storage import Lake, Run

ROWS = 40_000
ORG = """
name: shop
storage: {lake}
shards: 4
memory_gib: {memory_gib}
source:
  kind: files
  tables:
    transactions:
      files: [{folder}/orders.parquet]
      columns: {{entity_id: who, occurred_at: when, num_units: n, unit_price_amount: price}}
      attributes: [region]
      drop: {drop}
"""
JOB = """
import sys
from crmray import cluster, config, storage
from crmray.data import shard
shard.MODIN_ROWS = 1
org = config.load(sys.argv[1])
cluster.connect()
shard.shard(org, storage.Lake(org.root), cluster.map_shards)
"""
PAUSES = """
import time
clean = shard._clean_group
shard._clean_group = lambda *group: (clean(*group), time.sleep(0.5))
"""
"""between its groups: a job that is to be killed must not be done before that"""


@pytest.fixture(scope="module", autouse=True)
def _small_pieces(ray_folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_module, "MODIN_ROWS", 1)
        patch.setattr(ingest_module, "PART_ROWS", 2_000)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    draw = np.random.default_rng(0)
    who = np.char.add("c", draw.integers(0, 900, ROWS).astype(str))
    columns = {
        "who": pa.array([None if n % 100 == 0 else name for n, name in enumerate(who)]),
        "when": pa.array(1_700_000_000 + draw.integers(0, 50, ROWS) * 86_400, pa.timestamp("s")),
        "n": draw.integers(-2, 9, ROWS),
        "price": np.where(np.arange(ROWS) % 1_000 == 1, np.inf, 2.5),
        "region": np.char.add("r", draw.integers(0, 5, ROWS).astype(str)),
    }
    pq.write_table(pa.table(columns), folder / "orders.parquet")
    return folder


def org_of(source: Path, folder: Path, *, memory_gib: float = 0.101, drop: str = "[]") -> tuple[config.Org, Lake]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "org.yaml"
    path.write_text(ORG.format(lake=folder / "lake", folder=source, memory_gib=memory_gib, drop=drop))
    org = config.load(path)
    lake = Lake(org.root)
    ingest_module.ingest(org, lake)
    return org, lake


def digests(run: Run) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in run.manifest()["files"].items() if name.startswith("shard-")}


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same table made in one piece, in this process, in pandas."""
    org, lake = org_of(source, tmp_path_factory.mktemp("inline"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_module, "MODIN_ROWS", ROWS + 1)
        return shard_module.shard(org, lake, inline)["transactions"]


def few_bytes(patch: pytest.MonkeyPatch) -> None:
    """Groups of some 5,000 rows, as if memory were small."""
    patch.setattr(shard_module, "_GROUP_COPIES", 400)


def test_modin_gives_the_same_bytes_in_many_groups(source, expected, tmp_path, monkeypatch):
    few_bytes(monkeypatch)
    org, lake = org_of(source, tmp_path)
    run = shard_module.shard(org, lake, cluster.map_shards)["transactions"]
    manifest = run.manifest()
    assert manifest["facts"]["modin"] == "Ray"
    assert manifest["facts"]["groups"] >= 4
    assert run.run_id == expected.run_id
    assert digests(run) == digests(expected)
    assert manifest["rejected"] == {"entity_id: missing": 400, "unit_price_amount: not finite or absurdly large": 40}
    assert manifest["rejected_at"] == expected.manifest()["rejected_at"]
    rows = {reason: [place["row"] for place in places] for reason, places in manifest["rejected_at"].items()}
    assert list(rows.values()) == [[1, 101, 201], [2, 1_002, 2_002]]
    assert (manifest["rows_in"], manifest["rows"]) == (ROWS, ROWS - 440)
    assert run.read_table("rejected/*.parquet").num_rows == 440


def test_a_killed_run_goes_on_where_it_was(source, expected, tmp_path, monkeypatch):
    few_bytes(monkeypatch)
    org, lake = org_of(source, tmp_path)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    job = JOB.replace("shard.MODIN_ROWS = 1", f"shard.MODIN_ROWS = 1; shard._GROUP_COPIES = 400\n{PAUSES}")
    process = subprocess.Popen([sys.executable, "-c", job, org.path], env=environment, start_new_session=True)
    run = lake.run("tables", "transactions", expected.run_id)
    deadline = time.monotonic() + 60
    while len(run.files("groups/*/*.json")) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not run.exists()
    left = {name: (Path(run.path) / name).stat().st_mtime_ns for name in run.files("groups/*/*.json")}
    assert len(left) >= 2

    made: list[str] = []
    real = shard_module._with_modin

    def spy(run_, num_shards, groups, *rest):
        made.extend(piece.name for group in groups for piece in group)
        real(run_, num_shards, groups, *rest)

    monkeypatch.setattr(shard_module, "_with_modin", spy)
    assert shard_module.shard(org, lake, cluster.map_shards)["transactions"].run_id == run.run_id
    assert digests(run) == digests(expected)
    assert made, "the job was killed before its end"
    assert not {f"{name}.json" for name in made} & set(left), "what was complete is not made again"


def test_a_users_mistake_inside_modin_is_one_clear_error(source, tmp_path):
    org, lake = org_of(source, tmp_path, drop='[{n: {in: "7"}}]')
    with pytest.raises(DataError, match="drop: column 'n': in: got '7', expected a list of values"):
        shard_module.shard(org, lake, cluster.map_shards)
    assert not lake.has("tables", "transactions")


def test_it_says_what_it_waits_for_and_does_not_hang(source, expected, tmp_path, monkeypatch):
    told: list[tuple[str, dict]] = []
    monkeypatch.setattr(log, "event", lambda name, *, level=20, **fields: told.append((name, fields)))
    org, lake = org_of(source, tmp_path)

    @ray.remote(num_cpus=2)
    class Hog:
        def ready(self) -> bool:
            return True

    hog = Hog.remote()
    assert ray.get(hog.ready.remote())
    with pytest.raises(WatchdogError, match="1 free CPU"):
        shard_module.shard(org, lake, cluster.map_shards, give_up_s=2)
    ray.kill(hog)
    assert digests(shard_module.shard(org, lake, cluster.map_shards)["transactions"]) == digests(expected)


def test_a_wait_inside_modin_ends_too(monkeypatch):
    with pytest.raises(WatchdogError, match=r"shard.x: waited .* Modin's tasks, .* of 2 CPUs are free"):
        shard_module._watched(lambda: time.sleep(5), "shard.x", 0.2)
