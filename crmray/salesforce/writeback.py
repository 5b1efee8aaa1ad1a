"""Predictions into fields of the right records, and back again: plan, send, receipt.

Rows are compared with what the org holds now, and only those whose prediction changed are written; customers who
withdrew their consent to profiling are not. Every write-back is a receipt of its own, so one that was killed is found
by the next start and finished: with the same predictions it goes on where it was; with newer ones, or another action,
what was sent is looked up and the rest is left (`unsent`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from crmray import log
from crmray.config import Org, SalesforceSource, Writeback
from crmray.errors import ConfigError
from crmray.privacy import Withheld
from crmray.salesforce import fields, followups, held, receipts, sending, values
from crmray.salesforce.client import Client
from crmray.salesforce.fields import Target
from crmray.salesforce.sending import AFTER, BEFORE, Addresses, Delivery, Step
from crmray.storage import Lake, Run, run_id

FORMAT = 1
"""raised when the files of a receipt change"""
SAMPLES = 5
"""changed rows that a dry run shows"""
_SHOWN = ("fraction", "integer", "flag", "text")


OBJECTS = {"customer": "Account", "lead": "Lead", "interaction": "Case", "product": "Product2"}
"""what a row is about -> the object that is written to where the org file names none"""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Where the predictions of a task go."""

    task: str
    """name of the task"""
    entity: str
    """what its rows are about: customer, lead, interaction, product"""
    object: str
    """API name of the object"""
    settings: Writeback
    """section of the org file"""
    targets: Sequence[Target]
    """columns and fields"""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Changes that are to be made."""

    steps: list[tuple[Step, pa.Table]]
    """each step with its rows: entity_id, record, before.…, after.…"""
    counts: dict[str, int]
    """rows by what is to become of them"""
    samples: list[dict[str, str]]
    """some changes, field -> "before → after", of nobody in particular"""

    @property
    def num_rows(self) -> int:
        """Rows that would be sent."""
        return sum(table.num_rows for _, table in self.steps)


def aim(org: Org, task: str, entity: str, answer: type[BaseModel]) -> Aim:
    """Where a task's predictions go. entity: what it is about; answer: the model of one prediction.

    ConfigError for a setting that does not fit the task.
    """
    settings = org.writeback.get(task, Writeback())
    name = settings.object or OBJECTS.get(entity)
    if name is None:
        raise ConfigError(
            f"writeback.{task}: its rows are about {entity}, of which Salesforce has no record; expected `object` and "
            "`key`, the object whose records they are and the field that names them"
        )
    return Aim(task=task, entity=entity, object=name, settings=settings, targets=fields.targets(task, answer, settings))


def connect(org: Org) -> Client:
    """A client of the org file's source, which is a Salesforce org."""
    assert isinstance(org.source, SalesforceSource)
    return Client.connect(org.source, org.folder)


# -- what the ways in call ---------------------------------------------------------------------------------------------


def preview(org: Org, lake: Lake, where: Aim) -> dict[str, Any]:
    """A dry run: counts and samples, nothing written anywhere."""
    predictions = lake.latest("predictions", where.task)
    with connect(org) as client:
        planned = plan(client, lake, where, predictions, held.Ids(org, lake, where.entity))
    would = {step.name: table.num_rows for step, table in planned.steps}
    head = {"dry_run": True, "object": where.object, "predictions": predictions.run_id}
    return {**head, "counts": planned.counts, "would_write": would, "samples": planned.samples}


def write(org: Org, lake: Lake, where: Aim) -> Run:
    """Write the current predictions; the receipt. With nothing to write, the last receipt of these predictions."""
    predictions = lake.latest("predictions", where.task)
    ids = held.Ids(org, lake, where.entity)
    settings = where.settings.model_dump()
    with connect(org) as client:
        run = _next_run(org, lake, client, where.task, {"predictions": predictions.run_id}, settings, ids)
        with run.claim("writeback") as mine:
            if mine and not run.has("steps.json"):
                planned = plan(client, lake, where, predictions, ids)
                last = receipts.latest(lake, where.task)
                if not planned.num_rows and last and last.manifest()["inputs"].get("predictions") == predictions.run_id:
                    log.event("writeback.unchanged", task=where.task, **planned.counts)
                    return last
                _keep(run, planned, where, {"action": "write", "predictions": predictions.run_id})
            if mine:
                _carry_out(client, run, ids)
    return run


def undo(org: Org, lake: Lake, where: Aim, receipt_id: str) -> Run:
    """Restore the values that a write-back replaced, field by field, where the field still holds what it wrote.

    Tasks and members that it made stay. NotFoundError for a receipt that is not there.
    """
    receipt = receipts.complete(lake, where.task, receipt_id)
    if receipt.manifest()["action"] != "write":
        raise ConfigError(f"--undo {receipt_id}: got the receipt of an undo, expected that of a write-back")
    ids = held.Ids(org, lake, where.entity)
    with connect(org) as client:
        run = _next_run(org, lake, client, where.task, {"undo": receipt_id}, {}, ids)
        with run.claim("writeback") as mine:
            if mine and not run.has("steps.json"):
                _keep(run, plan_undo(client, where, receipt, ids), where, {"action": "undo", "undo": receipt_id})
            if mine:
                _carry_out(client, run, ids)
    return run


# -- plans -------------------------------------------------------------------------------------------------------------


def plan(client: Client, lake: Lake, where: Aim, predictions: Run, ids: held.Ids) -> Planned:
    """What is to be written: by describe whether it can be, and by what the org holds what changed."""
    described = client.describe(where.object)
    entries = fields.check(described, where.targets)
    held.check_key(described, where.settings.key)
    everyone, withheld = _predictions(predictions), Withheld.of(lake)
    rows = everyone.filter(pc.invert(withheld.mask(everyone)))
    parent = held.parent_field(described)
    columns = [*([parent] if parent else []), *(target.name for target in where.targets)]
    now = held.read(client, where.object, columns, ids, key=where.settings.key)
    place = held.place_of(rows["entity_id"], now)
    found = rows.filter(place.is_valid())
    now = now.take(place.drop_null())
    table, changed = _changes(where, entries, found, now)
    order = pc.sort_indices(
        pa.table({"parent": now[parent or "Id"].combine_chunks(), "Id": now["Id"].combine_chunks()}),
        sort_keys=[("parent", "ascending"), ("Id", "ascending")],
    ).to_numpy()
    table = table.take(pa.array(order[changed[order]]))
    step = Step(name="fields", object=where.object, operation="update", match="Id")
    steps = [(step, table)]
    if where.settings.tasks is not None:
        follow = where.settings.tasks
        steps.append((followups.tasks_step(follow), followups.plan_tasks(client, where.task, follow, found)))
    if where.settings.campaign is not None:
        fill = where.settings.campaign
        members = followups.plan_members(client, where.task, where.object, fill, found, ids, withheld)
        steps.append((followups.members_step(where.object), members))
    counts = {
        "predictions": everyone.num_rows,
        "withheld": everyone.num_rows - rows.num_rows,
        "not_found": rows.num_rows - found.num_rows,
        "unchanged": found.num_rows - table.num_rows,
        "changed": table.num_rows,
    }
    return Planned(steps=steps, counts=counts, samples=_samples(where, table))


def _predictions(run: Run) -> pa.Table:
    """All rows of a predictions run, with its run_id as a column."""
    table = run.read_table("part-*.parquet")
    return table.append_column("run_id", pa.repeat(pa.scalar(run.run_id), table.num_rows))


def _changes(
    where: Aim, entries: Mapping[str, Mapping[str, Any]], found: pa.Table, now: pa.Table
) -> tuple[pa.Table, np.ndarray]:
    """Before and after of every row, and which rows changed; SalesforceError when a value does not fit its field."""
    changed = np.zeros(found.num_rows, bool)
    leading = [target for target in where.targets if target.column not in fields.COMPANIONS] or where.targets
    columns: dict[str, Any] = {"entity_id": found["entity_id"], "record": found["entity_id"]}
    faults = []
    for target in where.targets:
        entry = entries[target.name]
        after = values.spelled(found[target.column], entry, shorten=target.column == fields.REASONS)
        before = [values.canonical(text, entry) for text in now[target.name].to_pylist()]
        faults.append(fields.fitting(target.name, entry, after))
        if target in leading:
            changed |= np.array(values.moved(before, after, entry["type"], where.settings.min_change), bool)
        columns[BEFORE + target.name] = pa.array(before, pa.string())
        columns[AFTER + target.name] = pa.array(after, pa.string())
    fields.refuse(where.object, faults)
    return pa.table(columns), changed


def _samples(where: Aim, table: pa.Table) -> list[dict[str, str]]:
    shown = [
        target.name for target in where.targets if target.kind in _SHOWN and target.column not in fields.COMPANIONS
    ]
    rows = table.slice(0, SAMPLES).to_pylist()
    return [{name: f"{row[BEFORE + name] or '–'} → {row[AFTER + name] or '–'}" for name in shown} for row in rows]


def plan_undo(client: Client, where: Aim, receipt: Run, ids: held.Ids) -> Planned:
    """What gives back the values that the receipt's write-back replaced."""
    done = receipt.read_table("receipt-fields.parquet", filters=pc.field("state") == "written")
    names = [name.removeprefix(AFTER) for name in done.column_names if name.startswith(AFTER)]
    step = sending.steps_of(receipt)[0]
    described = client.describe(step.object)
    there = {field["name"]: field for field in described["fields"] if field["updateable"]}
    fields.refuse(
        step.object, [f"{name} is missing, or cannot be updated by this user" for name in names if name not in there]
    )
    key = json.loads(receipt.read_bytes("steps.json"))["key"]
    now = held.read(client, step.object, names, ids, key=key)
    place = held.place_of(done["record"], now)
    ours, now = done.filter(place.is_valid()), now.take(place.drop_null())
    columns: dict[str, Any] = {"entity_id": ours["entity_id"], "record": ours["record"]}
    restored, lost = np.zeros(ours.num_rows, bool), np.zeros(ours.num_rows, bool)
    for name in names:
        before, after = ours[BEFORE + name].to_pylist(), ours[AFTER + name].to_pylist()
        holds = [values.canonical(text, there[name]) for text in now[name].to_pylist()]
        wrote = np.array([old != new for old, new in zip(before, after, strict=True)], bool)
        still = np.array([new == is_ for new, is_ in zip(after, holds, strict=True)], bool)
        restored |= wrote & still
        lost |= wrote & ~still
        back = [old if ok else is_ for old, is_, ok in zip(before, holds, wrote & still, strict=True)]
        columns |= {BEFORE + name: pa.array(holds, pa.string()), AFTER + name: pa.array(back, pa.string())}
    table = pa.table(columns).filter(pa.array(restored))
    counts = {
        "written": done.num_rows,
        "not_found": done.num_rows - ours.num_rows,
        "changed_since": int(lost.sum()),
        "to_restore": table.num_rows,
    }
    return Planned(steps=[(step, table)], counts=counts, samples=[])


# -- runs --------------------------------------------------------------------------------------------------------------


def _next_run(
    org: Org,
    lake: Lake,
    client: Client,
    task: str,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    ids: held.Ids,
) -> Run:
    """The receipt that comes after the last one, under way or not; other interrupted ones are closed first."""

    def following() -> Run:
        last = receipts.latest(lake, task)
        chain = {**inputs, "previous": last.run_id if last else ""}
        id_ = run_id("writeback", inputs=chain, settings=dict(settings), seed=org.seed, format=FORMAT)
        return lake.run(receipts.KIND, receipts.name_of(task), id_)

    run = following()
    for other in receipts.interrupted(lake, task):
        if other.run_id != run.run_id:
            with other.claim("writeback") as mine:
                if mine:
                    log.warn(
                        "writeback.interrupted", task=task, run=other.run_id, now="closed, what is not sent is left"
                    )
                    _carry_out(client, other, ids, settle=True)
    return following()


def _keep(run: Run, planned: Planned, where: Aim, head: Mapping[str, Any]) -> None:
    """Write the plan before anything is sent; steps.json makes it valid."""
    for step, table in planned.steps:
        run.write_table(f"plan-{step.name}.parquet", sending.chunked(table))
    steps = [asdict(step) for step, _ in planned.steps]
    plan = {**head, "task": where.task, "key": where.settings.key, "counts": planned.counts, "steps": steps}
    run.write_bytes("steps.json", json.dumps(plan, indent=1).encode())


def _carry_out(client: Client, run: Run, ids: held.Ids, *, settle: bool = False) -> None:
    """Send what is planned and not sent, write the receipts and complete the run."""
    head = json.loads(run.read_bytes("steps.json"))
    main: str = head["steps"][0]["object"]
    done: dict[str, Any] = {}
    for step in sending.steps_of(run):
        addresses = _addresses(client, step, main, head["key"], ids)
        if head["action"] == "write":
            addresses = _without(Withheld.of(run.lake), addresses)
        receipt = Delivery(client, run, step, addresses, settle=settle).deliver()
        run.write_table(f"receipt-{step.name}.parquet", receipt)
        done[step.name] = sending.counts(receipt)
    inputs = {name: head[name] for name in ("predictions", "undo") if name in head}
    run.commit(
        task=head["task"], action=head["action"], object=main, inputs=inputs, counts={**head["counts"], **done},
        facts={"calls": dict(client.ledger.calls), "settled": settle},
    )  # fmt: skip
    log.event("writeback.receipt", task=head["task"], run_id=run.run_id, **head["counts"], **done)


def _without(withheld: Withheld, addresses: Addresses) -> Addresses:
    """The same, as if those were not there who withdrew between the plan and now, when a killed start is resumed."""
    gone = pa.array(withheld.profiling, pa.string())

    def found(records: pa.Array) -> pa.Table:
        table = addresses(records)
        kept = pc.if_else(pc.is_in(records, value_set=gone), pa.scalar(None, pa.string()), table.column(0))
        return table.set_column(0, table.column_names[0], kept)

    return found


def _addresses(client: Client, step: Step, main: str, key: str, ids: held.Ids) -> Addresses:
    """How the org names the records of a step. main: the object that the predictions are about."""
    if step.name == "members":
        return lambda records: pa.table({step.match: ids.to_org(records)})
    if step.name == "fields" and key == "Id":
        return lambda records: pa.table({"Id": ids.to_org(records)})
    owned = step.name == "tasks" and any(field["name"] == "OwnerId" for field in client.describe(main)["fields"])
    now = held.read(client, main, ["OwnerId"] if owned else [], ids, key=key)
    name = "Id" if step.name == "fields" else "WhoId" if main in followups.PERSONS else "WhatId"

    def found(records: pa.Array) -> pa.Table:
        rows = now.take(held.place_of(pa.chunked_array([records]), now))
        columns = {name: rows["Id"]}
        if owned:  # a queue can own a lead but no Task
            people = pc.starts_with(rows["OwnerId"], "005")
            columns["OwnerId"] = pc.if_else(pc.fill_null(people, False), rows["OwnerId"], "")
        return pa.table(columns)

    return found
