"""What the examples of a task are made of: the tables that it needs, what they hold, and the dates that follow.

Nothing here reads rows: the manifests of the tables say enough. DataError and NotEnoughDataError say which table,
column or stretch of time is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from crmray.config import Org
from crmray.data import attribute_plan, splits
from crmray.data.examples_shard import Beside, Held, attribute_table
from crmray.data.splits import Snapshots
from crmray.errors import DataError
from crmray.storage import Lake, Run

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


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the examples of a task are made of."""

    content: Mapping[str, Content]
    """the tables that it reads and that have rows"""
    changes: Held | None
    """the field history of the attributes, whether the task reads it or not; None where the org has none"""
    beside: Beside
    """consent, and predictions of other tasks"""
    span: tuple[datetime, datetime] | None
    """first and last moment of the data; None without time"""
    dates: Snapshots
    """those that follow"""

    @classmethod
    def of(cls, lake: Lake, task: Any, settings: Any) -> Inputs:
        """The current ones. DataError when the tables cannot carry the task."""
        content = _contents(lake, task, settings)
        span = span_of(content, task.needs(settings).required) if settings.uses_time else None
        choose = getattr(task, "dates", splits.snapshots)
        return cls(
            content=content,
            changes=_changes(lake, task, content),
            beside=Beside.of(lake, task, content),
            span=span,
            dates=choose(settings, span) if span else Snapshots(horizon_days=settings.horizon_days),
        )

    @property
    def held(self) -> dict[str, Held]:
        """What workers have to know of the tables."""
        return {name: (table.run.run_id, table.columns) for name, table in self.content.items()}

    @property
    def num_shards(self) -> int:
        """Shards of the largest table."""
        return max(table.num_shards for table in self.content.values())

    def plan(self, org: Org, lake: Lake, task: Any, map_shards: Callable) -> dict[str, dict[str, Any]]:
        """What becomes of the attributes of customers (of leads) at the past dates; empty without them or without time,
        and for a task that spans customers."""
        table = attribute_table(task)
        if table not in self.content or not self.dates.has_time or hasattr(task, "gather"):
            return {}
        num_shards = self.content[table].num_shards
        return attribute_plan.make(org, lake, task, self.held[table], num_shards, self.changes, self.dates, map_shards)


def _contents(lake: Lake, task: Any, settings: Any) -> dict[str, Content]:
    """The tables of the task that have rows; DataError with all that is required and missing."""
    needs = task.needs(settings)
    found = {}
    for name in sorted({*needs.required, *needs.useful}):
        if lake.has("tables", name):
            content = content_of(lake.latest("tables", name))
            if content.rows:
                found[name] = content
    lacks = []
    for name, columns in needs.required.items():
        if name not in found:
            if not lake.names("tables"):
                lake.latest("tables", name)  # when nothing was sharded at all, this says which job to run
            lacks.append(f"needs table {name} (columns {', '.join(columns)}), got no rows of it")
        elif absent := [column for column in columns if column not in found[name].columns]:
            lacks.append(f"needs column {', '.join(map(repr, absent))} of table {name}, got no value in any row")
    if lacks:
        told = "; ".join(lacks)
        raise DataError(f"task {task.NAME} {told}; map it in the org file, or take {task.NAME} out of `tasks:`")
    return found


def _changes(lake: Lake, task: Any, content: Mapping[str, Content]) -> Held | None:
    if attribute_table(task) not in content or not lake.has("tables", "changes"):
        return None
    found = content_of(lake.latest("tables", "changes"))
    return (found.run.run_id, found.columns) if found.rows else None


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
