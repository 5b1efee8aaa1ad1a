"""What follows a score: Tasks for chosen records, and members of a campaign. Plans; `sending` carries them out.

A record gets no Task while an open one of the same prediction is there, and never two for one as-of date. Members are
only added: those who left the segment keep what the campaign knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crmray.config import CampaignFill, FollowUp
from crmray.errors import ConfigError
from crmray.privacy import Withheld
from crmray.salesforce import fields, held, values
from crmray.salesforce.client import Client
from crmray.salesforce.sending import AFTER, BEFORE, Step

_COMPARE = {"ge": pc.greater_equal, "gt": pc.greater, "le": pc.less_equal, "lt": pc.less}
PERSONS = {"Contact": "ContactId", "Lead": "LeadId"}
"""object -> field of a campaign member that refers to it"""


def chosen(predictions: pa.Table, when: Mapping[str, Any], where: str) -> pa.Table:
    """Rows that meet all conditions; ConfigError that names the key `where` for one that cannot be applied."""
    mask = pa.array([True] * predictions.num_rows)
    for column, condition in when.items():
        if column not in predictions.column_names:
            raise ConfigError(f"{where}: got column {column!r}, expected one of {', '.join(predictions.column_names)}")
        data = predictions[column]
        try:
            if isinstance(condition, Mapping):
                parts = [_COMPARE[name](data, operand) for name, operand in condition.items()]
            else:
                options = condition if isinstance(condition, list) else [condition]
                parts = [pc.is_in(data, value_set=pa.array(options).cast(data.type))]
        except (KeyError, pa.ArrowException):
            raise ConfigError(
                f"{where}.{column}: got {condition!r}, expected a value, a list of values or {{ge|gt|le|lt: number}}, "
                f"to compare with {data.type}"
            ) from None
        for part in parts:
            mask = pc.and_(mask, pc.fill_null(part, False))
    return predictions.filter(mask)


def tasks_step(settings: FollowUp) -> Step:
    """How Tasks are sent: by their key, so that what is sent again makes no second one."""
    return Step(name="tasks", object="Task", operation="upsert", match=settings.key, external_id=settings.key)


def plan_tasks(client: Client, task: str, settings: FollowUp, predictions: pa.Table) -> pa.Table:
    """A Task for each chosen record that has none open: its key, subject, due date and the reasons as description."""
    _check(client, "Task", (settings.key, "Subject", "ActivityDate", "Description"))
    key_field = next(field for field in client.describe("Task")["fields"] if field["name"] == settings.key)
    if not key_field.get("externalId"):
        fields.refuse("Task", [f"{settings.key} is no external id"])
    rows = chosen(predictions, settings.when, f"writeback.{task}.tasks.when")
    there = list(client.query(f"SELECT {settings.key}, IsClosed FROM Task WHERE {settings.key} LIKE '{task}:%'"))
    keys = {row[settings.key] for row in there}
    busy = {row[settings.key].rsplit(":", 1)[1] for row in there if not row["IsClosed"]}
    made = [
        f"{task}:{f'{as_of:%Y-%m-%d}' if as_of else ''}:{entity}"
        for entity, as_of in zip(rows["entity_id"].to_pylist(), rows["as_of"].to_pylist(), strict=True)
    ]
    new = [key not in keys and key.rsplit(":", 1)[1] not in busy for key in made]
    rows, made = rows.filter(pa.array(new, pa.bool_())), [key for key, is_new in zip(made, new, strict=True) if is_new]
    due = (client.server_time() + timedelta(days=settings.due_days)).date().isoformat()
    reasons = rows["reasons"].to_pylist() if "reasons" in rows.column_names else [None] * rows.num_rows
    return _plan(
        rows["entity_id"],
        rows["entity_id"],
        {
            settings.key: made,
            "Subject": [settings.subject] * rows.num_rows,
            "ActivityDate": [due] * rows.num_rows,
            "Description": [values.SEPARATOR.join(told) if told else None for told in reasons],
        },
    )


def members_step(name: str) -> Step:
    """How members of a campaign are sent: Salesforce refuses a person who is one already."""
    return Step(name="members", object="CampaignMember", operation="insert", match=PERSONS.get(name, "ContactId"))


def plan_members(
    client: Client,
    task: str,
    name: str,
    settings: CampaignFill,
    predictions: pa.Table,
    ids: held.Ids,
    withheld: Withheld,
) -> pa.Table:
    """The chosen leads or contacts, or the contacts of the chosen accounts, who are no members yet and take mail."""
    if name not in (*PERSONS, "Account"):
        raise ConfigError(f"writeback.{task}.campaign: got object {name}, expected Account, Contact or Lead")
    step = members_step(name)
    _check(client, "CampaignMember", ("CampaignId", step.match) + (("Status",) if settings.status else ()))
    wanted = chosen(predictions, settings.when, f"writeback.{task}.campaign.when")["entity_id"]
    person = "Contact" if name == "Account" else name
    there = {field["name"] for field in client.describe(person)["fields"]}
    refuses = "HasOptedOutOfEmail = false" if "HasOptedOutOfEmail" in there else ""
    columns = ["AccountId"] if name == "Account" else []
    people = held.read(client, person, columns, ids, where=refuses)
    entity = ids.to_lake(people["AccountId"].combine_chunks()) if name == "Account" else people[held.LAKE_ID]
    people = people.append_column("entity_id", entity)
    members = held.read(
        client, "CampaignMember", [step.match], ids, key=step.match, where=f"CampaignId = '{settings.campaign_id}'"
    )
    refusing = [*withheld.profiling, *withheld.channels.get("email", ())]
    without = pa.chunked_array([members[held.LAKE_ID].combine_chunks(), pa.array(refusing, pa.string())])
    is_new = pc.invert(pc.is_in(people[held.LAKE_ID], value_set=without.combine_chunks()))
    people = people.filter(pc.and_(is_new, pc.is_in(people["entity_id"], value_set=wanted.combine_chunks())))
    people = people.sort_by([("entity_id", "ascending"), (held.LAKE_ID, "ascending")])
    after = {"CampaignId": [settings.campaign_id] * people.num_rows}
    if settings.status:
        after["Status"] = [settings.status] * people.num_rows
    return _plan(people["entity_id"], people[held.LAKE_ID], after)


def _plan(entity: pa.ChunkedArray, record: pa.ChunkedArray, after: Mapping[str, list]) -> pa.Table:
    nothing = pa.nulls(len(entity), pa.string())
    columns: dict[str, Any] = {"entity_id": entity, "record": record}
    for field, texts in after.items():
        columns |= {BEFORE + field: nothing, AFTER + field: pa.array(texts, pa.string())}
    return pa.table(columns)


def _check(client: Client, name: str, wanted: tuple[str, ...]) -> None:
    there = {field["name"]: field for field in client.describe(name)["fields"]}
    faults = [
        f"{field} is missing, or the user may not see it"
        if field not in there
        else ("" if there[field]["createable"] else f"{field} cannot be set by this user")
        for field in wanted
    ]
    fields.refuse(name, faults)
