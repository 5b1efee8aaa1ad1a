"""Rows per second of the training loop through the DeepSpeed engine beside a bare PyTorch loop.

Measured with the LSTM, the forecaster and the text CNN.

Both sides have the same module, batches of 256 rows (50 steps, 52 weeks, 50 tokens), fused AdamW, gradient
clipping, threads and seed; the bare loop cuts its batches from tensors that lie ready. The two take turns, epoch by
epoch, and medians are compared, so that other work on the machine meets both alike. On a GPU both compute in bfloat16.

    python -m tests.benchmarks.train_loop
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from crmray.models import text_tokens
from crmray.models.forecast_transformer import NUM_AHEAD, NUM_ROW, PatchTransformer
from crmray.models.lstm import LSTM
from crmray.models.text_cnn import TextCNN
from crmray.train import engine, loop

NUM_KINDS, STEPS, BATCH, HORIZON = 15, 50, 256, 12


def arrays(num_rows: int) -> dict[str, np.ndarray]:
    """Rows as the LSTM candidate encodes them: 50 events each, no attributes."""
    rng = np.random.default_rng(0)
    num_events = num_rows * STEPS
    return {
        "offsets": np.arange(0, num_events + 1, STEPS),
        "kinds": rng.integers(2, NUM_KINDS + 2, num_events),
        "events": rng.normal(size=(num_events, 3)).astype(np.float32),
        "numbers": np.zeros((num_rows, 0), np.float32),
        "codes": np.zeros((num_rows, 0), np.int64),
        "label": rng.integers(0, 2, num_rows).astype(np.float32),
    }


def series(num_rows: int) -> dict[str, np.ndarray]:
    """Rows as the forecaster encodes them: 52 weeks behind, 12 ahead, no events."""
    rng = np.random.default_rng(0)
    return {
        "past": rng.normal(size=(num_rows, 52, 2)).astype(np.float32),
        "ahead": rng.normal(size=(num_rows, HORIZON, NUM_AHEAD)).astype(np.float32),
        "row": rng.normal(size=(num_rows, NUM_ROW)).astype(np.float32),
        "level": np.ones(num_rows, np.int64),
        "size": np.ones(num_rows),
        "label": rng.normal(size=(num_rows, HORIZON)).astype(np.float32),
        "weight": np.ones((num_rows, HORIZON), np.float32),
    }


def tokens(num_rows: int) -> dict[str, np.ndarray]:
    """Rows as the text CNN encodes them: 50 tokens each."""
    rng = np.random.default_rng(0)
    return {
        "offsets": np.arange(0, num_rows * STEPS + 1, STEPS),
        "tokens": rng.integers(2, len(WORDS), num_rows * STEPS),
        "label": rng.integers(0, 3, num_rows),
    }


WORDS = [f"w{number:04d}" for number in range(4_000)]
TEXT_STATE = {
    "classes": ["negative", "neutral", "positive"],
    "class_weights": [1.0, 1.0, 1.0],
    "tokenizer": text_tokens.fit(WORDS, vocabulary=4_000, min_count=1),
}
STATE = {"tabular": None, "kinds": list(range(NUM_KINDS)), "value_scales": [], "positive_weight": 1.0}
FORECAST_STATE = {"horizon": HORIZON, "levels": ["total"], "kinds": []}


def bare(
    candidate: Any, state: Mapping[str, Any], data: dict[str, np.ndarray], num_rows: int, device: str
) -> Callable[[], object]:
    """An epoch of the plain loop."""
    torch.manual_seed(0)
    module = candidate.module(state).to(device)
    whole = {name: value.to(device) for name, value in candidate.batch(data, np.arange(num_rows)).items()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=candidate.lr, weight_decay=candidate.weight_decay, fused=True)

    def epoch() -> None:
        order = torch.randperm(num_rows, device=device)
        module.train()
        for start in range(0, num_rows, candidate.batch_size):
            rows = order[start : start + candidate.batch_size]
            batch = {name: value[rows] for name, value in whole.items()}
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = candidate.loss(module, batch).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return epoch


def ours(candidate: Any, state: Mapping[str, Any], data: dict[str, np.ndarray], num_rows: int, device: str) -> loop.Run:
    """The house's loop, ready to run epochs."""
    torch.manual_seed(0)
    rows = loop.Data(train=data, num_train=num_rows)
    return loop.Run.start(candidate, state, rows, seed=0, device=device)


def measure(
    family: Any, size: Mapping[str, int], state: Mapping[str, Any], data: dict[str, np.ndarray], *, num_rows: int,
    epochs: int, device: str,
) -> dict[str, float]:  # fmt: skip
    """Median rows/s of both loops over `epochs` epochs in turn, after one epoch each of warm-up."""
    candidate = family(**size, batch_size=BATCH, max_epochs=epochs + 1, schedule="constant", warmup_share=0.0)
    seconds: tuple[list[float], list[float]] = ([], [])
    waits: list[float] = []
    with engine.single_process_group(device):
        mine = ours(candidate, state, data, num_rows, device)
        plain = bare(candidate, state, data, num_rows, device)
        for epoch in range(epochs + 1):
            started = time.perf_counter()
            figures = mine.epoch(epoch + 1)
            between = time.perf_counter()
            plain()
            if epoch:
                seconds[0].append(between - started)
                seconds[1].append(time.perf_counter() - between)
                waits.append(figures["data_wait_share"])
    rates = [num_rows / statistics.median(side) for side in seconds]
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    return {"ours": rates[0], "bare": rates[1], "ratio": ratio, "wait": statistics.median(waits)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of both sides")
    parser.add_argument("--rows", type=int, default=2048, help="rows per epoch")
    parser.add_argument("--epochs", type=int, default=9, help="epochs measured")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {os.cpu_count()} cores, {arguments.threads} threads, batch {BATCH}")
    print("| model, width | crmray rows/s | bare PyTorch rows/s | ratio | waiting for data |")
    print("|---|---|---|---|---|")
    events, weeks, texts = (make(arguments.rows) for make in (arrays, series, tokens))
    for family, size, state, data in (
        (LSTM, {"hidden": 128}, STATE, events), (LSTM, {"hidden": 32}, STATE, events),
        (PatchTransformer, {"hidden": 32}, FORECAST_STATE, weeks), (TextCNN, {"width": 128}, TEXT_STATE, texts),
    ):  # fmt: skip
        row = measure(family, size, state, data, num_rows=arguments.rows, epochs=arguments.epochs, device=device)
        rates = f"{row['ours']:,.0f} | {row['bare']:,.0f} | {row['ratio']:.2f} | {row['wait']:.1%}"
        print(f"| {family.NAME}, {', '.join(map(str, size.values()))} | {rates} |")


if __name__ == "__main__":
    main()
