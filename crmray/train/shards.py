"""Shard-wise candidates: map over all shards, reduce, until done. Memory is bounded by a shard and a sample."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from crmray import cluster, log
from crmray.storage import Run
from crmray.train import rows
from crmray.train.points import OWN_FAULT, Fit, Result, figures_of, reason, seconds_since
from crmray.train.search import Search

SAMPLE_ROWS = 20_000
"""rows that a candidate sees at its start, to seed itself"""


def fit(shared: Search, fits: Sequence[Fit], examples: Run, seen: rows.Rows) -> list[Result]:
    """Run the fits that are not finished yet, all of them in the same passes over the shards."""
    todo = [one for one in fits if shared.results.read(one) is None]
    if todo:
        _passes(shared, todo, examples, seen)
    return [shared.results.of(one) for one in fits]


def _passes(shared: Search, fits: Sequence[Fit], examples: Run, seen: rows.Rows) -> None:
    candidates: dict[str, Any] = {one.key: one.point.make(shared.task) for one in fits}
    started, states = time.perf_counter(), {}
    for one in fits:
        try:
            states[one.key] = candidates[one.key].start(_sample(_rows_of(seen, one)), shared.seed)
        except OWN_FAULT as error:
            _failed(shared, one, error, started)
    running = [one for one in fits if one.key in states]
    passes = 0
    while running:
        passes += 1
        partials = _map(candidates, states, running, examples)
        still = []
        for one in running:
            candidate = candidates[one.key]
            states[one.key], done = candidate.reduce(states[one.key], partials[one.key])
            if done:
                _finish(shared, one, candidate.fitted(states[one.key]), seen, started)
            else:
                still.append(one)
        log.event("shards.pass", task=shared.task.NAME, number=passes, running=len(still), of=len(fits))
        running = still


def _map(
    candidates: Mapping[str, Any], states: Mapping[str, Any], fits: Sequence[Fit], examples: Run
) -> dict[str, list[Any]]:
    """Each fit's partial results, in the order of the shards so that sums keep their bits."""
    names = [name for part in ("train", "validation") for name in examples.files(f"{part}/*.parquet")]
    now = {one.key: states[one.key] for one in fits}
    kinds = {one.key: one.rows for one in fits}

    def call(name: str) -> dict[str, Any]:
        table, dates = examples.read_table([name]), rows.dates_of(examples)
        out = {}
        for key, state in now.items():
            own = rows.of_shard(table, name.split("/")[0], kinds[key], dates)
            if own.num_rows:
                out[key] = candidates[key].map(state, own)
        return out

    done = dict(cluster.map_shards(call, names, label="shards"))
    return {key: [done[name][key] for name in names if key in done[name]] for key in now}


def _rows_of(seen: rows.Rows, one: Fit) -> pa.Table:
    return {"selection": seen.selection, "refit": seen.refit}.get(one.rows, seen.hash_train)


def _sample(table: pa.Table) -> pa.Table:
    """Evenly spread rows: the files are sorted by id, whose hash made the shards."""
    step = max(1, table.num_rows // SAMPLE_ROWS)
    return table.take(pa.array(range(0, table.num_rows, step)))


def _finish(shared: Search, one: Fit, model: Any, seen: rows.Rows, started: float) -> None:
    figures = {}
    if one.rows == "selection":
        try:
            figures = figures_of(shared.task, seen.validation, model)
        except OWN_FAULT as error:
            _failed(shared, one, error, started)
            return
    seconds = seconds_since(started)
    rounds = getattr(model, "rounds", None)
    shared.results.write(Result(fit=one, figures=figures, rounds=rounds, seconds=seconds), model)
    told: dict[str, Any] = {"trial": one.point.label(shared.task), "state": "finished", "seconds": seconds}
    log.event("trial", **{**told, **figures})


def _failed(shared: Search, one: Fit, error: Exception, started: float) -> None:
    shared.results.write(Result(fit=one, seconds=seconds_since(started), failed=reason(error)), None)
