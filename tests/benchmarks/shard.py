"""Shard against polars: 20 million generated transactions, read, hash-partitioned by customer, sorted within, zstd
Parquet.

    python -m tests.benchmarks.shard --rows 20e6 --folder /tmp/shard-benchmark

Both read the same raw Parquet parts and write the same number of shards, each in its own process, one after the
other, on Ray's and polars' two CPUs. crmray's clock runs over `shard()` on a cluster that is up, its checks of every
value included, as in a submitted job; starting a local Ray is printed beside it. Memory is the sum of PSS over all
processes, object store included, sampled twice a second. polars holds everything in memory, crmray a budget (2 GiB by
default).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SHARDS = 32
PART_ROWS = 256 * 1024
MAPPING = {
    "entity_id": "CustomerId",
    "occurred_at": "OrderedAt",
    "order_id": "OrderId",
    "product_id": "ProductId",
    "num_units": "Quantity",
    "unit_price_amount": "UnitPrice",
    "net_amount": "Amount",
}


def generate(folder: Path, rows: int) -> None:
    """Parquet files of transactions over three years: rows / 40 customers of uneven activity, 20,000 products."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def ids(prefix: str, numbers: np.ndarray, width: int) -> pa.Array:
        return pa.array(np.char.add(prefix, np.char.zfill(numbers.astype(str), width)))

    folder.mkdir(parents=True, exist_ok=True)
    for index, start in enumerate(range(0, rows, PART_ROWS)):
        n = min(PART_ROWS, rows - start)
        random = np.random.default_rng([0, index])
        seconds = np.sort(random.integers(0, 3 * 365 * 86_400, n))
        units = random.integers(1, 10, n).astype(float)
        price = np.round(np.exp(random.normal(2, 1, n)), 2)
        columns = {
            "CustomerId": ids("C", (rows // 40 * random.random(n) ** 1.5).astype(int), 9),
            "OrderedAt": pa.array(1_672_531_200_000_000 + seconds * 1_000_000, pa.timestamp("us", "UTC")),
            "OrderId": ids("O", (start + np.arange(n)) // 3, 10),
            "ProductId": ids("P", random.integers(0, 20_000, n), 5),
            "Quantity": units,
            "UnitPrice": price,
            "Amount": np.round(units * price, 2),
        }
        pq.write_table(pa.table(columns), folder / f"orders-{index:05d}.parquet", compression="zstd")


def org_of(folder: Path):
    """The org that reads the generated files."""
    from crmray.config import Org

    files = {"files": [str(folder / "source" / "*.parquet")], "columns": MAPPING}
    return Org(
        name="shard-benchmark",
        storage=str(folder / "lake"),
        shards=SHARDS,
        source={"kind": "files", "tables": {"transactions": files}},
    )


def run_crmray(folder: Path) -> dict[str, float]:
    """Seconds of `shard()` and of starting Ray."""
    from crmray.cluster import connect, map_shards
    from crmray.data.shard import shard
    from crmray.storage import Lake

    org = org_of(folder)
    started = time.perf_counter()
    connect(num_cpus=2, object_store_memory=10**9, _temp_dir=tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    joined = time.perf_counter()
    run = shard(org, Lake(org.root), map_shards)["transactions"]
    seconds = time.perf_counter() - joined
    return {"seconds": seconds, "start_ray_seconds": joined - started, "rows": run.manifest()["rows"]}


def run_polars(folder: Path) -> dict[str, float]:
    """Seconds of the same work in polars, in memory."""
    import polars as pl

    parts = sorted((folder / "lake" / "raw" / "transactions-0").glob("*/part-*.parquet"))
    out = folder / "polars"
    out.mkdir(exist_ok=True)
    started = time.perf_counter()
    rows = pl.read_parquet(parts)
    shards = rows.with_columns(shard=(pl.col("CustomerId").hash(17) % SHARDS).cast(pl.Int16)).partition_by(
        "shard", maintain_order=True, include_key=False
    )
    num_rows = rows.height
    del rows
    for index, part in enumerate(shards):
        part.sort("CustomerId", "OrderedAt", maintain_order=True).write_parquet(
            out / f"shard-{index:05d}.parquet", compression="zstd", compression_level=1
        )
    return {"seconds": time.perf_counter() - started, "rows": num_rows}


def sum_pss(root: int) -> int:
    """Bytes of PSS over a process and all its descendants."""
    import psutil

    total = 0
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def cpu_model() -> str:
    """Name of the processor as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def with_peak_pss(process: subprocess.Popen[str]) -> tuple[str, int]:
    """What a process writes until it ends, and the peak of the sum of PSS of it and its descendants, in bytes."""
    peak, ended = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            peak = max(peak, sum_pss(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    output, _ = process.communicate()
    ended.set()
    sampler.join()
    return output, peak


def measured(which: str, folder: Path) -> dict[str, float]:
    """Run one side in its own process; its figures and the peak of the sum of PSS in GiB."""
    # A cluster of its own for both sides; no token, because nothing but this process reaches it.
    environment = {**os.environ, "POLARS_MAX_THREADS": "2", "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.shard", "--only", which, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    output, peak = with_peak_pss(process)
    if process.returncode:
        raise SystemExit(f"{which} failed with exit code {process.returncode}")
    return {**json.loads(output.splitlines()[-1]), "peak_pss_gib": peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=20e6)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/shard-benchmark"))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=("crmray", "polars"))
    args = parser.parse_args()
    if args.only:
        print(json.dumps(run_crmray(args.folder) if args.only == "crmray" else run_polars(args.folder)))
        return
    from crmray.data.ingest import ingest
    from crmray.storage import Lake

    if not (args.folder / "lake" / "raw").exists():
        generate(args.folder / "source", int(args.rows))
        org = org_of(args.folder)
        ingest(org, Lake(org.root))
        shutil.rmtree(args.folder / "source")
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.repeats):
        for which in ("polars", "crmray"):
            shutil.rmtree(args.folder / "lake" / "tables", ignore_errors=True)
            figures = measured(which, args.folder)
            print(which, json.dumps({name: round(value, 3) for name, value in figures.items()}), flush=True)
            if which not in best or figures["seconds"] < best[which]["seconds"]:
                best[which] = figures
    rows = best["crmray"]["rows"]
    print(f"\n{cpu_model()}, {os.cpu_count()} CPUs, {rows:,.0f} rows, best of {args.repeats}")
    print("| | seconds | million rows/s | peak PSS, GiB |\n|---|---|---|---|")
    for which, figures in best.items():
        speed = figures["rows"] / figures["seconds"] / 1e6
        print(f"| {which} | {figures['seconds']:.1f} | {speed:.2f} | {figures['peak_pss_gib']:.2f} |")
    print(f"| ratio | {best['crmray']['seconds'] / best['polars']['seconds']:.2f} | | |")


if __name__ == "__main__":
    main()
