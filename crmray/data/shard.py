"""From raw/ to tables/: Modin on Ray types and cleans groups of raw parts, then each shard is merged and sorted.

    group of raw parts ── Ray tasks read ──> Modin frame (Arrow-backed, one row partition a piece)
        ── Modin maps clean + split over its partitions ──> one Arrow file a piece, in it one batch a shard
    shard ── Ray task merges its batch of every piece, drops repeats, sorts ──> shard-00000.parquet

A group is as large as the memory budget of the org file allows, whatever the size of the org. Every file has a fixed
name and appears whole, so a run that died goes on with what is missing. Rows set aside lie in rejected/ (key and
reason, no more).
"""

from __future__ import annotations

import gc
import queue
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import ray
from ray.exceptions import RayTaskError

from crmray import log, schema
from crmray.config import Org
from crmray.data import parse, pieces
from crmray.data.clean import ASKED_FOR
from crmray.data.ingest import Origin, origins
from crmray.data.pieces import Piece
from crmray.data.plans import Feed, MapShards, feeds, inline
from crmray.data.profile import Profile
from crmray.data.rejected import Places, first_of
from crmray.errors import CrmrayError, DataError, WatchdogError
from crmray.storage import Lake, Run, run_id

FORMAT = 2
MODIN_ROWS = 100_000
"""tables with fewer rows are cleaned by the same functions in this process: starting Modin would take longer"""
_GROUP_COPIES = 8
"""copies of a group's rows that may exist at once: two groups in the object store, and what tasks make of them"""
_MERGE_COPIES = 5
"""copies of a shard's rows while it is merged, sorted and written"""
_MAX_ILLEGIBLE = 0.5
"""share of rows with values that cannot be read above which the org file is wrong rather than the data"""


def shard(org: Org, lake: Lake, map_shards: MapShards, *, give_up_s: float = 1800) -> dict[str, Run]:
    """Clean and shard every table whose source was ingested; canonical table -> run.

    map_shards: `cluster.map_shards`; Ray must be connected. What was done before is not done again. While other work
    holds all CPUs it waits and says for what, and raises WatchdogError after `give_up_s`. DataError tells
    what is wrong with a table.
    """
    tables: dict[str, list[Origin]] = {}
    for origin in origins(org):
        tables.setdefault(origin.table, []).append(origin)
    runs = {name: _table(org, lake, name, found, map_shards, give_up_s) for name, found in tables.items()}
    return {name: run for name, run in runs.items() if run is not None}


def _table(
    org: Org, lake: Lake, table: str, found: list[Origin], map_shards: MapShards, give_up_s: float
) -> Run | None:
    """The run of one table; None when its sources hold no rows."""
    pairs = [(origin, lake.latest("raw", origin.raw)) for origin in found]
    num_shards = org.shards if schema.table(table).sharded else 1
    settings = {
        "sources": [{"raw": origin.raw, **origin.source.model_dump(exclude={"files"})} for origin in found],
        "shards": num_shards,
        "currency": org.currency,
    }
    inputs = {f"raw/{origin.raw}": run.run_id for origin, run in pairs}
    run = lake.run("tables", table, run_id("shard", inputs=inputs, settings=settings, seed=0, format=FORMAT))
    with run.claim("shard") as mine:
        if not mine:
            return run
        made = feeds(org, pairs, map_shards)
        if not made:
            log.warn("shard.empty", table=table)
            return None
        return _make(org, run, made, inputs, num_shards, map_shards, give_up_s)


def _make(
    org: Org,
    run: Run,
    made: list[Feed],
    inputs: dict[str, str],
    num_shards: int,
    map_shards: MapShards,
    give_up_s: float,
) -> Run:
    """Both passes over one table, then its manifest."""
    started, budget_bytes = time.monotonic(), org.memory_gib * 2**30
    table = made[0].plan.table
    size = pieces.estimate(made)
    on_ray = size.rows >= MODIN_ROWS
    groups = pieces.cut(made, size, budget_bytes / _GROUP_COPIES, num_cpus() if on_ray else 1)
    backend = "Ray" if on_ray else "Pandas"
    log.event("shard.start", table=table, rows=size.rows, groups=len(groups), modin_backend=backend, shards=num_shards)
    todo = [left for group in groups if (left := [piece for piece in group if not pieces.done(run, piece)])]
    if todo and on_ray:
        _with_modin(run, num_shards, todo, map_shards, give_up_s)
    else:
        for piece in (piece for group in todo for piece in group):
            pieces.make_piece(run, num_shards, piece, pieces.read(piece))
    whole = [piece for group in groups for piece in group]
    total = sum_profiles([pieces.profile_of(run, piece) for piece in whole])
    rejected_at = pieces.rejected_at(run, whole)
    refuse_illegible(org, table, total, rejected_at)
    manifest = _second_pass(
        run, table, whole, num_shards, size.bytes, budget_bytes, map_shards if on_ray else inline, total
    )
    pieces.gather_rejected(run)
    run.lake.fs.rm(f"{run.path}/{pieces.FOLDER}", recursive=True)
    seconds = round(time.monotonic() - started, 3)
    left_out = manifest["rejected"].get(ASKED_FOR, 0)  # on purpose: the org file drops them
    rejected = sum(manifest["rejected"].values()) - left_out
    log.event("shard.wrote", table=table, rows=manifest["rows"], rejected=rejected, left_out=left_out, seconds=seconds)
    return run.commit(
        inputs=inputs,
        **manifest,
        rejected_at=rejected_at,
        facts={"seconds": seconds, "groups": len(groups), "modin": backend},
    )


def _free_cpu(table: str) -> None:
    """A task that runs as soon as a CPU is free. Modin itself would wait for one without a word."""


def num_cpus() -> int:
    """CPUs of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def sum_profiles(profiles: Sequence[Profile]) -> Profile:
    """All profiles in one."""
    total = Profile()
    for profile in profiles:
        total.add(profile)
    return total


# -- first pass: Modin ---------------------------------------------------------------------------------------------


@ray.remote(num_cpus=1, num_returns=2)
def _read(piece: Piece) -> tuple[pd.DataFrame, int]:
    """Rows of a piece as an Arrow-backed frame (no copy), and how many."""
    rows = pieces.read(piece)
    return rows.to_pandas(types_mapper=pd.ArrowDtype), rows.num_rows


def _with_modin(run: Run, num_shards: int, groups: list[list[Piece]], map_shards: MapShards, give_up_s: float) -> None:
    """Make the pieces of all groups, one Modin frame a group; the next group is read meanwhile."""
    import modin.config

    # Modin calls its way to map a function over row partitions experimental, on every use.
    warnings.filterwarnings("ignore", message=".*Batch Pipeline API.*")
    assert modin.config.Backend.get() == "Ray", modin.config.Backend.get()
    modin.config.NPartitions.put(num_cpus())
    refs: list[Any] = [_read.remote(piece) for piece in groups[0]]
    try:
        # Modin would wait for a CPU without a word; the map says what it waits for, and ends.
        for _ in map_shards(_free_cpu, [run.name], label=f"shard.{run.name}.start", give_up_s=give_up_s):
            pass
        with log.progress("shard.clean", total=sum(map(len, groups)), unit="pieces") as bar:
            for index, group in enumerate(groups):
                following = groups[index + 1] if index + 1 < len(groups) else []
                ahead = [_read.remote(piece) for piece in following]
                _watched(partial(_clean_group, run, num_shards, group, refs), f"shard.{run.name}", give_up_s)
                refs = ahead
                gc.collect()  # Modin's frames refer to themselves; until they are gone their rows stay in the store
                bar.advance(len(group))
    finally:
        for rows, _ in refs:
            ray.cancel(rows)


def _clean_group(run: Run, num_shards: int, group: list[Piece], refs: list[Any]) -> None:
    """Map `make_piece` over the row partitions of the Modin frame that the read pieces are."""
    from modin.distributed.dataframe.pandas import from_partitions
    from modin.experimental.batch import PandasQueryPipeline

    lengths = ray.get([length for _, length in refs])
    columns = group[0].feed.run.open_parquet(group[0].parts[0]).schema_arrow.names
    frame = from_partitions(
        [rows for rows, _ in refs],
        axis=0,
        index=pd.RangeIndex(sum(lengths)),
        columns=pd.Index(columns),
        row_lengths=lengths,
        column_widths=[len(columns)],
    )
    pipeline = PandasQueryPipeline(frame, num_partitions=1)
    work = partial(_clean_partition, run, num_shards, group)
    pipeline.add_query(work, pass_partition_id=True, is_output=True)
    pipeline.compute_batch()


def _clean_partition(run: Run, num_shards: int, group: list[Piece], frame: pd.DataFrame, place: int) -> pd.DataFrame:
    """What Modin maps over the row partitions of a group: rows in, files written, counts out."""
    profile = pieces.make_piece(run, num_shards, group[place], frame)
    return pd.DataFrame({"rows_in": [profile.rows_in], "rows": [profile.rows]})


def _watched(work: Callable[[], None], label: str, give_up_s: float) -> None:
    """Run `work` in a thread; tell what it waits for at 10, 20, 40, … seconds; WatchdogError after `give_up_s`."""
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def target() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.put(error)
        else:
            outcome.put(None)

    threading.Thread(target=target, daemon=True, name=label).start()
    started, wait_s = time.monotonic(), 10.0
    while True:
        try:
            error = outcome.get(timeout=min(wait_s, give_up_s))
            break
        except queue.Empty:
            waited_s = time.monotonic() - started
            free = ray.available_resources().get("CPU", 0)
            state = f"Modin's tasks, {free:g} of {num_cpus()} CPUs are free"
            if waited_s >= give_up_s:
                raise WatchdogError(
                    f"{label}: waited {waited_s:.0f} s for {state}; end other work or add nodes"
                ) from None
            log.warn(f"{label}.waiting", seconds=round(waited_s), waits_for=state)
            wait_s *= 2
    if isinstance(error, RayTaskError) and isinstance(error.cause, CrmrayError):
        raise error.cause from None
    if error is not None:
        raise error


# -- second pass: one task a shard ---------------------------------------------------------------------------------


def _second_pass(
    run: Run,
    table: str,
    whole: list[Piece],
    num_shards: int,
    num_bytes: int,
    budget_bytes: float,
    map_shards: MapShards,
    total: Profile,
) -> dict[str, Any]:
    """Make all shards; the fields of the manifest."""
    shard_bytes = num_bytes / num_shards * _MERGE_COPIES
    if shard_bytes > budget_bytes:
        wanted = int(num_shards * shard_bytes / budget_bytes) + 1
        log.warn("shard.large", table=table, shards=num_shards, do=f"set shards to {wanted} or raise memory_gib")
    at_once = max(1, int(budget_bytes / max(shard_bytes, 1)))
    make = partial(pieces.make_shard, run, table, whole)
    merged = Profile(rows_in=total.rows_in, rejected=Counter(total.rejected))
    entities = 0
    for _, facts in map_shards(make, range(num_shards), label=f"shard.{table}", max_in_flight=at_once):
        merged.add(Profile.from_json(facts["profile"]))
        entities += facts["entities"]
    assert merged.rows_in == merged.rows + sum(merged.rejected.values()), f"{table}: rows got lost"
    plan = whole[0].feed.plan
    return {
        **merged.to_json(),
        "entities": entities,
        "num_shards": num_shards,
        "clock": "ordinal" if plan.date_format == parse.ORDINAL else "utc",
        "columns": {name: str(type_) for name, type_ in zip(plan.schema.names, plan.schema.types, strict=True)},
    }


def refuse_illegible(org: Org, table: str, total: Profile, rejected_at: Places) -> None:
    """DataError when no row is left, or more than half of the rows hold values that cannot be read."""
    reasons = ", ".join(
        f"{count} × {reason}{first_of(org, rejected_at.get(reason, ()))}"
        for reason, count in total.rejected.most_common(3)
    )
    illegible = sum(count for reason, count in total.rejected.items() if ": not " in reason or "currency" in reason)
    if total.rows and illegible <= _MAX_ILLEGIBLE * total.rows_in:
        return
    raise DataError(
        f"table {table}: {total.rows} of {total.rows_in} rows can be used ({reasons}); "
        "correct the mapping, date_format, decimal or currency in the org file"
    )
