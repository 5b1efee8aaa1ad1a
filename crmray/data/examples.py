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
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from crmray import log, schema
from crmray.config import Org
from crmray.data import asof_attributes, attribute_plan, leaks, splits
from crmray.data.examples_shard import (
    Beside,
    Held,
    attribute_table,
    gather_shard,
    make_shard,
    write_rows,
)
from crmray.data.plans import inline
from crmray.data.splits import PARTS, Snapshots
from crmray.errors import DataError, NotEnoughDataError
from crmray.evaluate.decide import Decided
from crmray.storage import Lake, Run, run_id

FORMAT = 2
"""raised when the files of the stage change"""
MIN_CLASS_ROWS = 2
SHARE_OF_BUDGET = 0.25
"""of the memory budget that one sorted piece of the `now` rows may take: reading, sorting and writing hold copies"""
_CLOCKLESS = ("subscriptions",)
"""tables whose times do not tell where the data ends: few begin, long after or before others end"""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a canonical table holds, over all shards."""

    run: Run
    """the table's current run"""
    rows: int
    """rows in all shards"""
    columns: tuple[str, ...]
    """columns with a value in some row; the others are as good as absent"""
    span: tuple[datetime, datetime] | None
    """first and last time; None without a time column or a time"""
    has_clock: bool
    """False: its times are positions, an order without a clock"""
    num_shards: int
    """files, one a shard"""


def examples(org: Org, lake: Lake, task: Any, settings: Any, map_shards: Callable[..., Iterator[tuple]]) -> Run:
    """Make the examples of a task, or find them made. A task may choose its dates itself: `dates(settings, span)`.

    map_shards(fn, items, *, label) yields (item, fn(item)) in any order. DataError and NotEnoughDataError say which
    table, column or kind of row is missing.
    """
    content = _contents(lake, task, settings)
    changes = _changes(lake, task, content)
    beside = Beside.of(lake, task, content)
    run = lake.run("examples", task.NAME, _run_id(org, task, settings, content, changes, beside))
    with run.claim("examples") as mine:
        if mine:
            _make(org, lake, task, settings, content, changes, beside, run, map_shards)
    return run


def _changes(lake: Lake, task: Any, content: Mapping[str, Content]) -> Held | None:
    """The field history of the attributes, whether the task reads it or not; None where the org has none."""
    if attribute_table(task) not in content or not lake.has("tables", "changes"):
        return None
    found = content_of(lake.latest("tables", "changes"))
    return (found.run.run_id, found.columns) if found.rows else None


def _held(content: Mapping[str, Content]) -> dict[str, Held]:
    """What workers have to know of the tables."""
    return {name: (table.run.run_id, table.columns) for name, table in content.items()}


def _run_id(
    org: Org,
    task: Any,
    settings: Any,
    content: Mapping[str, Content],
    changes: Held | None,
    beside: Beside,
) -> str:
    read = settings.model_dump(mode="json", exclude=set(Decided.model_fields))  # where to cut makes no other rows
    own = {"task": task.NAME, "features_version": task.FEATURES_VERSION, "settings": read}
    own |= {"history": org.history.model_dump(mode="json")} if attribute_table(task) in content else {}
    inputs = {name: table.run.run_id for name, table in content.items()}
    inputs |= {"changes": changes[0]} if changes else {}
    inputs |= beside.to_json()
    return run_id("examples", inputs=inputs, settings=own, seed=org.seed, format=FORMAT)


def _contents(lake: Lake, task: Any, settings: Any) -> dict[str, Content]:
    """The tables of the task that have rows; refuses when a required one, or a column of it, is missing."""
    needs = task.needs(settings)
    found = {}
    for name in sorted({*needs.required, *needs.useful}):
        if lake.has("tables", name):
            content = content_of(lake.latest("tables", name))
            if content.rows:
                found[name] = content
    for name, columns in needs.required.items():
        if name not in found:
            if not found:
                lake.latest("tables", name)  # when nothing was sharded at all, this says which job to run
            raise DataError(
                f"task {task.NAME} needs table {name} (columns {', '.join(columns)}), got no rows of it;"
                f" map {name} in the org file, or take {task.NAME} out of `tasks:`"
            )
        absent = [column for column in columns if column not in found[name].columns]
        if absent:
            raise DataError(
                f"task {task.NAME} needs column {absent[0]!r} of table {name}, got no value in any row;"
                f" map it in the org file, or take {task.NAME} out of `tasks:`"
            )
    return found


def content_of(run: Run) -> Content:
    """What the manifest of a table run says, without reading its rows."""
    about = run.manifest()
    columns = (name for name in about["columns"] if about["missing"].get(name, 0) < about["rows"])
    times = [datetime.fromisoformat(about[name]) for name in ("earliest", "latest") if about[name]]
    return Content(
        run=run,
        rows=about["rows"],
        columns=tuple(columns),
        span=(times[0], times[1]) if times else None,
        has_clock=about["clock"] != "ordinal",
        num_shards=about["num_shards"],
    )


def span_of(content: Mapping[str, Content], required: Mapping[str, Any]) -> tuple[datetime, datetime] | None:
    """First and last moment of the data, by the required tables' clocks, or of all tables where these have none.

    None: no time. A task on given labels has time only if the labels have. DataError for an order without a clock.
    """
    for name, table in content.items():
        if not table.has_clock:
            raise DataError(
                f"table {name}: got positions (date_format: ordinal), expected times; features in days need a clock:"
                f" map a column with times, or choose settings that need none"
            )
    if "outcomes" in required and content["outcomes"].span is None:
        return None
    clocks = [content[name] for name in required if name not in _CLOCKLESS]
    spans = [table.span for table in clocks if table.span] or [table.span for table in content.values() if table.span]
    return (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None


def dates_of(lake: Lake, task: Any, settings: Any) -> Snapshots:
    """The dates that the examples would have, without making them; DataError when the tables cannot carry them."""
    return _dates(task, settings, _contents(lake, task, settings))[1]


def attributes_of(org: Org, lake: Lake, task: Any, settings: Any, map_shards: Callable = inline) -> dict[str, Any]:
    """Which attributes of customers could be used at the task's dates, and as what, without making the examples.

    {column: report of asof_attributes.plan}; leaks are found when the examples are made. DataError as in dates_of.
    """
    content = _contents(lake, task, settings)
    held, past = _held(content), _changes(lake, task, content)
    plan = _plan(org, lake, task, content, held, past, _dates(task, settings, content)[1], map_shards)
    return asof_attributes.told(plan)


def _dates(
    task: Any, settings: Any, content: Mapping[str, Content]
) -> tuple[tuple[datetime, datetime] | None, Snapshots]:
    """First and last moment of the data (None without time), and the dates that follow."""
    span = span_of(content, task.needs(settings).required) if settings.uses_time else None
    choose = getattr(task, "dates", splits.snapshots)
    return span, choose(settings, span) if span else Snapshots(horizon_days=settings.horizon_days)


def _make(
    org: Org,
    lake: Lake,
    task: Any,
    settings: Any,
    content: Mapping[str, Content],
    changes: Held | None,
    beside: Beside,
    run: Run,
    map_shards: Callable,
) -> None:
    span, dates = _dates(task, settings, content)
    log.event("examples.dates", task=task.NAME, **dates.to_json())
    num_shards = max(table.num_shards for table in content.values())
    held = _held(content)
    spans = hasattr(task, "gather")
    plan = {} if spans else _plan(org, lake, task, content, held, changes, dates, map_shards)
    for how in plan.values():
        if how["used"] == "kept out":
            name, known = f"{how['object']}.{how['field']}", min(how["known"].values())
            log.warn("examples.kept_out", field=name, status=how["status"], known_of_customers=known)
    work = partial(
        make_shard,
        root=lake.root,
        task_module=task.__name__,
        settings=settings.model_dump(mode="json"),
        tables=held,
        changes=changes,
        beside=beside,
        dates={"as_of": dates.to_json(), "horizon_days": dates.horizon_days},
        run_id=run.run_id,
    )
    if spans:
        shards = [_whole(lake, task, settings, held, beside, dates, num_shards, run, map_shards)]
    else:
        shards, plan = _shards(work, num_shards, plan, task, map_shards)
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
        span=[moment.isoformat() for moment in span] if span else None,
        rows={name: sum(count["rows"] for count in counts[name].values()) for name in (*PARTS, "now")},
        counts=counts,
        excluded={
            "customers_outside_population_now": sum(shard["outside"] for shard in shards),
            "customers_who_withdrew": sum(shard["withdrew"] for shard in shards),
        },
        consent=beside.consent,
        sentiment=beside.sentiment,
        attributes=asof_attributes.told(plan),
        schema=shards[0]["schema"],
        num_shards=num_shards,
        inputs={name: table.run.run_id for name, table in content.items()},
    )


def _plan(
    org: Org,
    lake: Lake,
    task: Any,
    content: Mapping[str, Content],
    tables: Mapping[str, Held],
    changes: Held | None,
    dates: Snapshots,
    map_shards: Callable,
) -> dict[str, dict[str, Any]]:
    """What becomes of the attributes of customers (of leads) at the past dates; empty without them or without time."""
    table = attribute_table(task)
    if table not in content or not dates.has_time:
        return {}
    return attribute_plan.make(org, lake, task, tables[table], content[table].num_shards, changes, dates, map_shards)


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


def _whole(
    lake: Lake, task: Any, settings: Any, held: Mapping[str, Held], beside: Beside, dates: Snapshots,
    num_shards: int, run: Run, map_shards: Callable,
) -> dict[str, Any]:  # fmt: skip
    """The rows of a task that spans customers: what it gathers from every shard, combined, as one shard of rows."""
    work = partial(
        gather_shard,
        root=lake.root,
        task_module=task.__name__,
        settings=settings.model_dump(mode="json"),
        tables=held,
        beside=beside,
    )
    parts = dict(map_shards(work, list(range(num_shards)), label="gather"))
    tables = task.combine([parts[index][0] for index in range(num_shards)], settings)
    made = write_rows(run, 0, task, settings, dates, lambda as_of: tables, tables)
    return {**made.facts, "withdrew": sum(withdrew for _, withdrew in parts.values()), "leaks": {}}


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
