"""Fits with a fixed number of rounds: torch candidates by a TorchTrainer over all workers, the others as Ray tasks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pyarrow as pa
import ray

from crmray import cluster, log
from crmray.train import trainer
from crmray.train.points import Fit, Result, seconds_since
from crmray.train.search import Search, fit_here

GROWTH = 1.2
"""boosting rounds of a refit: more rows carry more rounds"""


def rounds_of(result: Result, kind: str) -> int | None:
    """Rounds for a fit on more rows, from those that early stopping chose."""
    if result.rounds is None:
        return None
    return result.rounds if kind == "torch" else math.ceil(result.rounds * GROWTH)


def refit(shared: Search, fits: Sequence[tuple[Fit, pa.Table]], *, name: str, num_workers: int | None) -> None:
    """Run the fits (with their rows) that are not finished yet."""
    todo = [(fit, rows) for fit, rows in fits if shared.results.read(fit) is None]

    def of(kind: str) -> list[tuple[Fit, pa.Table]]:
        return [pair for pair in todo if kind == shared.task.CANDIDATES[pair[0].point.candidate].KIND]

    if in_memory := of("memory"):
        _refit_in_tasks(shared, in_memory)
    if by_torch := of("torch"):
        over_workers = [(fit, rows, None) for fit, rows in by_torch]
        trainer.train(shared, over_workers, name=name, num_workers=num_workers)


def _refit_in_tasks(shared: Search, fits: Sequence[tuple[Fit, pa.Table]]) -> None:
    refs = {fit.key: ray.put(rows) for fit, rows in fits}

    def run(fit: Fit) -> None:
        started = time.perf_counter()
        model, rounds, history = fit_here(
            shared.task, fit, ray.get(refs[fit.key]), None, seed=shared.seed, settings=shared.engine, device="cpu"
        )
        result = Result(fit=fit, rounds=rounds, seconds=seconds_since(started), history=history)
        shared.results.write(result, model)

    for fit, _ in cluster.map_shards(run, [fit for fit, _ in fits], label="refit"):
        log.event("refit.fit", candidate=fit.point.candidate, rows=fit.rows)
