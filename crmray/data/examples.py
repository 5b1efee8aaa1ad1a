"""The examples stage: as-of rows of a task, from the canonical tables, shard by shard.

    examples/<task>/<run_id>/
        train|validation|test/shard-*.parquet   labelled rows of the training, validation, test dates
        now/shard-*.parquet                     rows to score, without labels
        now.arrow                               the same, all shards, sorted by entity_id, to memory-map
        manifest.json                           dates, counts of rows and labels, what was left out, and at which dates
                                                attributes of customers are used as what (asof_attributes)

Without time (given labels without a date) the rows are split by their part. No Ray here: the way to map over shards is
given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from crmray import log, schema
from crmray.config import Org
from crmray.data import asof_attributes, attribute_plan, leaks, splits
from crmray.data.examples_inputs import Inputs
from crmray.data.examples_shard import attribute_table, gather_shard, make_shard, rows_of, try_shard, write_rows
from crmray.data.plans import inline
from crmray.data.splits import PARTS, Snapshots
from crmray.errors import NotEnoughDataError
from crmray.evaluate.decide import Decided
from crmray.storage import Lake, Run, run_id

FORMAT = 2
"""raised when the files of the stage change"""
MIN_CLASS_ROWS = 2
SHARE_OF_BUDGET = 0.25
"""of the memory budget that one sorted piece of the `now` rows may take: reading, sorting and writing hold copies"""


def examples(org: Org, lake: Lake, task: Any, settings: Any, map_shards: Callable[..., Iterator[tuple]]) -> Run:
    """Make the examples of a task, or find them made. A task may choose its dates itself: `dates(settings, span)`.

    map_shards(fn, items, *, label) yields (item, fn(item)) in any order. DataError and NotEnoughDataError say which
    table, column or kind of row is missing.
    """
    inputs = Inputs.of(lake, task, settings)
    run = lake.run("examples", task.NAME, _run_id(org, task, settings, inputs))
    with run.claim("examples") as mine:
        if mine:
            _make(org, lake, task, settings, inputs, run, map_shards)
    return run


def attributes_of(org: Org, lake: Lake, task: Any, settings: Any) -> dict[str, Any]:
    """Which attributes of customers could be used at the task's dates, and as what, without making the examples.

    {column: report of asof_attributes.plan}; leaks are found when the examples are made. DataError when the tables
    cannot carry the task.
    """
    return asof_attributes.told(Inputs.of(lake, task, settings).plan(org, lake, task, inline))


def trial(org: Org, lake: Lake, task: Any, settings: Any, map_shards: Callable = inline) -> tuple[int, int]:
    """Find out what making the examples would refuse, without writing them: shard after shard until every split has
    rows enough. How many shards that took, of how many; errors as of `examples`.
    """
    inputs = Inputs.of(lake, task, settings)
    plan = inputs.plan(org, lake, task, map_shards)
    if hasattr(task, "gather"):
        tables, _ = _gathered(lake, task, settings, inputs, map_shards)
        made = rows_of(task, settings, inputs.dates, lambda as_of: tables, tables)
        _check_enough(task, _total([made.facts["counts"]]), inputs.dates)
        return inputs.num_shards, inputs.num_shards
    work = _work(lake, task, settings, inputs)
    counts: dict[str, Any] = {}
    for shard in range(inputs.num_shards):
        counts = _total([counts, try_shard(shard, plan=plan, **work)])
        try:
            _check_enough(task, counts, inputs.dates)
        except NotEnoughDataError:
            if shard + 1 == inputs.num_shards:
                raise
        else:
            break
    return shard + 1, inputs.num_shards


def _work(lake: Lake, task: Any, settings: Any, inputs: Inputs) -> dict[str, Any]:
    """Arguments of make_shard and try_shard that are the same for all shards."""
    return {
        "root": lake.root,
        "task_module": task.__name__,
        "settings": settings.model_dump(mode="json"),
        "tables": inputs.held,
        "changes": inputs.changes,
        "beside": inputs.beside,
        "dates": {"as_of": inputs.dates.to_json(), "horizon_days": inputs.dates.horizon_days},
    }


def _run_id(org: Org, task: Any, settings: Any, inputs: Inputs) -> str:
    read = settings.model_dump(mode="json", exclude=set(Decided.model_fields))  # where to cut makes no other rows
    own = {"task": task.NAME, "features_version": task.FEATURES_VERSION, "settings": read}
    own |= {"history": org.history.model_dump(mode="json")} if attribute_table(task) in inputs.content else {}
    runs = {name: table.run.run_id for name, table in inputs.content.items()}
    runs |= {"changes": inputs.changes[0]} if inputs.changes else {}
    runs |= inputs.beside.to_json()
    return run_id("examples", inputs=runs, settings=own, seed=org.seed, format=FORMAT)


def _make(org: Org, lake: Lake, task: Any, settings: Any, inputs: Inputs, run: Run, map_shards: Callable) -> None:
    dates = inputs.dates
    log.event("examples.dates", task=task.NAME, **dates.to_json())
    plan = inputs.plan(org, lake, task, map_shards)
    for how in plan.values():
        if how["used"] == "kept out":
            name, known = f"{how['object']}.{how['field']}", min(how["known"].values())
            log.warn("examples.kept_out", field=name, status=how["status"], known_of_customers=known)
    if hasattr(task, "gather"):
        shards = [_whole(lake, task, settings, inputs, run, map_shards)]
    else:
        work = partial(make_shard, run_id=run.run_id, **_work(lake, task, settings, inputs))
        shards, plan = _shards(work, inputs.num_shards, plan, task, map_shards)
    fields = {tuple(shard["schema"].items()) for shard in shards}
    assert len(fields) == 1, f"shards differ in their columns: {[set(a) ^ set(b) for a in fields for b in fields]}"
    counts = _total([shard["counts"] for shard in shards])
    _check_enough(task, counts, dates)
    _write_now(run, len(shards), sum(shard["now_bytes"] for shard in shards), org.memory_gib * 2**30)
    run.commit(
        task=task.NAME,
        features_version=task.FEATURES_VERSION,
        settings=settings.model_dump(mode="json"),
        as_of=dates.to_json(),
        horizon_days=dates.horizon_days,
        span=[moment.isoformat() for moment in inputs.span] if inputs.span else None,
        rows={name: sum(count["rows"] for count in counts[name].values()) for name in (*PARTS, "now")},
        counts=counts,
        excluded={
            "customers_outside_population_now": sum(shard["outside"] for shard in shards),
            "customers_who_withdrew": sum(shard["withdrew"] for shard in shards),
        },
        consent=inputs.beside.consent,
        sentiment=inputs.beside.sentiment,
        attributes=asof_attributes.told(plan),
        schema=shards[0]["schema"],
        num_shards=inputs.num_shards,
        inputs={name: table.run.run_id for name, table in inputs.content.items()},
    )


def _shards(
    work: partial, num_shards: int, plan: dict[str, dict[str, Any]], task: Any, map_shards: Callable
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Make all shards; a second time without the attributes that turn out to be leaks, if there are any."""
    while True:
        made = dict(map_shards(partial(work, plan=plan), list(range(num_shards)), label="examples"))
        shards = [made[index] for index in range(num_shards)]
        found: dict[str, dict[str, Any]] = {}
        for label in task.LABELS:
            found |= leaks.found(leaks.total(shard["leaks"].get(label, {}) for shard in shards), label)
        if not found:
            return shards, plan
        plan = attribute_plan.without_leaks(task, plan, found)


def _whole(lake: Lake, task: Any, settings: Any, inputs: Inputs, run: Run, map_shards: Callable) -> dict[str, Any]:
    """The rows of a task that spans customers: what it gathers from every shard, combined, as one shard of rows."""
    tables, withdrew = _gathered(lake, task, settings, inputs, map_shards)
    made = rows_of(task, settings, inputs.dates, lambda as_of: tables, tables)
    write_rows(run, 0, made)
    return {**made.facts, "withdrew": withdrew, "leaks": {}}


def _gathered(lake: Lake, task: Any, settings: Any, inputs: Inputs, map_shards: Callable) -> tuple[dict[str, Any], int]:
    """The tables that such a task's rows are made of, and how many of its entities withdrew."""
    work = partial(
        gather_shard,
        root=lake.root,
        task_module=task.__name__,
        settings=settings.model_dump(mode="json"),
        tables=inputs.held,
        beside=inputs.beside,
    )
    parts = dict(map_shards(work, list(range(inputs.num_shards)), label="gather"))
    tables = task.combine([parts[index][0] for index in range(inputs.num_shards)], settings)
    return tables, sum(withdrew for _, withdrew in parts.values())


def _total(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Nested counts, added up; keys sorted."""
    keys = sorted({key for shard in shards for key in shard}, key=lambda key: (key == "now", key))
    total: dict[str, Any] = {}
    for key in keys:
        parts = [shard[key] for shard in shards if key in shard]
        total[key] = _total(parts) if isinstance(parts[0], dict) else sum(parts)
    return total


def _check_enough(task: Any, counts: Mapping[str, Any], dates: Snapshots) -> None:
    """NotEnoughDataError, with the counts, when a split has no rows, or fewer than two of a class of a 0/1 label."""
    where = {"train": "before the validation date" if dates.has_time else "in the training part"}
    chosen = dict(counts["train"])
    if dates.has_time:
        used = splits.selection(pa.array(dates.train, schema.TIME), dates)
        days = [date.strftime("%Y-%m-%d") for date, use in zip(dates.train, used, strict=True) if use]
        chosen = {day: counts["train"][day] for day in days if day in counts["train"]}
    for name, by_date in (("train", chosen), ("validation", counts["validation"]), ("test", counts["test"])):
        total = _total(list(by_date.values()))
        place = f"{name} rows {where[name]}" if name in where else f"{name} rows"
        if not total.get("rows"):
            raise NotEnoughDataError(
                f"task {task.NAME}: got 0 {place}, expected some; counts: {_told(counts)};"
                " bring more history or customers, or change the dates, the population or the label"
            )
        for label in task.LABELS:
            classes = total.get(label)
            if classes is not None and (len(classes) < 2 or min(classes.values()) < MIN_CLASS_ROWS):
                raise NotEnoughDataError(
                    f"task {task.NAME}: got {label} {_classes(classes)} in the {place}, expected at least"
                    f" {MIN_CLASS_ROWS} rows of each class; counts: {_told(counts)}; bring"
                    " more data, or change the label or the dates"
                )


def _told(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {sum(count['rows'] for count in by_date.values())}" for name, by_date in counts.items())


def _classes(classes: Mapping[str, int]) -> str:
    return " and ".join(f"{value} in {rows} rows" for value, rows in sorted(classes.items()))


def _write_now(run: Run, num_shards: int, num_bytes: int, budget_bytes: float) -> None:
    """now.arrow: the rows of all shards sorted by entity_id, made in pieces of id ranges that fit the budget."""
    names = [f"now/shard-{index:05d}.parquet" for index in range(num_shards)]
    ids = run.read_table(names, columns=["entity_id"])["entity_id"].combine_chunks()
    ids = ids.take(pc.sort_indices(ids))
    pieces = max(1, int(np.ceil(num_bytes / (budget_bytes * SHARE_OF_BUDGET))))
    starts = [ids[len(ids) * piece // pieces].as_py() for piece in range(1, pieces)]
    table_schema = run.dataset(names[:1]).schema
    with run.open_output("now.arrow") as sink, pa.ipc.new_file(sink, table_schema) as writer:
        for low, high in zip([None, *starts], [*starts, None], strict=True):
            rows = run.read_table(names, filters=_between(low, high))
            order = pc.sort_indices(rows["entity_id"])
            writer.write_table(rows.take(order).combine_chunks())


def _between(low: str | None, high: str | None) -> pads.Expression | None:
    """low <= entity_id < high; None is no limit."""
    limits = []
    if low is not None:
        limits.append(pads.field("entity_id") >= low)
    if high is not None:
        limits.append(pads.field("entity_id") < high)
    return limits[0] if len(limits) == 1 else limits[0] & limits[1] if limits else None
