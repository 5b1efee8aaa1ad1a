"""Sequences per second of the training loop (LSTM through the DeepSpeed engine) beside a bare PyTorch loop.

Both sides have the same module, batches of 256 sequences of 50 steps, fused AdamW, gradient clipping, threads and seed;
the bare loop cuts its batches from tensors that lie ready. The two take turns, epoch by epoch, and medians are
compared, so that other work on the machine meets both alike. On a GPU both compute in bfloat16.

    python -m tests.benchmarks.train_loop
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from crmray.models.lstm import LSTM
from crmray.train import engine, loop

NUM_KINDS, STEPS, BATCH = 15, 50, 256


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


STATE = {"tabular": None, "kinds": list(range(NUM_KINDS)), "value_scales": [], "positive_weight": 1.0}


def bare(candidate: LSTM, data: dict[str, np.ndarray], num_rows: int, device: str) -> Callable[[], object]:
    """An epoch of the plain loop."""
    torch.manual_seed(0)
    module = candidate.module(STATE).to(device)
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


def ours(candidate: LSTM, data: dict[str, np.ndarray], num_rows: int, device: str) -> loop.Run:
    """The house's loop, ready to run epochs."""
    torch.manual_seed(0)
    rows = loop.Data(train=data, num_train=num_rows)
    return loop.Run.start(candidate, STATE, rows, seed=0, device=device)


def measure(hidden: int, *, num_rows: int, epochs: int, device: str) -> dict[str, float]:
    """Median sequences/s of both loops over `epochs` epochs in turn, after one epoch each of warm-up."""
    candidate = LSTM(hidden=hidden, batch_size=BATCH, max_epochs=epochs + 1, schedule="constant", warmup_share=0.0)
    data = arrays(num_rows)
    seconds: tuple[list[float], list[float]] = ([], [])
    waits: list[float] = []
    with engine.single_process_group(device):
        mine, plain = ours(candidate, data, num_rows, device), bare(candidate, data, num_rows, device)
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
    parser.add_argument("--rows", type=int, default=2048, help="sequences per epoch")
    parser.add_argument("--epochs", type=int, default=9, help="epochs measured")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {os.cpu_count()} cores, {arguments.threads} threads, batch {BATCH}, {STEPS} steps of time")
    print("| hidden | crmray seq/s | bare PyTorch seq/s | ratio | waiting for data |")
    print("|---|---|---|---|---|")
    for hidden in (128, 32):
        row = measure(hidden, num_rows=arguments.rows, epochs=arguments.epochs, device=device)
        print(f"| {hidden} | {row['ours']:,.0f} | {row['bare']:,.0f} | {row['ratio']:.2f} | {row['wait']:.1%} |")


if __name__ == "__main__":
    main()
