"""Seconds of a grid of 12 small LSTM trials through Ray Tune beside training the same 12 one after the other.

The bar is 1.5 x (bare seconds / concurrency) + 30 s. Both sides compute on one thread per trial; the bare side is one
process without Ray. Ray's own start is not counted, the trials' processes are.

    python -m tests.benchmarks.grid
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time

import numpy as np
import pyarrow as pa
import torch

from crmray import cluster, log
from crmray.models.lstm import LSTM
from crmray.storage import Lake
from crmray.tasks import churn
from crmray.train import engine, points, search

CONCURRENCY = 2


def table(num_rows: int, seed: int) -> pa.Table:
    """Customers with 5 to 40 events and a label that depends on the last one and on an attribute."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 40, num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    kinds = rng.integers(1, 9, offsets[-1]).astype(np.int16)
    days = np.concatenate([np.sort(rng.uniform(1, 700, n))[::-1] for n in lengths]).astype(np.float32)
    x = rng.normal(size=num_rows)
    odds = x + 2.0 * (kinds[offsets[1:] - 1] == 3) - 1.5
    columns = {"event_kind": kinds, "event_days_before": days, "event_value": rng.normal(20, 5, len(kinds))}
    return pa.table(
        {
            "entity_id": [f"c{i}" for i in range(num_rows)],
            "label": (rng.random(num_rows) < 1 / (1 + np.exp(-odds))).astype(np.int8),
            "x": x,
            **{name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()},
        }
    )


def main() -> None:
    """Print the table."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    log.setup(json=True)
    train, validation = table(6000, 0), table(1500, 1)
    values = itertools.product((1e-3, 3e-3, 1e-2), (32, 64), (0.1, 0.3))
    chosen = [
        points.Point(
            candidate="lstm",
            settings={"lr": lr, "hidden": hidden, "dropout": dropout, "max_epochs": 4, "batch_size": 256},
        )
        for lr, hidden, dropout in values
    ]
    assert len(chosen) == 12
    LSTM(**chosen[0].settings)
    with tempfile.TemporaryDirectory(prefix="bg", ignore_cleanup_errors=True) as folder:
        lake = Lake(f"{folder}/lake")
        shared = search.Search(
            task=churn, results=points.Results(lake, churn), examples="grid", seed=0, engine=engine.EngineSettings(),
            device="cpu", points=tuple(chosen), by_optuna=False,
        )  # fmt: skip
        cluster.connect(
            "local", num_cpus=CONCURRENCY, _temp_dir=f"{folder}/r", object_store_memory=300 * 2**20,
        )  # fmt: skip
        started = time.perf_counter()
        results = search.search(shared, train, validation, name="grid", concurrency=CONCURRENCY)
        ours = time.perf_counter() - started
        assert all(result.failed is None for result in results)
        bare = 0.0
        for index, point in enumerate([chosen[0], *chosen]):  # the first one twice: imports are no training
            fit = points.Fit.of(point, "selection", examples="bare", seed=0, engine=shared.engine)
            started = time.perf_counter()
            search.fit_here(churn, fit, train, validation, seed=0, settings=shared.engine, device="cpu")
            bare += time.perf_counter() - started if index else 0.0
    bar = 1.5 * bare / CONCURRENCY + 30
    print("| 12 trials, concurrency 2 | seconds |")
    print("|---|---|")
    print(f"| through Ray Tune | {ours:.1f} |")
    print(f"| bare, one after the other / {CONCURRENCY} | {bare / CONCURRENCY:.1f} |")
    print(f"| bar: 1.5 x that + 30 | {bar:.1f} |")


if __name__ == "__main__":
    main()
