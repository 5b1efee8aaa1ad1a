"""The standard mapping: which Salesforce object and field fills which canonical table and column.

An org that uses the standard objects as Salesforce means them needs no mapping of its own; the demo org is one. Fields
that end in `__c` are the demo org's custom fields: `standard` leaves them out for an org that lacks them. A customer is
an Account; what hangs on contacts, cases and orders reaches it through the relationship (`Order.AccountId`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from crmray import schema
from crmray.config import TableSource

DELETED = {"IsDeleted": {"eq": True}}
NOT_SENT = {"Arm__c": "control"}


def _source(object_: str, columns: dict[str, str], *drop: dict, **more) -> TableSource:
    return TableSource(object=object_, columns=columns, drop=[DELETED, *drop], **more)


STANDARD: dict[str, list[TableSource]] = {
    "customers": [
        _source(
            "Account",
            {
                "entity_id": "Id", "created_at": "CreatedDate", "country": "BillingCountry", "region": "BillingState",
                "industry": "Industry", "segment": "Type",
            },
            attributes=["NumberOfEmployees", "Mail_Opt_In__c"],
        ),
    ],
    "products": [
        _source(
            "Product2",
            {
                "product_id": "Id", "name": "Name", "category": "Family", "brand": "Brand__c",
                "price_amount": "List_Price__c", "launched_at": "CreatedDate", "active": "IsActive",
            },
        ),
    ],
    "transactions": [
        _source(
            "OrderItem",
            {
                "entity_id": "Order.AccountId", "occurred_at": "Order.EffectiveDate", "transaction_id": "Id",
                "order_id": "OrderId", "product_id": "Product2Id", "num_units": "Quantity",
                "unit_price_amount": "UnitPrice", "net_amount": "TotalPrice", "channel": "Order.Channel__c",
            },
            {"Order.Status": "Draft"},
            {"Order.AccountId": {"missing": True}},
        ),
    ],
    "interactions": [
        _source(
            "Case",
            {
                "entity_id": "AccountId", "occurred_at": "CreatedDate", "interaction_id": "Id", "subject": "Subject",
                "text": "Description", "rating": "Rating__c", "status": "Status", "priority": "Priority",
                "closed_at": "ClosedDate",
            },
            {"AccountId": {"missing": True}},
            values={"channel": "case", "direction": "inbound"},
        ),
        *(
            _source(
                "EmailMessage",
                {
                    "entity_id": "Parent.AccountId", "occurred_at": "MessageDate", "interaction_id": "Id",
                    "subject": "Subject", "text": "TextBody", "status": "Status",
                },
                {"Incoming": not incoming},
                {"Parent.AccountId": {"missing": True}},
                values={"channel": "email", "direction": "inbound" if incoming else "outbound"},
            )
            for incoming in (True, False)
        ),
        *(
            _source(
                "Task",
                {
                    "entity_id": "AccountId", "occurred_at": "CreatedDate", "interaction_id": "Id",
                    "subject": "Subject", "text": "Description", "status": "Status", "priority": "Priority",
                },
                {"TaskSubtype": {"ne" if channel == "call" else "eq": "Call"}},
                {"AccountId": {"missing": True}},
                values={"channel": channel, "direction": "outbound"},
            )
            for channel in ("call", "task")
        ),
    ],
    "engagement": [
        _source(
            "Web_Visit__c",
            {
                "entity_id": "Account__c", "occurred_at": "Visited_At__c", "engagement_id": "Id",
                "product_id": "Product__c", "seconds": "Seconds__c",
            },
            {"Account__c": {"missing": True}},
            values={"kind": "visit"},
        ),
        *(
            _source(
                "CampaignMember",
                {"entity_id": "Contact.AccountId", "occurred_at": time, "campaign_id": "CampaignId"},
                NOT_SENT,
                {time: {"missing": True}},
                {"Contact.AccountId": {"missing": True}},
                values={"kind": kind},
            )
            for kind, time in (("send", "CreatedDate"), ("open", "Opened_At__c"), ("click", "FirstRespondedDate"))
        ),
    ],
    "campaigns": [
        _source(
            "Campaign",
            {"campaign_id": "Id", "name": "Name", "kind": "Type", "started_at": "StartDate", "ended_at": "EndDate"},
        ),
    ],
    "exposures": [
        _source(
            "CampaignMember",
            {
                "entity_id": "Contact.AccountId", "campaign_id": "CampaignId", "occurred_at": "CreatedDate",
                "arm": "Arm__c",
            },
            {"Contact.AccountId": {"missing": True}},
        ),
    ],
    "leads": [
        _source(
            "Lead",
            {
                "lead_id": "Id", "created_at": "CreatedDate", "source": "LeadSource", "industry": "Industry",
                "country": "Country", "status": "Status", "converted_at": "ConvertedDate",
                "entity_id": "ConvertedAccountId",
            },
            attributes=["Rating", "NumberOfEmployees"],
        ),
    ],
    "changes": [
        _source(
            f"{object_}{suffix}",
            {
                "entity_id": account, "field": "Field", "occurred_at": "CreatedDate", "old_value": "OldValue",
                "new_value": "NewValue",
            },
            {account: {"missing": True}},
            values={"object": object_},
        )
        for object_, suffix, account in (
            ("Account", "History", "AccountId"), ("Opportunity", "FieldHistory", "Opportunity.AccountId"),
        )
    ],
}  # fmt: skip
"""canonical table -> its sources, all of whose objects the demo org has"""

FURTHER: dict[str, list[TableSource]] = {
    "subscriptions": [
        _source(
            "Contract",
            {"entity_id": "AccountId", "subscription_id": "Id", "started_at": "StartDate", "ended_at": "EndDate"},
            {"Status": "Draft"},
            {"StartDate": {"missing": True}},
        ),
        _source(
            "Asset",
            {
                "entity_id": "AccountId", "subscription_id": "Id", "started_at": "PurchaseDate",
                "ended_at": "UsageEndDate", "plan": "Name", "monthly_amount": "Price",
            },
            {"AccountId": {"missing": True}},
            {"PurchaseDate": {"missing": True}},
        ),
    ],
    "changes": [
        _source(
            f"{object_}History",
            {
                "entity_id": f"{object_}.AccountId", "field": "Field", "occurred_at": "CreatedDate",
                "old_value": "OldValue", "new_value": "NewValue",
            },
            {f"{object_}.AccountId": {"missing": True}},
            values={"object": object_},
        )
        for object_ in ("Case", "Order", "Contract", "Asset")
    ],
}  # fmt: skip
"""sources that a stock org may have beside those of STANDARD"""


def standard(objects: Collection[str] | Mapping[str, Collection[str]]) -> dict[str, list[TableSource]]:
    """The sources of each canonical table among these objects; a table without one is left out.

    Given the columns of each object as well, columns that are not there are left out of the mapping, conditions on
    absent custom fields too, and a source goes that lacks what its table requires or a standard field that its
    conditions look at.
    """
    result: dict[str, list[TableSource]] = {}
    for tables in (STANDARD, FURTHER):
        for table, sources in tables.items():
            for source in sources:
                fitting = _fit(table, source, objects) if source.object in objects else None
                if fitting is not None:
                    result.setdefault(table, []).append(fitting)
    return result


def _fit(
    table: str, source: TableSource, objects: Collection[str] | Mapping[str, Collection[str]]
) -> TableSource | None:
    """The source cut down to the columns that its object has."""
    if not isinstance(objects, Mapping):
        return source
    there = set(objects[source.object])
    columns = {name: column for name, column in source.columns.items() if column in there}
    required = set(schema.table(table).required)
    if required - set(columns) - set(source.values):
        return None
    absent = {column for entry in source.drop for column in entry} - there
    if any(not column.endswith("__c") and column != "IsDeleted" for column in absent):
        return None
    drop = [entry for entry in source.drop if not set(entry) & absent]
    attributes = [name for name in source.attributes if name in there]
    return source.model_copy(update={"columns": columns, "drop": drop, "attributes": attributes})
