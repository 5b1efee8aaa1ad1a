"""What the examples stage does with one shard: its as-of rows written, its attributes looked at.

All arguments are plain (names, run ids, numbers), so any process can do it. No Ray here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import asof, asof_attributes, asof_leads, asof_sentiment, leaks
from crmray.data.history import Changes, Field
from crmray.data.splits import PARTS, Snapshots
from crmray.privacy import Withheld
from crmray.privacy.consent import NAME as CONSENT
from crmray.storage import Lake, Run

Held = tuple[str, tuple[str, ...]]
"""run_id of a canonical table, and the columns that the org has"""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Runs that the rows depend on beside the tables; None where there is none."""

    consent: str | None
    """of raw/consent, whose customers are left out"""
    sentiment: str | None
    """predictions of what customers wrote, for the tasks that come AFTER them"""

    @classmethod
    def of(cls, lake: Lake, task: Any, tables: Collection[str]) -> Beside:
        """The current ones. tables: those that the task reads."""
        reads = asof_sentiment.TASK in getattr(task, "AFTER", ()) and "interactions" in tables
        return cls(
            consent=lake.latest("raw", CONSENT).run_id if lake.has("raw", CONSENT) else None,
            sentiment=lake.latest("predictions", asof_sentiment.TASK).run_id
            if reads and lake.has("predictions", asof_sentiment.TASK)
            else None,
        )

    def to_json(self) -> dict[str, str]:
        """Those that there are, by name."""
        return {name: run_id for name, run_id in asdict(self).items() if run_id}


def attribute_table(task: Any) -> str:
    """The table whose attributes the task's rows have as they stood at their dates."""
    return "leads" if task.ENTITY == "lead" else "customers"


def task_at(address: str) -> Any:
    """The task with this `__name__`: a module, or `module:name` for one of several that a module makes (`named`)."""
    module, _, name = address.partition(":")
    task = importlib.import_module(module)
    return task.named(name) if name else task


def survey_shard(
    shard: int,
    *,
    root: str,
    table: str,
    held: Held,
    changes: Held | None,
    fields: Sequence[Field],
    dates: Sequence[datetime],
) -> dict[str, Any]:
    """asof_attributes.survey of one shard of a table with attributes; held and changes as in make_shard."""
    lake = Lake(root)
    rows = _read(lake.run("tables", table, held[0]), held[1], shard)
    past = _read(lake.run("tables", "changes", changes[0]), changes[1], shard) if changes else None
    groups = asof_leads.outcome_masks if table == "leads" else asof_attributes.created
    return asof_attributes.survey(rows, past, fields, dates, key=schema.table(table).entity, groups=groups)


def make_shard(
    shard: int,
    *,
    root: str,
    task_module: str,
    settings: Mapping[str, Any],
    tables: Mapping[str, Held],
    changes: Held | None,
    beside: Beside,
    plan: Mapping[str, Mapping[str, Any]],
    dates: Mapping[str, Any],
    run_id: str,
) -> dict[str, Any]:
    """Write one shard of every split. Gives its counts by split and date, its columns, and the size of its `now` rows.

    root: of the lake; task_module: its name; changes: the field history; plan: of asof_attributes; dates: Snapshots as
    JSON; run_id: of the examples.
    """
    lake, task, when = Lake(root), task_at(task_module), Snapshots.of(dates)
    seen = Seen.of(lake, task, shard, tables, changes, beside, plan)
    made = rows_of(task, task.Settings.model_validate(settings), when, seen.at, seen.rows)
    write_rows(lake.run("examples", task.NAME, run_id), shard, made)
    searched = plan and when.has_time and attribute_table(task) == "customers"  # leads have theirs from all at once
    leaking = _leaking(seen.rows["customers"], seen.past, made.at_train, task, plan, when) if searched else {}
    return {**made.facts, "withdrew": seen.withdrew, "leaks": leaking}


def try_shard(
    shard: int, *, root: str, task_module: str, settings: Mapping[str, Any], tables: Mapping[str, Held],
    changes: Held | None, beside: Beside, plan: Mapping[str, Mapping[str, Any]], dates: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The counts that make_shard would give, without writing anything; arguments as there."""
    task = task_at(task_module)
    seen = Seen.of(Lake(root), task, shard, tables, changes, beside, plan)
    own = task.Settings.model_validate(settings)
    return rows_of(task, own, Snapshots.of(dates), seen.at, seen.rows).facts["counts"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One shard of the tables, as they stood at any date."""

    rows: dict[str, pa.Table]
    """as now"""
    withdrew: int
    """entities that are left out since they withdrew"""
    past: dict[str, Changes]
    """column -> what it was before"""
    plan: Mapping[str, Mapping[str, Any]]
    """of asof_attributes"""
    described: str
    """the table with attributes"""

    @classmethod
    def of(
        cls, lake: Lake, task: Any, shard: int, tables: Mapping[str, Held], changes: Held | None, beside: Beside,
        plan: Mapping[str, Mapping[str, Any]],
    ) -> Seen:  # fmt: skip
        """Read it. Arguments as in make_shard."""
        rows, withdrew = read_shard(lake, shard, tables, beside)
        changed = _read(lake.run("tables", "changes", changes[0]), changes[1], shard) if changes and plan else None
        described = attribute_table(task)
        key = schema.table(described).entity
        past = asof_attributes.histories(rows[described], changed, plan, key=key) if plan else {}
        return cls(rows=rows, withdrew=withdrew, past=past, plan=plan, described=described)

    def at(self, as_of: datetime | None) -> dict[str, pa.Table]:
        """The tables with the attributes of that date; None: as now."""
        if not self.plan:
            return self.rows
        stood = asof_attributes.at(self.rows[self.described], self.past, as_of, self.plan)
        return {**self.rows, self.described: stood}


def read_shard(lake: Lake, shard: int, tables: Mapping[str, Held], beside: Beside) -> tuple[dict[str, pa.Table], int]:
    """One shard's rows of the canonical tables, and how many of its entities are left out since they withdrew."""
    rows = {name: _read(lake.run("tables", name, id_), columns, shard) for name, (id_, columns) in tables.items()}
    if beside.sentiment:
        told = lake.run("predictions", asof_sentiment.TASK, beside.sentiment)
        rows["interactions"] = asof_sentiment.joined(rows["interactions"], told)
    return _allowed(rows, lake.run("raw", CONSENT, beside.consent)) if beside.consent else (rows, 0)


def gather_shard(
    shard: int, *, root: str, task_module: str, settings: Mapping[str, Any], tables: Mapping[str, Held],
    beside: Beside,
) -> tuple[dict[str, pa.Table], int]:  # fmt: skip
    """What a task that spans customers takes of one shard, and how many of its entities withdrew; as in make_shard."""
    task = task_at(task_module)
    rows, withdrew = read_shard(Lake(root), shard, tables, beside)
    return task.gather(rows, task.Settings.model_validate(settings)), withdrew


@dataclass(frozen=True, kw_only=True)
class Made:
    """The rows of one shard."""

    splits: dict[str, pa.Table]
    """train, validation, test and now"""
    at_train: dict[datetime, pa.Table]
    """the rows of each training date"""
    facts: dict[str, Any]
    """counts by split and date, columns, size of the `now` rows, and customers outside the population"""


def rows_of(
    task: Any, settings: Any, when: Snapshots,
    seen: Callable[[datetime | None], Mapping[str, pa.Table]], rows: Mapping[str, pa.Table],
) -> Made:  # fmt: skip
    """The rows of every split of one shard. seen: the tables as they stood at a date; rows: as now."""
    at: dict[datetime, pa.Table] = {}
    if when.has_time:
        at = {date: task.examples(seen(date), date, settings, labels=True) for date in when.past}
        train = pa.concat_tables([at[date] for date in when.train])
        found = {"train": train, **{name: at[getattr(when, name)] for name in ("validation", "test")}}
    else:
        labelled = task.examples(rows, None, settings, labels=True)
        found = {part: labelled.filter(pc.equal(labelled["part"], part)) for part in PARTS}
    found["now"] = task.examples(seen(None), when.now, settings, labels=False)
    known = len(asof.known(rows, when.now)) if task.ENTITY == "customer" else found["now"].num_rows
    facts = {
        "counts": {name: _counts(table, task.LABELS) for name, table in found.items()},
        "schema": {field.name: str(field.type) for field in found["now"].schema},
        "now_bytes": found["now"].nbytes,
        "outside": known - found["now"].num_rows,
    }
    return Made(splits=found, at_train={date: at[date] for date in when.train}, facts=facts)


def write_rows(run: Run, shard: int, made: Made) -> None:
    """Write the rows of every split of one shard."""
    for name, table in made.splits.items():
        run.write_table(f"{name}/shard-{shard:05d}.parquet", table, row_group_rows=16 * 1024)


def _allowed(rows: Mapping[str, pa.Table], consent: Run) -> tuple[dict[str, pa.Table], int]:
    """The tables without those who may not be profiled, and how many of these there were."""
    withheld = pa.array(sorted(Withheld.from_run(consent).profiling), pa.string())
    kept, gone = {}, set()
    for name, table in rows.items():
        spec = schema.table(name)
        if spec.sharded:
            ids = table[spec.entity].cast(pa.string())
            off = pc.is_in(ids, withheld)
            if pc.any(off).as_py():
                gone |= set(pc.unique(ids.filter(off)).to_pylist())
                table = table.filter(pc.invert(off))
        kept[name] = table
    return kept, len(gone)


def _leaking(
    customers: pa.Table,
    past: Mapping[str, Changes],
    at: Mapping[datetime, pa.Table],
    task: Any,
    plan: Mapping[str, Mapping[str, Any]],
    when: Snapshots,
) -> dict[str, dict[str, Any]]:
    """Label -> counts for leaks.found, of the 0/1 labels at the training dates."""
    fields = asof_attributes.suspects(past, plan)
    if not fields:
        return {}
    found = {}
    for label in task.LABELS:
        asked = {date: rows for date, rows in at.items() if leaks.is_binary(rows, label)}
        truth = {date: leaks.labels_of(customers, rows, label) for date, rows in asked.items()}
        if truth:
            found[label] = leaks.count(customers, truth, when.horizon_days, fields)
    return found


def _read(run: Run, columns: tuple[str, ...], shard: int) -> pa.Table:
    """One shard's rows of a table; all rows of one that is not sharded; none where the shard has no file."""
    index = shard if schema.table(run.name).sharded else 0
    name = f"shard-{index:05d}.parquet"
    if run.has(name):
        return run.read_table([name], columns=columns).combine_chunks()
    return run.dataset(run.files("shard-*.parquet")[:1]).schema.empty_table().select(list(columns))


def _counts(table: pa.Table, labels: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """By date (ISO day, or "" without time): rows, young customers, and rows per value of each 0/1 or integer label."""
    found: dict[str, dict[str, Any]] = {}
    for date in pc.unique(table["as_of"]).to_pylist():
        rows = table.filter(pc.equal(table["as_of"], date) if date else pc.is_null(table["as_of"]))
        count: dict[str, Any] = {"rows": rows.num_rows}
        if "is_young" in rows.column_names:
            count["young"] = pc.sum(rows["is_young"]).as_py() or 0
        for label in labels:
            if pa.types.is_integer(rows.schema.field(label).type) and rows[label].null_count < rows.num_rows:
                pairs = pc.value_counts(rows[label]).to_pylist()
                count[label] = {str(pair["values"]): pair["counts"] for pair in pairs}
        found[date.strftime("%Y-%m-%d") if date else ""] = count
    return found
