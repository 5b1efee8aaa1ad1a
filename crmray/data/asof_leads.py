"""As-of features of leads: what is known of each open lead strictly before a date.

A lead is open at a date when it was created before it and not converted before it. Features by prefix:
    lead_<attribute>, lead_age_days                 the lead's row, but for what the conversion itself writes (KEYS)
    visit_ mail_ contact_ rating_ exposure_         events whose entity_id is the lead's id, as those of customers
Numbers are float32 or float64 with null for "not known", categoricals are strings.

Attributes are taken as they stand in the table: data/asof_attributes.py puts there what stood at as_of. A conversion
modifies the lead, so an attribute counts as known at a date only if it is known of those that convert later too, and a
field that is written at the conversion (`leaks_of`) is kept out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.config import Org
from crmray.data import asof, asof_contacts, history, leaks, splits
from crmray.data.asof_attributes import fields_of
from crmray.data.asof_rows import View, micros_of
from crmray.data.history import Field
from crmray.data.ingest import origins
from crmray.data.splits import micros
from crmray.storage import Lake, Run

FEATURES_VERSION = "1"
"""raised when the meaning of a column changes"""
KEYS = ("lead_id", "created_at", "converted_at", "entity_id", "modified_at")
"""columns that are no attributes: converted_at and entity_id are the outcome itself"""


def open_leads(leads: pa.Table, as_of: datetime | None, lookback_days: int) -> pa.Array:
    """Sorted ids of the leads created in the lookback_days before as_of and not converted before it; of all leads
    without as_of."""
    if as_of is None:
        return asof.distinct(leads["lead_id"])
    created = micros_of(leads["created_at"])
    begun = (created < micros(as_of)) & (created >= micros(as_of - timedelta(days=lookback_days)))
    return asof.distinct(leads["lead_id"].filter(pa.array(begun & (_converted(leads) >= micros(as_of)))))


def converted_in(leads: pa.Table, entities: pa.Array, as_of: datetime, horizon_days: int) -> np.ndarray:
    """(N,) bool: converted in [as_of, as_of + horizon_days). A label, never a feature."""
    times = _converted(leads)
    late = (times >= micros(as_of)) & (times < micros(as_of + timedelta(days=horizon_days)))
    return pc.is_in(entities, value_set=leads["lead_id"].filter(pa.array(late))).to_numpy(zero_copy_only=False)


def _converted(leads: pa.Table) -> np.ndarray:
    """(L,) int64 microseconds, history.NEVER for a lead that was not converted."""
    never = np.full(leads.num_rows, history.NEVER)
    return micros_of(leads["converted_at"]) if "converted_at" in leads.column_names else never


def frame(
    tables: Mapping[str, pa.Table],
    as_of: datetime | None,
    *,
    lookback_days: int,
    horizon_days: int,
    entities: pa.Array,
) -> pa.Table:
    """One row per lead: entity_id (its lead_id), as_of, part, the features. Without as_of only the attributes.

    tables: canonical tables that the org has, this shard's rows. entities: sorted, distinct lead ids.
    """
    as_of_us = None if as_of is None else micros(as_of)
    leads = tables["leads"]
    shown = leads.select(["lead_id", "created_at", *attribute_columns(leads)])
    shown = shown.rename_columns(["entity_id", *shown.column_names[1:]])
    found = asof_contacts.attributes(entities, shown, as_of_us)
    columns = {_feature(name): values for name, values in found.items()}
    if as_of_us is not None:
        view = View(entities=entities, as_of_us=as_of_us, lookback_days=lookback_days, horizon_days=horizon_days)
        columns |= _events(view, tables, as_of)
    told = {name: asof.arrow(values) for name, values in columns.items()}
    return pa.table({**splits.keys(entities, as_of), **told})


def attribute_columns(leads: pa.Table) -> list[str]:
    """Columns of the leads table that are attributes."""
    return [name for name in leads.column_names if name not in KEYS]


def _feature(name: str) -> str:
    return "lead_age_days" if name == "tenure_days" else f"lead_{name.removeprefix('customer_')}"


def _events(view: View, tables: Mapping[str, pa.Table], as_of: datetime | None) -> dict:
    columns: dict = {}
    if "engagement" in tables:
        columns |= asof_contacts.engagement(view, tables["engagement"])
    if "interactions" in tables and as_of is not None:
        columns |= asof_contacts.interactions(view, history.until_closed(tables["interactions"], as_of))
    if "exposures" in tables:
        columns |= asof_contacts.counted(view, tables["exposures"], "exposure")
    return columns


def outcome_masks(leads: pa.Table, as_of_us: int) -> list[np.ndarray]:
    """(L,) masks of the leads that are open at a date: those that are converted later, and those that never are."""
    converted = _converted(leads)
    is_open = (micros_of(leads["created_at"]) < as_of_us) & (converted >= as_of_us)
    return [is_open & (converted != history.NEVER), is_open & (converted == history.NEVER)]


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
