"""Which rows each worker takes in each step: the same global batches for any number of workers.

An epoch is one seeded order of all rows, cut into global batches; a batch is dealt out to the workers' micro-batches.
So a training over four workers is the training over one, every worker takes the same number of steps, and no row is
dropped: what is missing in the last batch is padded with rows of weight zero.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Made = TypeVar("Made")
POOL_BATCHES = 16
"""batches within which rows are sorted by length: enough to save padding, few enough to keep the order random"""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one worker computes between two gradient accumulations."""

    rows: np.ndarray
    """(M,) int64 row numbers; padding repeats a row"""
    weights: np.ndarray
    """(M,) float32; 1 for a row, 0 for padding"""
    total_weight: float
    """sum of the weights of the whole step, over all workers and micro-batches"""
    last: bool
    """whether the optimizer steps after it"""


def order(num_rows: int, *, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None) -> np.ndarray:
    """(num_rows,) int64: every row once, shuffled by seed and epoch.

    lengths: (num_rows,) of the rows' sequences; then rows of similar length share a batch (within pools of POOL_BATCHES
    batches), and the batches come in random order, so that little is computed on padding.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = rng.permutation(num_rows)
    if lengths is None:
        return rows
    pool = POOL_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, num_rows, pool):
        part = rows[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    short = [batch for batch in batches if len(batch) < batch_size]  # at most one: it goes last, to keep the cuts
    whole = [batch for batch in batches if len(batch) == batch_size]
    return np.concatenate([*(whole[i] for i in rng.permutation(len(whole))), *short])


def num_steps(num_rows: int, batch_size: int) -> int:
    """Optimizer steps per epoch."""
    return -(-num_rows // batch_size)


def micro_batches(
    rows: np.ndarray, *, batch_size: int, rank: int = 0, num_workers: int = 1, accumulation: int = 1
) -> Iterator[MicroBatch]:
    """This rank's share of each global batch of `rows`, in order: `accumulation` micro-batches per step.

    Rows are dealt out in turn, so that batches sorted by length stay balanced. All shares of a step have one size.
    """
    parts = num_workers * accumulation
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        size = -(-len(batch) // parts)
        for k in range(accumulation):
            mine = batch[k * num_workers + rank :: parts]
            num_padding = size - len(mine)
            padding = np.full(num_padding, batch[0])
            yield MicroBatch(
                rows=np.concatenate([mine, padding]),
                weights=np.concatenate([np.ones(len(mine), np.float32), np.zeros(num_padding, np.float32)]),
                total_weight=float(len(batch)),
                last=k == accumulation - 1,
            )


def prefetch(items: Iterable[T], make: Callable[[T], Made], *, ahead: int) -> Iterator[Made]:
    """`make(item)` for each item, computed up to `ahead` items early in a thread; with ahead = 0, when asked for.

    A thread pays beside a GPU; on CPUs it would only take time from the training itself.
    """
    if ahead == 0:
        yield from map(make, items)
        return
    ready: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(entry: tuple[Any, BaseException | None, bool]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((make(item), None, False)):
                    return
            put((None, None, True))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put((None, error, True))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            value, error, end = ready.get()
            if error is not None:
                raise error
            if end:
                return
            yield value
    finally:
        stop.set()
        thread.join()
