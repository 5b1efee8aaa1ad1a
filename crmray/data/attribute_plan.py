"""The plan for the attributes of a task's table, customers or leads: surveyed over all shards, leaks of leads left out.

asof_attributes says what a plan is; here it is made for an org, whatever runs the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from crmray import log
from crmray.config import Org
from crmray.data import asof_attributes, asof_leads
from crmray.data.examples_shard import Held, attribute_table, survey_shard
from crmray.data.ingest import origins
from crmray.data.splits import Snapshots
from crmray.storage import Lake

_KEYS = {"customers": asof_attributes.KEYS, "leads": asof_leads.KEYS}
"""table with attributes -> its columns that are none"""


def make(
    org: Org,
    lake: Lake,
    task: Any,
    held: Held,
    num_shards: int,
    changes: Held | None,
    dates: Snapshots,
    map_shards: Callable,
) -> dict[str, dict[str, Any]]:
    """What becomes of the attributes of the task's table at the past dates. held, changes: as in make_shard."""
    table, (_, columns) = attribute_table(task), held
    sources = {name: [origin.source for origin in origins(org) if origin.table == name] for name in _KEYS}
    own = [name for name in columns if name not in _KEYS[table]]
    fields = asof_attributes.fields_of(sources[table], own, table=table)
    others = {name for other in _KEYS for name in asof_attributes.mapped_names(sources[other], table=other)}
    asof_attributes.check_insisted(org.history.insist, sources[table], fields, others)
    look = partial(
        survey_shard, root=lake.root, table=table, held=held, changes=changes, fields=fields, dates=dates.past
    )
    seen = [result for _, result in map_shards(look, list(range(num_shards)), label="attributes")]
    plan = asof_attributes.plan(
        asof_attributes.merge(seen), fields, dates, has_modified="modified_at" in columns, insist=org.history.insist
    )
    return without_leaks(task, plan, asof_leads.leaks_of(org, lake)) if table == "leads" else plan


def without_leaks(
    task: Any, plan: Mapping[str, dict[str, Any]], found: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The plan without the leaks, each of which is warned about."""
    held = {column: evidence for column, evidence in found.items() if plan[column]["used"] != "kept out"}
    for column, evidence in held.items():
        name = f"{plan[column]['object']}.{plan[column]['field']}"
        log.warn("examples.leak", task=task.NAME, field=name, **evidence)
    return asof_attributes.block(dict(plan), held)
