"""A task and a lake small enough to check by hand: P(leave) = 1 / (1 + exp(-(bias + weight * number of orders)))."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from crmray import bundle as bundles
from crmray import schema, storage
from crmray.config import Part
from crmray.tasks.contract import EntityRequest, Needs

NAME, ROUTE, ENTITY = "toy", "/v1/toy", "customer"
FEATURES_VERSION = "1"
LABELS = ("label",)
METRIC, MODE = "accuracy", "max"
NOW = datetime(2026, 10, 1, tzinfo=timezone.utc)


class Settings(Part):
    horizon_days: int = 30


class Request(EntityRequest):
    threshold: float = Field(0.5, ge=0, le=1)
    sleep_s: float = 0.0
    hold: str = ""
    """answered once a file of this name is there"""


class Prediction(BaseModel):
    entity_id: str
    probability: float
    leaves: bool
    reasons: list[str] | None = None


class Response(BaseModel):
    version: str
    predictions: list[Prediction]


def needs(settings: Settings) -> Needs:
    return Needs(required={"transactions": ("entity_id", "occurred_at")})


def examples(tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Settings, *, labels: bool) -> pa.Table:
    """One row per customer: orders before as_of, days since the last one, country, the orders' days as a list."""
    ids = tables["customers"]["entity_id"].to_pylist()
    orders = tables["transactions"].filter(
        pc.less(tables["transactions"]["occurred_at"], pa.scalar(as_of, schema.TIME))
    )
    days: dict[str, list[float]] = {key: [] for key in ids}
    for key, at in zip(orders["entity_id"].to_pylist(), orders["occurred_at"].to_pylist(), strict=True):
        days[key].append((as_of - at) / timedelta(days=1))
    lists = [sorted(days[key], reverse=True) for key in ids]
    return pa.table(
        {
            "entity_id": pa.array(ids, pa.string()),
            "as_of": pa.array([as_of] * len(ids), schema.TIME),
            "label": pa.array([int(len(row) < 3) if labels else None for row in lists], pa.int64()),
            "num_orders": pa.array([float(len(row)) for row in lists], pa.float64()),
            "recency_days": pa.array([row[-1] if row else None for row in lists], pa.float64()),
            "country": tables["customers"]["country"],
            "order_days": pa.array(lists, pa.list_(pa.float32())),
        }
    )


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    NAME: ClassVar[str] = "sigmoid"
    KIND: ClassVar[Literal["memory"]] = "memory"
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    bias: float
    weight: float

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        return {"score": 1 / (1 + np.exp(-(self.bias + self.weight * examples["num_orders"].to_numpy())))}

    def save(self) -> dict[str, bytes]:
        return {"weights.json": json.dumps({"bias": self.bias, "weight": self.weight}).encode()}

    @staticmethod
    def load(files: Mapping[str, bytes]) -> Sigmoid:
        return Sigmoid(**json.loads(files["weights.json"]))


CANDIDATES = {"sigmoid": Sigmoid}


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"accuracy": float(((predictions["score"] >= 0.5) == (examples["label"].to_numpy() == 1)).mean())}


def predict(
    model: Any, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False, threshold: float = 0.5,
    sleep_s: float = 0.0, hold: str = "",
) -> pa.Table:  # fmt: skip
    time.sleep(sleep_s)
    deadline = time.monotonic() + 60
    while hold and not Path(hold).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    probability = model.predict(examples)["score"]
    reasons = [["orders"] if explain else None] * len(probability)
    return pa.table(
        {
            "entity_id": examples["entity_id"],
            "probability": probability,
            "leaves": probability >= threshold,
            "reasons": pa.array(reasons, pa.list_(pa.string())),
        }
    )


# -- a lake ------------------------------------------------------------------------------------------------------------


def module() -> ModuleType:
    """This module, wherever it was imported from."""
    import sys

    return sys.modules[__name__]


TASKS = {NAME: module()}


def tables(num_customers: int) -> dict[str, pa.Table]:
    """Customer c00007 has 7 % 5 = 2 orders, the newest on 30 September, the others a day apart."""
    ids = [f"c{number:05d}" for number in range(num_customers)]
    orders = [
        (key, NOW - timedelta(days=1 + day)) for number, key in enumerate(ids) for day in reversed(range(number % 5))
    ]
    customers = {"entity_id": ids, "country": ["NL", "DE"] * (num_customers // 2) + ["NL"] * (num_customers % 2)}
    transactions = {
        "entity_id": [key for key, _ in orders],
        "occurred_at": [at for _, at in orders],
        "net_amount": [10.0] * len(orders),
    }
    return {
        "customers": schema.check("customers", pa.table(customers)),
        "transactions": schema.check("transactions", pa.table(transactions)),
        "products": schema.check("products", pa.table({"product_id": ["p1"]})),
    }


def table_manifest(name: str, table: pa.Table) -> dict[str, Any]:
    """What the shard stage says of a table in one shard."""
    time = schema.TABLES[name].time
    span = pc.min_max(table[time]).as_py() if time else {"min": None, "max": None}
    return {
        "rows": table.num_rows,
        "columns": table.column_names,
        "missing": {column: table[column].null_count for column in table.column_names},
        "earliest": span["min"] and span["min"].isoformat(),
        "latest": span["max"] and span["max"].isoformat(),
        "clock": "utc",
        "num_shards": 1,
    }


def write_examples(lake: storage.Lake, num_customers: int = 1_500) -> storage.Run:
    """Tables and the examples made from them, as the stations write them."""
    made, inputs = tables(num_customers), {}
    for name, table in made.items():
        run = lake.run(
            "tables", name, storage.run_id("shard", inputs={}, settings={"n": num_customers}, seed=0, format=1)
        )
        run.write_table("shard-00000.parquet", table)
        inputs[name] = run.commit(**table_manifest(name, table)).run_id
    run = lake.run("examples", NAME, storage.run_id("examples", inputs=inputs, settings={}, seed=0, format=1))
    rows = examples(made, NOW, Settings(), labels=True)
    run.write_table("test/shard-00000.parquet", rows)
    now = examples(made, NOW, Settings(), labels=False)
    with run.open_output("now.arrow") as sink, pa.ipc.new_file(sink, now.schema) as writer:
        writer.write_table(now)
    dates = {"train": [], "validation": None, "test": None, "now": NOW.isoformat()}
    return run.commit(
        task=NAME,
        features_version=FEATURES_VERSION,
        settings={},
        as_of=dates,
        horizon_days=30,
        inputs=inputs,
        num_shards=1,
    )


def write_bundle(lake: storage.Lake, run_id: str, *, bias: float, weight: float, baseline: float = 0.5) -> storage.Run:
    """A bundle whose predictions follow from its two numbers. Right for every row with bias 2.5, weight -1."""
    examples_run = lake.latest("examples", NAME)
    rows, model = examples_run.read_table("test/*.parquet"), Sigmoid(bias=bias, weight=weight)
    run = lake.run("bundles", NAME, run_id)
    bundles.write_bundle(
        run,
        module(),
        candidate="sigmoid",
        model=model,
        settings=Settings(),
        decision={},
        examples=rows,
        card="# toy",
        metrics={"sigmoid": score(rows, model.predict(rows))},
        baselines={"coin": {"accuracy": baseline}},
        data=examples_run.manifest(),
        seed=0,
    )
    return run.commit()


def write_org(folder: Any) -> str:
    """An org file with a lake beside it; its path."""
    path = folder / "org.yaml"
    path.write_text("name: toy\nstorage: lake\nsource: {kind: demo}\ntasks: {toy: {}}\n")
    return str(path)
