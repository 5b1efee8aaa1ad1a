"""Which fields of leads are written when a lead is converted, and so tell nothing of one that is open."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from crmray import schema
from crmray.config import Org
from crmray.data import history, leaks
from crmray.data.asof_attributes import fields_of
from crmray.data.history import Field
from crmray.data.ingest import origins
from crmray.storage import Lake, Run

KEYS = ("lead_id", "created_at", "converted_at", "entity_id", "modified_at")
"""columns that are no attributes: converted_at and entity_id are the outcome itself"""


def leaks_of(org: Org, lake: Lake) -> dict[str, dict[str, Any]]:
    """Column of the leads table -> evidence (leaks.found), over all shards; empty without leads or conversions."""
    if not lake.has("tables", "leads"):
        return {}
    run = lake.latest("tables", "leads")
    past = lake.latest("tables", "changes") if lake.has("tables", "changes") else None
    sources = [origin.source for origin in origins(org) if origin.table == "leads"]
    tracked = _tracked(past)
    parts = []
    for name in run.files("shard-*.parquet"):
        leads = run.read_table([name]).combine_chunks()
        fields = fields_of(sources, [column for column in leads.column_names if column not in KEYS], table="leads")
        changes = _changes(past, name)
        parts.append(leaks.count_leads(leads, {field: _of(changes, field, leads, tracked) for field in fields}))
    return leaks.found(leaks.total(parts), "converted")


def _tracked(run: Run | None) -> set[tuple[str, str]]:
    """(object, field) of all changes."""
    if run is None:
        return set()
    pairs = run.read_table(columns=["object", "field"]).group_by(["object", "field"]).aggregate([])
    return set(zip(pairs["object"].to_pylist(), pairs["field"].to_pylist(), strict=True))


def _of(changes: pa.Table, field: Field, leads: pa.Table, tracked: set[tuple[str, str]]) -> history.Changes | None:
    """The field's changes; None where no lead has any."""
    if (field.object, field.field) not in tracked:
        return None
    return history.changes_of(changes, field, leads, key="lead_id")


def _changes(run: Run | None, name: str) -> pa.Table:
    """The shard's changes: leads and changes are sharded alike, by the id of their entity."""
    if run is None or not run.has(name):
        return schema.empty("changes")
    return run.read_table([name]).combine_chunks()
