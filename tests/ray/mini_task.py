"""A small task with the contract's functions and three small candidates, for tests of training; no Ray in here."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel

from crmray.evaluate.metrics import binary
from crmray.storage import Lake, Run

NAME, ROUTE, ENTITY = "mini", "/v1/mini", "customer"
FEATURES_VERSION, LABELS, METRIC, MODE = "1", ("label",), "auc", "max"
WEIGHTS = np.array([1.5, -1.0, 0.0])


class Settings(BaseModel):
    """No settings."""


@dataclass(frozen=True, kw_only=True)
class Net:
    """One hidden layer, through the DeepSpeed engine."""

    NAME: ClassVar[str] = "net"
    KIND: ClassVar[str] = "torch"
    GRID: ClassVar[dict[str, tuple]] = {"lr": (0.003, 0.01, 1e38), "hidden": (4, 8)}

    hidden: int = 8
    lr: float = 0.01
    weight_decay: float = 0.0
    dropout: float = 0.0
    batch_size: int = 64
    max_epochs: int = 3
    patience: int = 2
    pause_s: float = 0.0
    """Seconds that every training step takes longer."""
    trace: str = ""
    """File that gets a line with the process id at every training step."""

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        return {"mean": features(train).mean(axis=0).tolist()}

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        arrays = {"x": (features(examples) - np.array(state["mean"])).astype(np.float32)}
        if "label" in examples.column_names:
            arrays["label"] = examples["label"].to_numpy().astype(np.float32)
        return arrays

    def module(self, state: Mapping[str, Any]) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(3, self.hidden),
            torch.nn.Tanh(),
            torch.nn.Dropout(self.dropout),
            torch.nn.Linear(self.hidden, 1),
        )

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(values[rows]) for name, values in arrays.items()}

    def loss(self, module: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if module.training:
            time.sleep(self.pause_s)
            if self.trace:
                with open(self.trace, "a", encoding="utf-8") as file:
                    file.write(f"{os.getpid()}\n")
        logits = module(batch["x"]).squeeze(1)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["label"], reduction="none")

    def outputs(self, module: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"score": torch.sigmoid(module(batch["x"]).squeeze(1))}

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> NetModel:
        return NetModel(candidate=self, state=dict(state), weights=dict(weights), rounds=rounds)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> NetModel:
        about = json.loads(files["net.json"])
        weights = torch.load(io.BytesIO(files["weights.pt"]), weights_only=True)
        return Net(**about["candidate"]).fitted(about["state"], weights, about["rounds"])


@dataclass(frozen=True, kw_only=True)
class NetModel:
    candidate: Net
    state: dict[str, Any]
    weights: dict[str, torch.Tensor]
    rounds: int | None

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        module = self.candidate.module(self.state)
        module.load_state_dict(self.weights)
        arrays = self.candidate.encode(self.state, examples.drop_columns("label"))
        batch = self.candidate.batch(arrays, np.arange(examples.num_rows))
        with torch.inference_mode():
            return {"score": self.candidate.outputs(module.eval(), batch)["score"].double().numpy()}

    def save(self) -> dict[str, bytes]:
        buffer = io.BytesIO()
        torch.save(self.weights, buffer)
        about = {"candidate": asdict(self.candidate), "state": self.state, "rounds": self.rounds}
        return {"weights.pt": buffer.getvalue(), "net.json": json.dumps(about).encode()}


@dataclass(frozen=True, kw_only=True)
class Column:
    """Ranks by one feature: a baseline."""

    NAME: ClassVar[str] = "column"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"index": (0, 2)}

    index: int = 2

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> ColumnModel:
        return ColumnModel(index=self.index)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> ColumnModel:
        return ColumnModel(**json.loads(files["column.json"]))


@dataclass(frozen=True, kw_only=True)
class ColumnModel:
    index: int

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        return {"score": 1 / (1 + np.exp(-features(examples)[:, self.index]))}

    def save(self) -> dict[str, bytes]:
        return {"column.json": json.dumps({"index": self.index}).encode()}


CANDIDATES = {"net": Net, "column": Column}


def features(examples: pa.Table) -> np.ndarray:
    return np.stack([examples[f"x{i}"].to_numpy() for i in range(3)], axis=1)


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    return binary(examples["label"].to_numpy(), predictions["score"])


def finalize(model: Any, train: pa.Table, validation: pa.Table, settings: Any) -> dict[str, Any]:
    return {"mean_score": float(model.predict(validation)["score"].mean())}


def predict(model: Any, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False) -> pa.Table:
    return pa.table({"entity_id": examples["entity_id"], "probability": model.predict(examples)["score"]})


def evaluate(model: Any, decision: Mapping[str, Any], test: pa.Table, settings: Any) -> dict[str, Any]:
    return score(test, model.predict(test))


def rows(num_rows: int, seed: int, as_of: datetime | None = None, offset: int = 0) -> pa.Table:
    """Rows whose label follows a logistic curve of x0 and x1; x2 says nothing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, 3))
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-x @ WEIGHTS))).astype(np.int8)
    parts = np.array(["train", "validation", "test"])[np.minimum(np.arange(num_rows) % 20 // 7, 2)]
    columns = {
        "entity_id": [f"c{i + offset}" for i in range(num_rows)],
        "as_of": pa.array([as_of] * num_rows, pa.timestamp("us", tz="UTC")),
        "part": parts.tolist(),
        "label": label,
    }
    return pa.table({**columns, **{f"x{i}": x[:, i] for i in range(3)}})


def write_examples(lake: Lake, num_rows: int = 400) -> Run:
    """An examples run with time: three training dates (the last for the refit only), validation, test."""
    first, days = datetime(2026, 1, 1, tzinfo=timezone.utc), timedelta(days=30)
    train = [first, first + days, first + 2 * days]
    dates = {"train": train, "validation": first + 3 * days, "test": first + 5 * days, "now": first + 7 * days}
    run = lake.run("examples", NAME, "0" * 16)
    for index, date in enumerate(train):
        run.write_table(f"train/shard-{index:05d}.parquet", rows(num_rows, index, date))
    run.write_table("validation/shard-00000.parquet", rows(num_rows, 10, dates["validation"]))
    run.write_table("test/shard-00000.parquet", rows(num_rows, 11, dates["test"]))
    iso = {
        name: [d.isoformat() for d in date] if isinstance(date, list) else date.isoformat()
        for name, date in dates.items()
    }
    return run.commit(
        task=NAME, features_version=FEATURES_VERSION, settings={}, as_of=iso, horizon_days=60,
        rows={"train": 3 * num_rows, "validation": num_rows, "test": num_rows}, inputs={},
    )  # fmt: skip
